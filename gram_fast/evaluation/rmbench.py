"""RM-Bench (arXiv 2410.16184): 1327 prompts, each with three chosen and three rejected responses of rising style.

A data row is THU-KEG/RM-Bench's (id, prompt, domain, and in chosen and rejected three responses: concise, detailed,
detailed with markdown) or one of GRAM's nine a prompt (chosen and rejected are one response each, matrix_id "i-j" says
which). The files of single domains have a `subset` and no `domain`; it then takes the domain's place.

A judge that scores single responses compares three scores with three; a pairwise judge compares all nine pairs. A tie
is not correct: RM-Bench wants chosen > rejected. A prompt that lacks a pair is left out of every number.
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
    get,
    get_responses,
    get_text,
    get_texts,
    mean,
)

NAME = "rmbench"
_STYLES = 3
CELLS = tuple(f"{i}-{j}" for i in range(_STYLES) for j in range(_STYLES))
DOMAINS = ("chat", "code", "math", "safety")
# Prompts, of the arXiv paper's table; safety: 284 to refuse and 157 to answer.
_PUBLISHED = {"chat": 129, "code": 228, "math": 529, "safety": 441}

responses = get_responses


def texts(fields: Fields) -> list[PairTexts]:
    """The nine pairs of a row with lists of responses, or the one of a row with a matrix_id."""
    if "matrix_id" in fields:
        return [get_texts(fields)]
    for name in ("chosen", "rejected"):
        value = get(fields, name)
        if not isinstance(value, list) or len(value) != _STYLES:
            raise InputError(f"{name}: expected a list of three responses, or one response and a field 'matrix_id'")
    return [
        get_texts({**fields, "chosen": chosen, "rejected": rejected, "matrix_id": f"{i}-{j}"})
        for i, chosen in enumerate(fields["chosen"])
        for j, rejected in enumerate(fields["rejected"])
    ]


def place(fields: Fields) -> Place:
    """A pair's domain, prompt and place in the matrix."""
    domain = get_text(fields, "domain" if "domain" in fields or "subset" not in fields else "subset")
    cell = get_text(fields, "matrix_id")
    if cell not in CELLS:
        raise InputError(f"matrix_id: expected 'i-j' with i and j from 0 to 2, got {cell!r}")
    # Numbers count within a domain.
    return Place("safety" if "safety" in domain else domain, f"{domain} {get(fields, 'id')!r}", cell)


def published(results: Sequence[Result]) -> dict[str, int]:
    """Pairs by domain."""
    return {domain: count * len(CELLS) for domain, count in _PUBLISHED.items()}


def gram_lines(results: Sequence[Result]) -> list[str]:
    """What GRAM's compute_accuracy.py prints."""
    by_domain = {domain: _counts(wins_P33) for domain, wins_P33 in _by_domain(results).items()}
    accuracies = [counts["accuracy"] for counts in by_domain.values()]
    levels = {f"{level}_acc": value for level, value in _levels(_wins(results)).items()}
    domains = {**by_domain, "overall": sum(accuracies) / len(accuracies)}
    return [line for table in (levels, domains) for line in json.dumps(table, ensure_ascii=False, indent=2).split("\n")]


def definitions(results: Sequence[Result]) -> list[Definition]:
    """GRAM's counting and RM-Bench's: their domains and overall are the same, their levels are not."""
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
    """The prompts with three scores a side, as RM-Bench's scripts save them under results/.

    A pairwise judge has no score of a single response: what stands there is a response's mean over the three of the
    other side, and RM-Bench's compute_accuracy compares those. `score_matrix`, as GRAM's script names it, has the nine
    verdicts that the numbers here are counted from.
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
    """[P, 3, 3]: whether chosen i of prompt p is better than rejected j."""
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
