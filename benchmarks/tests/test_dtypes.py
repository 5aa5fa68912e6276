"""benchmarks/dtypes.py and the groups that it reads: pairs, changes, and one tiny run."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.small_models import write_judge

from benchmarks import dtypes
from benchmarks.groups import read_groups

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [
    {"prompt": "p", "chosen": ["a", "b"], "rejected": ["c"]},
    {"prompt": "q", "chosen": "d", "rejected": "e"},
    {"prompt": "r", "responses": ["f", "f", "g"]},
]


def test_groups_are_read_from_rows_of_any_kind(tmp_path: Path) -> None:
    whole, lines = tmp_path / "rows.json", tmp_path / "rows.jsonl"
    whole.write_text(json.dumps(ROWS), "utf-8")
    lines.write_text("\n".join(map(json.dumps, ROWS)), "utf-8")
    expected = [("p", ["a", "b", "c"]), ("q", ["d", "e"]), ("r", ["f", "f", "g"])]
    assert read_groups(whole) == read_groups(lines) == expected
    assert list(dtypes.pairs_of(expected)) == [("p", "a", "b"), ("q", "d", "e"), ("p", "a", "c"), ("r", "f", "g")]


def test_changes_are_of_winners_and_p() -> None:
    found = dtypes.changes(np.array([0.9, 0.55, 0.3, 0.48]), np.array([0.8, 0.45, 0.3, 0.52]))
    assert found == {
        "flipped": 0.5,
        "flipped_margin": pytest.approx(0.05),
        "mean_change": pytest.approx(0.06),
        "worst_change": pytest.approx(0.1),
        "first_wins": 0.5,
    }


def test_it_prints_a_record(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, data = write_judge(tmp_path / "model"), tmp_path / "rows.json"
    data.write_text(json.dumps(ROWS), "utf-8")
    given = ["--model", str(model), "--data", str(data), "--dtypes", "float32", "bfloat16", "fp8"]
    monkeypatch.setattr(sys, "argv", ["dtypes", *given])
    dtypes.main()
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    same, half, quarter = record["rows"]
    assert (record["pairs"], same["dtype"], same["worst_change"]) == (4, "float32", 0.0)
    assert 0 < half["worst_change"] < 0.1
    assert half["worst_change"] < quarter["worst_change"] < 0.5
