"""Numbers of others in docs/evaluation.md: averages that fit their definition, and the formula of GRAM's demo."""

import re
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from scipy.special import softmax

from gram_fast import SMALL_JUDGE, PairwiseJudge

PAGE = (Path(__file__).parents[2] / "docs/evaluation.md").read_text("utf-8")
ROWS = re.findall(r"^\| (\S.*?) \| ((?:[\d.]+ \| ){4}[\d.]+) \|$", PAGE, re.MULTILINE)

QUESTION = "What is the Russian word for frog?"
RIGHT = 'The Russian word for frog is "лягушка" (pronounced "lyagushka").'
WRONG = (
    'The Russian word for frog is "жаба" (pronounced as "zhaba"). This word can also be written in Cyrillic as '
    "жа́ба. If you're learning Russian, here's a sentence with the word: "  # noqa: RUF001
    "Меня зовут Иван, и я люблю лезечку на спину жабы, which translates to "
    '"My name is Ivan, and I like sitting on the back of a frog." '
    "(Keep in mind that in real life, it is best not to disturb or harm frogs.)"
)


def test_every_published_row_is_the_mean_of_its_parts():
    assert len(ROWS) == 5 + 5 + 5
    for model, row in ROWS:
        *parts, overall = row.split(" | ")
        digits = len(overall.partition(".")[2])
        assert abs(fmean(map(float, parts)) - float(overall)) < 0.501 * 10**-digits + 1e-9, model


def by_formula(logits_OR):
    """The two numbers of GRAM's demo, and those of its evaluation; a row of logits for each order."""
    return softmax(logits_OR, axis=0).mean(axis=1), softmax(logits_OR, axis=1).mean(axis=0)


def test_the_demo_of_gram_may_name_another_winner_than_its_evaluation():
    demo, evaluation = by_formula(np.array([[1, 0.5], [2, 2.2]]))
    for numbers in (demo, evaluation):
        assert f"{numbers[0]:.3f} / {numbers[1]:.3f}" in PAGE
    assert demo[0] < demo[1]
    assert evaluation[0] > evaluation[1]


@pytest.mark.usefixtures("one_thread")
def test_the_example_of_grams_demo_by_both_formulas():
    judge = PairwiseJudge.from_pretrained(SMALL_JUDGE, dtype="float32")
    orders = judge.comparer.tokenizer.whole_ids([(QUESTION, RIGHT, WRONG), (QUESTION, WRONG, RIGHT)])
    (first, second) = [judge.comparer.runner.plain_logits(torch.from_numpy(ids).long()).numpy() for ids in orders]
    logits_OR = np.array([first, second[::-1]])  # a row for each order: logits for the first and the second response
    demo, evaluation = by_formula(logits_OR)
    assert judge.compare(QUESTION, RIGHT, WRONG).p == pytest.approx(evaluation[0], abs=1e-4)
    for numbers in (demo, evaluation):
        assert f"{numbers[0]:.3f} / {numbers[1]:.3f}" in PAGE
