"""benchmarks/rewards.py: its groups, and one tiny run."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.comparers import LengthComparer

from benchmarks import rewards
from gram_fast import PairwiseJudge

pytestmark = pytest.mark.usefixtures("one_thread")

PRESENTATIONS = {
    "references": 8, "reference": 6, "knockout": 6, "linear": 6, "opponents": 12, "round_robin": 12
}  # fmt: skip
MEANS = {"bradley_terry": 0, "margin": 0, "win_rate": 0.5, "rank": 0.5}


def test_groups_are_of_their_size_and_hold_no_reference() -> None:
    judge = PairwiseJudge(LengthComparer())
    for count in rewards.COUNTS:
        given = rewards.workload(judge, 3, count)
        assert [len(set(group)) for group in given.groups] == [count] * 3
        assert len(given.prompts) == len(set(given.references)) == 3
        assert not any(reference in group for reference, group in zip(given.references, given.groups, strict=True))
        np.testing.assert_allclose(given.win_rates.mean(axis=1), 0.5)


def test_correlation_is_within_groups() -> None:
    ours, theirs = np.array([[0, 1, 2], [5.0, 4, 3]]), np.array([[10, 20, 30], [3.0, 2, 1]])
    assert rewards.correlation(ours, theirs) == pytest.approx(1)
    assert rewards.correlation(np.array([[0, 1, 2], [7.0, 7, 7]]), theirs) == pytest.approx(0.5)


def test_it_prints_a_record(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(rewards, "COUNTS", (4,))
    out = tmp_path / "out.json"
    rewards.main(["--prompts", "1", "--repeats", "1", "--output", str(out)])
    record = json.loads(out.read_text("utf-8"))
    assert record == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(row["strategy"], row["scores"]) for row in record["rows"]] == [
        (way, scores) for way, names in rewards.WAYS.items() for scores in names
    ]
    for row in record["rows"]:
        assert -1 <= row["correlation"] <= 1 + 1e-9
        assert row["comparisons"] == PRESENTATIONS.get(row["strategy"], row["comparisons"])
        assert 0 < row["tokens_computed"] < row["tokens_unshared"]
        if row["strategy"] != "references":
            assert row["mean"] == pytest.approx(MEANS.get(row["scores"], row["mean"]), abs=1e-9)
