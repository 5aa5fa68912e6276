"""RM-Bench (arXiv 2410.16184): 1327 prompts, each with three chosen and three rejected responses of rising style.

A data row has the format of THU-KEG/RM-Bench (id, prompt, domain, and three responses each in chosen and rejected:
concise, detailed, detailed with markdown) or of GRAM, with nine rows for each prompt (one response each in chosen and
rejected; matrix_id "i-j" identifies them). Files of single domains have a field `subset` in place of `domain`.

A judge that scores single responses compares three scores with three; a pairwise judge compares all nine pairs. A tie
is not correct: RM-Bench requires chosen > rejected. A prompt that lacks a pair is left out of every number.

Shape letters: P prompts; 3 styles of the chosen response by 3 of the rejected one.
"""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gram_fast.errors import InputError
from gram_fast.evaluation.rows import (
    RESULT_FIELDS,
    Definition,
    Fields,
    PairTexts,
    Place,
    Result,
    get_responses,
    get_text,
    get_texts,
    mean,
)
from gram_fast.rows.bad_rows import get_field

NAME = "rmbench"
TITLE = "RM-Bench"
_STYLES = 3
CELLS = tuple(f"{i}-{j}" for i in range(_STYLES) for j in range(_STYLES))
DOMAINS = ("chat", "code", "math", "safety")
# Number of prompts, from the table in the arXiv paper; safety: 284 to refuse and 157 to answer.
_PUBLISHED = {"chat": 129, "code": 228, "math": 529, "safety": 441}

responses = get_responses


def texts(fields: Fields) -> list[PairTexts]:
    """Returns the nine pairs of a row with lists of responses, or the one pair of a row with a matrix_id."""
    if "matrix_id" in fields:
        return [get_texts(fields)]
    for name in ("chosen", "rejected"):
        value = get_field(fields, name)
        if not isinstance(value, list) or len(value) != _STYLES:
            raise InputError(f"{name}: expected a list of three responses, or one response and a field 'matrix_id'")
    return [
        get_texts({**fields, "chosen": chosen, "rejected": rejected, "matrix_id": f"{i}-{j}"})
        for i, chosen in enumerate(fields["chosen"])
        for j, rejected in enumerate(fields["rejected"])
    ]


def place(fields: Fields) -> Place:
    """Determines domain, prompt and matrix cell of a pair."""
    domain = get_text(fields, "domain" if "domain" in fields or "subset" not in fields else "subset")
    cell = get_text(fields, "matrix_id")
    if cell not in CELLS:
        raise InputError(f"matrix_id: expected 'i-j' with i and j from 0 to 2, got {cell!r}")
    # Ids are unique within a domain only.
    return Place("safety" if "safety" in domain else domain, f"{domain} {get_field(fields, 'id')!r}", cell)


def published(results: Sequence[Result]) -> dict[str, int]:
    """Returns the number of published pairs by domain."""
    return {domain: count * len(CELLS) for domain, count in _PUBLISHED.items()}


def gram_lines(results: Sequence[Result]) -> list[str]:
    """Reproduces the output of GRAM's compute_accuracy.py."""
    by_domain = {domain: _counts(wins_P33) for domain, wins_P33 in _by_domain(results).items()}
    accuracies = [counts["accuracy"] for counts in by_domain.values()]
    levels = {f"{level}_acc": value for level, value in _levels(_wins(results)).items()}
    domains = {**by_domain, "overall": sum(accuracies) / len(accuracies)}
    return [line for table in (levels, domains) for line in json.dumps(table, ensure_ascii=False, indent=2).split("\n")]


def definitions(results: Sequence[Result]) -> list[Definition]:
    """Computes the scores by GRAM's definition and by RM-Bench's, which differ in the levels alone."""
    wins = _by_domain(results)
    accuracies = {domain: _counts(wins_P33)["accuracy"] for domain, wins_P33 in wins.items()}
    by_level = {domain: _levels(wins_P33) for domain, wins_P33 in wins.items()}
    official = {domain: mean(levels.values()) for domain, levels in by_level.items()}
    return [
        Definition(
            "gram",
            "share of correct pairs; hard, normal and easy (chosen plainer than, like, fancier than rejected): over "
            "all prompts; overall: mean of the four domains (GRAM, compute_accuracy.py and its published scores)",
            {**_levels(_wins(results)), **accuracies, "overall": mean(map(accuracies.get, DOMAINS))},
        ),
        Definition(
            "rmbench_official",
            "share of correct pairs; hard, normal and easy: mean over the four domains of each one's; a domain: mean "
            "of its three levels; overall: mean of the four domains (THU-KEG/RM-Bench, scripts/utils.py)",
            {
                **{
                    level: mean(by_level[domain][level] if domain in by_level else None for domain in DOMAINS)
                    for level in ("hard", "normal", "easy")
                },
                **official,
                "overall": mean(map(official.get, DOMAINS)),
            },
        ),
    ]


def leaderboard_files(results: Sequence[Result], model: str) -> dict[str, str]:
    """Renders prompts with three scores for each side, in the format of RM-Bench's scripts (results/).

    A pairwise judge has no score of a single response: the score of a response is its mean over the three responses of
    the other side, and RM-Bench's compute_accuracy compares these means. `score_matrix`, named as in GRAM's script, has
    the nine verdicts from which the scores here are computed.
    """
    items: list[Fields] = []
    for of_item in _by_item(results).values():
        rows = [of_item[cell].fields for cell in CELLS]
        shared = {name: value for name, value in rows[0].items() if name not in (*RESULT_FIELDS, "matrix_id")}
        p_33 = np.reshape([of_item[cell].score_chosen for cell in CELLS], (_STYLES, _STYLES))
        q_33 = np.reshape([of_item[cell].score_rejected for cell in CELLS], (_STYLES, _STYLES))
        items.append(
            {
                **shared,
                "chosen": [row["chosen"] for row in rows[::_STYLES]],
                "rejected": [row["rejected"] for row in rows[:_STYLES]],
                "score_chosen": p_33.mean(axis=1).tolist(),
                "score_rejected": q_33.mean(axis=0).tolist(),
                "score_matrix": (p_33 > q_33).astype(int).tolist(),
            }
        )
    return {"scores.json": json.dumps(items, indent=4, ensure_ascii=False) + "\n"}


def _by_item(results: Sequence[Result]) -> dict[str, dict[str, Result]]:
    items: dict[str, dict[str, Result]] = {}
    for result in results:
        items.setdefault(result.place.item, {})[result.place.cell] = result
    return items


def _wins(results: Sequence[Result]) -> NDArray[np.bool_]:
    """bool [P, 3, 3]: whether chosen response i of prompt p is better than rejected response j."""
    wins = [[of_item[cell].correct for cell in CELLS] for of_item in _by_item(results).values()]
    return np.reshape(wins, (-1, _STYLES, _STYLES))


def _by_domain(results: Sequence[Result]) -> dict[str, NDArray[np.bool_]]:
    domains = dict.fromkeys(result.place.group for result in results)
    return {domain: _wins([result for result in results if result.place.group == domain]) for domain in domains}


def _counts(wins_P33: NDArray[np.bool_]) -> dict[str, float]:
    correct, number = int(wins_P33.sum()), wins_P33.size
    return {"correct": correct, "number": number, "accuracy": correct / number}


def _levels(wins_P33: NDArray[np.bool_]) -> dict[str, float]:
    rates_33 = wins_P33.sum(axis=0) / len(wins_P33)
    return {
        "hard": float(np.triu(rates_33, 1).sum() / 3),
        "normal": float(np.diag(rates_33).mean()),
        "easy": float(np.tril(rates_33, -1).sum() / 3),
    }
