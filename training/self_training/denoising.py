"""Denoising: which labels of a judge are kept, and why the others are not (GRAM-R2, arXiv 2509.02492).

The judge writes about each pair in several runs. Kept are labels that most runs have, whose probability is not under a
threshold, and that agree with the label that the pair has, if any. A run counts for no label where its answer has no
verdict, is over the limit of tokens, or has too long a rationale.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gram_fast.training.data.formats import Label

NOT_JUDGED = "cannot be judged"
NO_MAJORITY = "no majority"
TOO_LONG = "a rationale over max_rationale_characters"
NO_PROBABILITY = "no probability"
UNLIKELY = "under min_probability"
OTHER_LABEL = "another label than the pair's"


@dataclass(frozen=True)
class Run:
    """One answer that a judge wrote about a pair."""

    order: str
    """"ab", or "ba" where the pair was shown the other way round."""
    label: Label | None
    """The pair's response that its verdict is for; None of none."""
    problem: str | None
    """Why it has no verdict."""
    p_a: float | None
    """P(response A of the pair is better) behind its rationale."""
    characters: int
    """Of its rationale."""


@dataclass(frozen=True)
class Denoised:
    """What the runs of a pair come to."""

    label: Label | None
    """Label of the majority; None of none."""
    p: float | None
    """Probability of that label: mean over orders of the mean over the runs that count."""
    reason: str | None
    """Why the pair is dropped: a problem of its runs, or a constant of this module. None of one that is kept."""


def parse_runs(runs: Sequence[Mapping[str, Any]]) -> list[Run]:
    """Reads the runs of a predicted row."""
    return [Run(**run) for run in runs]


def denoise(
    runs: Sequence[Run], own: Label | None, min_probability: float, max_rationale_characters: int | None = None
) -> Denoised:
    """Decides on one pair.

    Args:
        runs: all runs about it; none where it cannot be judged.
        own: the label that the pair has of its own, which the judge was not told.
        min_probability: least probability of the label that is kept, in [0, 1].
        max_rationale_characters: longest rationale that counts.
    """
    if not runs:
        return Denoised(None, None, NOT_JUDGED)
    problems = [_problem(run, max_rationale_characters) for run in runs]
    counting = [run for run, problem in zip(runs, problems, strict=True) if problem is None]
    votes = Counter(run.label for run in counting)
    label = next((label for label, count in votes.items() if 2 * count > len(runs)), None)
    if label is None:
        return Denoised(None, None, _why_no_majority(problems))
    p = _probability(counting, label)
    if p is None and min_probability > 0:
        reason: str | None = NO_PROBABILITY
    elif p is not None and p < min_probability:
        reason = UNLIKELY
    else:
        reason = OTHER_LABEL if own not in (None, label) else None
    return Denoised(label, p, reason)


def _problem(run: Run, max_characters: int | None) -> str | None:
    if run.problem is not None:
        return run.problem
    return TOO_LONG if max_characters is not None and run.characters > max_characters else None


def _why_no_majority(problems: Sequence[str | None]) -> str:
    """The most frequent problem where half of the runs or more count for no label, of equally frequent ones the first
    by name; else that the others do not agree."""
    found = Counter(problem for problem in problems if problem is not None)
    if 2 * found.total() < len(problems):
        return NO_MAJORITY
    return min(found, key=lambda problem: (-found[problem], problem))


def _probability(runs: Sequence[Run], label: Label) -> float | None:
    means = []
    for order in ("ab", "ba"):
        known = [run.p_a for run in runs if run.order == order and run.p_a is not None]
        if known:
            means.append(sum(known) / len(known))
    if not means:
        return None
    p_a = sum(means) / len(means)
    return p_a if label == "A" else 1 - p_a
