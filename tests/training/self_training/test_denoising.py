"""Which labels are kept, and why the others are not, by cases made by hand."""

import pytest

from gram_fast.generating.verdicts import NO_CLOSING, NO_VERDICT, OVER_THE_LIMIT
from gram_fast.training.self_training.denoising import (
    NO_MAJORITY,
    NO_PROBABILITY,
    NOT_JUDGED,
    OTHER_LABEL,
    TOO_LONG,
    UNLIKELY,
    Denoised,
    Run,
    denoise,
    parse_runs,
)


def a(p_a=0.8, order="ab", characters=10):
    return Run(order, "A", None, p_a, characters)


def b(p_a=0.2, order="ab", characters=10):
    return Run(order, "B", None, p_a, characters)


def bad(problem, order="ab"):
    return Run(order, None, problem, 0.5, 10)


CASES = {
    "all agree": ([a(), a(order="ba")], None, ("A", 0.8, None)),
    "a majority for B": ([b(0.1), b(0.2), a(0.6)], None, ("B", 0.7, None)),
    "the orders have a weight each": ([a(0.9), a(0.9), a(0.9), a(0.5, "ba")], None, ("A", 0.7, None)),
    "one of two": ([a(), b()], None, (None, None, NO_MAJORITY)),
    "half is no majority": ([a(), a(), b(), bad(NO_VERDICT)], None, (None, None, NO_MAJORITY)),
    "most, and an answer without a verdict": ([a(0.7), a(0.9), bad(NO_VERDICT)], None, ("A", 0.8, None)),
    "nothing has a verdict": ([bad(NO_VERDICT), bad(NO_CLOSING), bad(NO_CLOSING)], None, (None, None, NO_CLOSING)),
    "half has none": ([a(), a(), bad(OVER_THE_LIMIT), bad(OVER_THE_LIMIT)], None, (None, None, OVER_THE_LIMIT)),
    "as many of two kinds": ([bad(OVER_THE_LIMIT), bad(NO_CLOSING)], None, (None, None, NO_CLOSING)),
    "all rationales too long": ([a(characters=31), a(characters=99)], None, (None, None, TOO_LONG)),
    "one rationale too long": ([a(0.6), a(0.8, characters=30), b(0.0, characters=31)], None, ("A", 0.7, None)),
    "too unlikely": ([a(0.5), a(0.6)], None, ("A", 0.55, UNLIKELY)),
    "too unlikely, for B": ([b(0.5), b(0.4)], None, ("B", 0.55, UNLIKELY)),
    "just likely enough": ([a(0.6), a(0.6)], None, ("A", 0.6, None)),
    "no probabilities": ([a(None), a(None)], None, ("A", None, NO_PROBABILITY)),
    "one probability": ([a(None), a(0.9)], None, ("A", 0.9, None)),
    "its own label": ([a(), a()], "A", ("A", 0.8, None)),
    "another label": ([a(), a()], "B", ("A", 0.8, OTHER_LABEL)),
    "unlikely comes first": ([a(0.5), a(0.5)], "B", ("A", 0.5, UNLIKELY)),
    "no runs": ([], None, (None, None, NOT_JUDGED)),
}


@pytest.mark.parametrize("name", list(CASES))
def test_each_reason(name):
    runs, own, (label, p, reason) = CASES[name]
    found = denoise(runs, own, min_probability=0.6, max_rationale_characters=30)
    assert found == Denoised(label, None if p is None else pytest.approx(p), reason)


def test_the_cases_have_every_reason():
    reasons = {reason for _, _, (_, _, reason) in CASES.values()}
    assert reasons >= {NOT_JUDGED, NO_MAJORITY, TOO_LONG, NO_PROBABILITY, UNLIKELY, OTHER_LABEL, OVER_THE_LIMIT}


def test_without_limits_every_majority_is_kept():
    assert denoise([a(0.0, characters=10**6)], None, 0).reason is None
    assert denoise([a(None)], None, 0).reason is None


def test_runs_are_read_back():
    row = {"order": "ba", "label": None, "problem": NO_VERDICT, "p_a": None, "characters": 3}
    assert parse_runs([row]) == [Run("ba", None, NO_VERDICT, None, 3)]
