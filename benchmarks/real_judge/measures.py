"""What is measured of a judge on a test set, from the probability of each chosen response."""

import math
from collections.abc import Sequence

import numpy as np

from gram_fast.evaluation import rmbench
from gram_fast.evaluation.calibration import calibration
from gram_fast.evaluation.rows import Result, accuracy, mean, split_items

_LEAST = 1e-12


def measure(results: Sequence[Result]) -> dict[str, float | int | None]:
    """Computes accuracy, calibration and biases of one or more results, as `gram-fast eval` defines them.

    `log_loss` is the mean of -log P(chosen better), of the mean over both orders; 0.693 for a judge that does not know.
    `consistency` and `slot_a_share` are None where there are no orders; `easy`, `normal` and `hard` are RM-Bench's.
    """
    found = calibration(rmbench, results)
    values: dict[str, float | int | None] = {
        "pairs": len(results),
        "accuracy": accuracy(results),
        "calibration_error": found.expected_calibration_error,
        "log_loss": -sum(math.log(max(result.score_chosen, _LEAST)) for result in results) / len(results),
        "consistency": found.position.consistency,
        "slot_a_share": found.position.slot_a_share,
        "longer_wins": found.length.longer_wins,
        "longer_is_chosen": found.length.longer_is_chosen,
        "accuracy_chosen_longer": found.length.accuracy_chosen_longer,
        "accuracy_chosen_shorter": found.length.accuracy_chosen_shorter,
    }
    if results[0].place.cell and split_items(rmbench, results)[0]:
        levels = rmbench.definitions(results)[0].values
        values |= {level: levels[level] for level in ("easy", "normal", "hard")}
    return values


def compare_modes(full: Sequence[Result], factored: Sequence[Result]) -> dict[str, dict[str, float | None]]:
    """Compares what the modes say of the same pairs: of all, and of the halves whose texts are shorter and longer.

    Of each the accuracies, and how often the winner (of the mean over both orders) is the same.
    """
    characters = [sum(len(one.fields[key]) for key in ("chosen", "rejected")) for one in full]
    by_length = np.argsort(characters, kind="stable")
    middle = len(full) // 2
    parts = {"all": by_length, "shorter": by_length[:middle], "longer": by_length[middle:]}
    return {name: _agreement([full[n] for n in part], [factored[n] for n in part]) for name, part in parts.items()}


def _agreement(full: Sequence[Result], factored: Sequence[Result]) -> dict[str, float | None]:
    same = (float(one.correct == other.correct) for one, other in zip(full, factored, strict=True))
    return {"full": accuracy(full), "factored": accuracy(factored), "same_winner": mean(same)}
