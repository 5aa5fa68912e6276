"""benchmarks/host_time.py on a tiny setting: what it prints, and that a replaced kernel is not run again."""

import json
import sys

import pytest
import torch

from benchmarks import host_time
from gram_fast.scoring.key_values import KeyValueStore

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_prints_rows_and_a_record(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["host_time", "--layers", "2", "--spans", "2", "5", "--repeats", "3"])
    host_time.main()
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split(" spans:")[0].strip() for line in lines[1:]] == ["2", "5"]
    record = json.loads(last)
    assert record["benchmark"] == "host_time"
    assert {"device", "torch", "commit", "threads"} <= set(record)
    for row, spans in zip(record["rows"], (2, 5), strict=True):
        assert row["spans"] == spans
        assert row["us_per_pass"] >= row["us_per_pass_min"] > 0
        assert row["us_per_layer"] == row["us_per_pass"] / 2
        assert row["python_calls"] > 20


def test_replaced_kernels_do_not_run_again_and_change_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, tree_pass, store = host_time.tiny_runner(2), host_time.pass_of(3), KeyValueStore()
    store.reserve(tree_pass.budget)
    calls, real = [], runner._operations.project
    before = runner.forward(tree_pass, store)

    def project(*arguments: torch.Tensor) -> torch.Tensor:
        calls.append(len(arguments[0]))
        return real(*arguments)

    monkeypatch.setattr(runner, "_operations", host_time.with_product(runner._operations, project))
    with host_time.without_products(runner, lambda: runner.forward(tree_pass, store)):
        count = len(calls)
        # The last products of a pass are not written over: they carry its logits.
        torch.testing.assert_close(runner.forward(tree_pass, store), before)
        assert len(calls) == count > 0
    assert runner._operations.project is project


def test_calls_are_counted_without_the_one_that_makes_them() -> None:
    def inner() -> None:
        len([])

    def outer() -> None:
        inner()
        inner()

    assert host_time.count_calls(outer) == 2
