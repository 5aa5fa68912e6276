"""The benchmarks of factored judges compare what they time, and say what was timed."""

import json

import numpy as np
import pytest

from benchmarks import factored

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_round_robin_is_measured_in_all_ways_and_exact(monkeypatch, capsys, tmp_path):
    few = [
        "--n",
        "2",
        "3",
        "--responses",
        "9",
        "--prompt",
        "12",
        "--tail",
        "4",
        "--repeats",
        "1",
        "--most-tokens",
        "60",
    ]
    monkeypatch.setattr("sys.argv", ["factored", *few, "--plot", str(tmp_path / "a.png")])
    factored.main()
    printed = capsys.readouterr().out
    record = json.loads(printed.splitlines()[-1])
    for row, n in zip(record["rows"], (2, 3), strict=True):
        task = factored.Task.drawn(n, 9, 12, 4, 8192)
        assert row["tokens"]["factored"] == 12 + 2 * task.lengths.sum() + n * (n - 1) * 4
        assert row["tokens"]["exact"] == 12 + task.lengths.sum() + sum(
            len(task.responses[b]) + 4 for _, b in task.pairs(n)
        )
        assert row["tokens"]["padded"] == sum(
            16 + len(task.responses[a]) + len(task.responses[b]) for a, b in task.pairs(n)
        )
        assert row["largest_difference"] < 1e-4
        assert np.isfinite(list(row["seconds"].values())).all()
        assert all(0 < share <= 1 for share in row["share_timed"].values())
    assert record["rows"][1]["share_timed"]["padded"] < 1
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
