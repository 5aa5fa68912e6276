"""JudgeBench (arXiv 2410.12784): 350 pairs of answers by GPT-4o, or 270 by Claude 3.5 Sonnet, one of them right.

A data row has the format of ScalerLab/JudgeBench (question, response_A, response_B, label "A>B" or "B>A", source) or of
GRAM (prompt, chosen, rejected, source). A tie is not correct. JudgeBench plays two games for each pair, one in each
order; a game that is tied or has no answer counts for neither response.
"""

import json
from collections.abc import Sequence
from typing import Any

from gram_fast.errors import InputError
from gram_fast.evaluation.rows import (
    Definition,
    Fields,
    PairTexts,
    Place,
    Result,
    accuracy,
    accuracy_lines,
    get_responses,
    get_text,
    get_texts,
    mean,
)
from gram_fast.rows.bad_rows import get_field

NAME = "judgebench"
TITLE = "JudgeBench"
CELLS = ("",)

# Substring of the source of each group's pairs. GRAM's script counts a source in every group that it matches; no source
# matches two.
GROUPS = {
    "Knowledge": "mmlu-pro",
    "Reasoning": "livebench-reasoning",
    "Math": "livebench-math",
    "Coding": "livecodebench",
}
# Number of pairs by the model that wrote the answers, in the order of GROUPS, counted in ScalerLab/JudgeBench's files.
_PUBLISHED = {
    "gpt-4o-2024-05-13": (154, 98, 56, 42),
    "claude-3-5-sonnet-20240620": (154, 51, 34, 31),
}
_PAIR_FIELDS = (
    "pair_id",
    "original_id",
    "source",
    "question",
    "response_model",
    "response_A",
    "response_B",
    "label",
)
_DECISIONS = {1: "A>B", 0: "A=B", -1: "B>A"}


def texts(fields: Fields) -> list[PairTexts]:
    """Returns the one pair of a data row."""
    if "label" not in fields:
        return [get_texts(fields)]
    chosen, rejected = _by_label(fields)
    return [PairTexts(fields, get_field(fields, "question"), chosen, rejected)]


def place(fields: Fields) -> Place:
    """Determines the group of a pair from its source."""
    source = get_text(fields, "source")
    for group, part in GROUPS.items():
        if part in source:
            return Place(group)
    raise InputError(f"source: expected one that contains {', '.join(GROUPS.values())}, got {source!r}")


def responses(fields: Fields) -> tuple[Any, Any] | None:
    """Returns (chosen, rejected), read from the fields of these names or from the label."""
    return _by_label(fields) if "label" in fields else get_responses(fields)


def published(results: Sequence[Result]) -> dict[str, int]:
    """Returns the number of published pairs by group; results that name no response model count as GPT-4o's."""
    models = {str(result.fields.get("response_model", "gpt-4o-2024-05-13")) for result in results}
    counts = [_PUBLISHED[model] for model in models if model in _PUBLISHED]
    return {group: sum(of_set) for group, *of_set in zip(GROUPS, *counts, strict=True)} if counts else {}


def gram_lines(results: Sequence[Result]) -> list[str]:
    """Reproduces the output of GRAM's get_judgebench_score.py."""
    return accuracy_lines(_by_group(results), _mean_of_verdicts_and_groups(results))


def definitions(results: Sequence[Result]) -> list[Definition]:
    """Computes the scores by GRAM's two definitions and by JudgeBench's."""
    by_group = _by_group(results)
    return [
        Definition(
            "gram_published",
            "share of pairs whose chosen response has the higher mean over both orders; overall: mean of the four "
            "groups, as in GRAM's published table",
            {**by_group, "overall": mean(by_group.values())},
        ),
        Definition(
            "gram_script_overall",
            "what GRAM's get_judgebench_score.py calls the overall average: the mean of all verdicts and the four "
            "groups' accuracies in one list",
            {"overall": _mean_of_verdicts_and_groups(results)},
        ),
        Definition(
            "judgebench_official",
            "two games a pair, each +1 for the right answer, -1 for the wrong one and 0 for a tie; share of pairs with "
            "a sum above 0; overall: over all pairs (ScalerLab/JudgeBench, run_judge.py)",
            {
                **{group: _share_of_won_games(_of_group(results, group)) for group in GROUPS},
                "overall": _share_of_won_games(results),
            },
        ),
    ]


def leaderboard_files(results: Sequence[Result], model: str) -> dict[str, str]:
    """Renders the pairs with the judgments of their two games, in the format of JudgeBench's run_judge.py."""
    rows = [_judged(result, model) for result in results]
    return {"judgments.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)}


def _by_label(fields: Fields) -> tuple[Any, Any]:
    a, b = get_field(fields, "response_A"), get_field(fields, "response_B")
    if (label := fields["label"]) not in ("A>B", "B>A"):
        raise InputError(f"label: expected 'A>B' or 'B>A', got {label!r}")
    return (a, b) if label == "A>B" else (b, a)


def _of_group(results: Sequence[Result], group: str) -> list[Result]:
    return [result for result in results if result.place.group == group]


def _by_group(results: Sequence[Result]) -> dict[str, float | None]:
    return {group: accuracy(_of_group(results, group)) for group in GROUPS}


def _mean_of_verdicts_and_groups(results: Sequence[Result]) -> float:
    values: list[float] = [result.correct for result in results]
    values += [value for value in _by_group(results).values() if value is not None]
    return sum(values) / len(values)


def _share_of_won_games(results: Sequence[Result]) -> float | None:
    return mean(None if (games := result.games) is None else float(sum(games) > 0) for result in results)


def _judged(result: Result, model: str) -> Fields:
    fields, games, p = result.fields, result.games, result.by_slot
    if "label" not in fields:
        names = {"prompt": "question", "chosen": "response_A", "rejected": "response_B"}
        fields = {names.get(name, name): value for name, value in fields.items()} | {"label": "A>B"}
    judgments: list[Fields | None] = [None, None]
    if games is not None and p is not None:
        # Decisions are about slots: the chosen response is in slot A in one game and in slot B in the other.
        judgments = [
            {"judgment": {"judge_model": model, "p_a": p[0]}, "decision": _DECISIONS[games[0]]},
            {"judgment": {"judge_model": model, "p_a": 1 - p[1]}, "decision": _DECISIONS[-games[1]]},
        ]
    if fields["label"] == "B>A":
        judgments.reverse()  # the first game shows response A first
    pair = {name: fields[name] for name in _PAIR_FIELDS if name in fields}
    return {**pair, "judge_name": "gram_fast", "judgments": judgments}
