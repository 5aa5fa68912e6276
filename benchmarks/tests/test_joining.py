"""benchmarks/joining.py on a tiny setting: what it prints, and that it counts what it says."""

import json
import sys

import pytest

from benchmarks import joining

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_prints_rows_and_a_record(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--prompts", "3", "--each", "4", "--threads", "6", "--repeats", "2"]
    monkeypatch.setattr(sys, "argv", ["joining", *settings])
    joining.main()
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"device", "torch", "commit", "torch_threads"} <= set(record)
    rows = {row["way"]: row for row in record["rows"]}
    assert list(rows) == [
        "one_after_another",
        "from_threads_apart",
        "from_threads",
        "from_tasks",
        "packed",
        "rewards",
        "rendezvous",
    ]
    for row in rows.values():
        assert row["cpu_seconds"] >= row["cpu_seconds_min"] > 0
    assert rows["one_after_another"]["passes"] == rows["from_threads_apart"]["passes"] == 12
    assert rows["packed"]["passes"] < 12
    assert [rows[way]["calls"] for way in ("one_after_another", "from_tasks", "packed")] == [12, 12, 1]


def test_the_pairs_are_distinct_responses_to_their_prompts() -> None:
    rows = joining.rows_of(3, 4)
    assert len({prompt for prompt, _, _ in rows}) == 3
    for prompt, a, b in rows:
        assert sorted(a.split(", ")) == sorted(b.split(", ")) == sorted(prompt.partition(": ")[2].split(", "))
