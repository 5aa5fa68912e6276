"""benchmarks/strategies.py: candidates, known preferences and the measures of quality, and one tiny run."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import strategies
from gram_fast import PairwiseJudge, PreferenceMatrix, Stats
from gram_fast.training.small_judge.tasks import distinct_tasks

pytestmark = pytest.mark.usefixtures("one_thread")

NO_COST = Stats(comparisons=0, seconds=0.0)


def test_candidates_are_one_right_response_and_distinct_wrong_ones() -> None:
    rng = random.Random(0)
    for maker in strategies.KINDS:
        task, *others = distinct_tasks((maker,), 5, strategies.TASKS)
        candidates = strategies.candidates_of(task, others, max(strategies.COUNTS), rng)
        assert [task.is_right(text) for text in candidates] == [True] + [False] * 31
        assert len(set(candidates)) == 32
        drawn = strategies.draw(candidates, 8, rng)
        assert len(set(drawn)) == 8
        assert candidates[0] in drawn


def test_strategies_find_what_is_known_and_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies, "COUNTS", (4, 8))
    candidates = [f"response {number}" for number in range(8)]
    p = 0.5 + np.sign(np.arange(8) - np.arange(8)[:, None]) / 4  # the first is the best
    known = strategies.Known(candidates, PreferenceMatrix.wrap(p, {}, NO_COST))
    found = list(strategies.quality("a prompt", candidates, known, 3, random.Random(0)))
    assert len(found) == 2 * 3 * len(strategies.STRATEGIES)
    for (strategy, count), (pairs, rounds, is_right, tau, best) in found:
        if strategy not in ("reference", "opponents"):
            assert is_right == 1
        if strategy in ("round_robin", "sort"):
            assert (tau, best) == (pytest.approx(1), 1)
        if strategy == "top_k":
            assert best == 1
        if strategy in ("knockout", "linear", "reference"):
            assert pairs == count - 1
        assert (rounds == 1) == (strategy in ("round_robin", "reference", "opponents"))
    assert PairwiseJudge(known).rank("a prompt", candidates).stats.comparisons == 2 * 28


def test_agreement_is_of_places() -> None:
    assert strategies.agreement([2, 0, 3, 1], [2, 0, 3, 1]) == (pytest.approx(1), 1)
    assert strategies.agreement([3, 2, 1, 0], [0, 1, 2, 3]) == (pytest.approx(-1), pytest.approx(2 / 3))
    tau, best = strategies.agreement([0, 1, 3, 2], [0, 1, 2, 3])
    assert (tau, best) == (pytest.approx(4 / 6), pytest.approx(2 / 3))


def test_it_prints_a_record_and_draws(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(strategies, "COUNTS", (4, 6))
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    given = ["--kinds", "1", "--draws", "2", "--costs", "1", "--output", str(out), "--plot", str(picture)]
    monkeypatch.setattr(sys, "argv", ["strategies", *given])
    strategies.main()
    record = json.loads(out.read_text("utf-8"))
    assert record == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(row["strategy"], row["n"]) for row in record["rows"][:3]] == [
        ("round_robin", 4), ("round_robin", 6), ("opponents", 4),
    ]  # fmt: skip
    assert all(row["tokens_computed"] > 0 and 0 <= row["first_is_right"] <= 1 for row in record["rows"])
    assert picture.read_bytes().startswith(b"\x89PNG")
