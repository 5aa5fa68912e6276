"""What the canary of benchmarks/run_gpu.sh takes for right, on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.graphs import stand_in
from helpers.ops import CPU
from torch import Tensor

from benchmarks.gpu import canary

pytestmark = pytest.mark.usefixtures("one_thread", "rounded_float8")


@pytest.mark.parametrize("op", canary.CASES)
def test_every_op_is_right(op: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert canary.wrong_ops([op], CPU) == []
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(line.endswith(" at the sizes of small: right") for line in lines)


def test_one_backend_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert canary.wrong_ops(["tree_attention"], CPU, "cascade") == []
    assert capsys.readouterr().out == "tree_attention (cascade) at the sizes of small: right\n"


@pytest.fixture(params=["swiglu", "add_rms_norm", "merge_states", "label_logits", "invariant_linear", "tree_attention"])
def case(request: pytest.FixtureRequest) -> canary.Case:
    torch.manual_seed(0)
    return canary.CASES[request.param](canary.Sizes.of("small", CPU))


def changed(case: canary.Case, change: dict[int, float]) -> canary.Case:
    """The case with an op whose first output has other values in a few places."""

    def bound(backend: str) -> canary.Compute:
        def run(*inputs: Tensor) -> canary.Tensors:
            first, *others = case.reference(*inputs)
            first = first.clone(memory_format=torch.contiguous_format)
            for place, value in change.items():
                first.view(-1)[place] = value
            return (first, *others)

        return run

    return replace(case, bound=bound)


def test_a_wrong_number_anywhere_is_seen(case: canary.Case) -> None:
    assert canary.check(changed(case, {}), "any") == []
    for value in (float("nan"), 100.0):
        wrong, *_ = canary.check(changed(case, {-1: value}), "any")
        assert wrong.startswith("output 0 has a row error of")


@pytest.mark.parametrize("op", ["add_rms_norm", "merge_states", "rotary_into_cache", "tree_attention"])
def test_a_replay_starts_from_the_inputs_again(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def captured(graph: Any) -> Iterator[None]:
        with graph:
            yield
        graph.capture_end()

    stand_in(monkeypatch)
    monkeypatch.setattr(torch.cuda, "graph", captured)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    case = canary.CASES[op](canary.Sizes.of("small", CPU))
    before = canary.copies(case.inputs)
    replayed = canary.replay(case.reference, case.inputs)
    assert all(map(torch.equal, before, case.inputs))
    assert all(map(torch.equal, replayed, case.reference(*canary.copies(case.inputs))))


def test_other_bits_of_a_replay_are_seen() -> None:
    case = canary.CASES["swiglu"](canary.Sizes.of("small", CPU))
    launches = iter([1.0, 1.0 + 2**-11])
    drifting = replace(case, bound=lambda backend: lambda *inputs: (case.reference(*inputs)[0] * next(launches),))
    assert canary.check(drifting, "any") == ["a replay gives other bits than a launch"]
