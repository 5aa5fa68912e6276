"""The judge that ships with the package: what its card says of it holds."""

import json
import random
import re
from pathlib import Path

import pytest

import gram_fast
from gram_fast.training.small_judge.make import TEST, VALIDATION, accuracy_by_kind
from gram_fast.training.small_judge.tasks import SEEN, distinct_tasks, labeled_row

FOLDER = Path(gram_fast.SMALL_JUDGE)


@pytest.fixture(scope="module")
def judge():
    return gram_fast.PairwiseJudge.from_pretrained(gram_fast.SMALL_JUDGE)


def test_it_is_small_and_says_what_it_is(judge):
    assert (FOLDER / "model.safetensors").stat().st_size <= 12 * 2**20
    assert json.loads((FOLDER / "config.json").read_text())["gram_fast"]["preset"] == "short"
    assert judge.comparer.tokenizer.template == gram_fast.text.prompts.PairTemplate.load("short")
    assert "no judge of real answers" in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("mode", ["full", "factored"])
def test_its_accuracy_is_that_of_its_card(judge, mode):
    """On a fifth of the prompts that the card's test has, all held out from training."""
    rng = random.Random(0)
    held_out = distinct_tasks(SEEN, 1, TEST + VALIDATION)
    rows = [labeled_row(task, rng) for task in held_out[::6]]
    accuracy, same = accuracy_by_kind(judge, rows, mode)["all"]
    card = re.search(
        r"\| kinds of the training, in its wordings \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|",
        (FOLDER / "README.md").read_text(),
    )
    expected = card.groups()[:2] if mode == "full" else card.groups()[2:]
    # Three standard errors of the sample.
    margin = 3 * (0.25 / len(rows)) ** 0.5
    assert (accuracy, same) == pytest.approx(tuple(map(float, expected)), abs=margin)


def test_it_ranks_the_examples_sensibly(judge):
    path = Path(__file__).parents[3] / "examples" / "candidates.jsonl"
    for row in map(json.loads, path.read_text("utf-8").splitlines()):
        best = judge.rank(row["prompt"], row["responses"]).best
        assert best == row["best"], row["responses"][best]
