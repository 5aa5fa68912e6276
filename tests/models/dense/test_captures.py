"""Captured passes: when one is captured and when anew, memory that runs out, other threads. On a CPU with stand-ins.

Numbers are whole, so that every device adds them up to the same.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.graphs import stand_in
from helpers.ops import CPU, on_each_device
from torch import Tensor

from gram_fast.kernels.tables import uploaded
from gram_fast.models.dense.attention import PassTables, TableSizes, TreeAttention
from gram_fast.models.dense.graphs import Bucket, PassGraphs
from gram_fast.scoring.tree import TreePass

pytestmark = pytest.mark.usefixtures("one_thread")

IDS, WIDTH, SLOTS = 50, 8, 300


class Model:
    """Stands for a runner: reads its weight, a table of positions and the pass, writes slots, reads all slots."""

    def __init__(self, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randint(0, 9, (IDS, WIDTH), generator=generator).double().to(device)
        self.launches = 0
        self.in_capture: Callable[[], object] = lambda: None
        self.grow(SLOTS)

    def grow(self, num_slots: int) -> None:
        """Moves what may move, and spoils what lay there before."""
        for old in getattr(self, "moving", ()):
            old.fill_(float("nan"))
        self.slots = self.weight.new_full((num_slots, WIDTH), 3.0)
        self.positions = torch.arange(num_slots * WIDTH, device=self.weight.device).double().view(-1, WIDTH)
        self.moving, self.addresses = (self.slots, self.positions), object()

    def launch(self, tables: PassTables[Any]) -> Tensor:
        self.launches += 1
        x_TD = self.weight[tables.input_ids_T] + self.positions[tables.position_ids_T]
        self.slots[: len(x_TD)] = x_TD
        if torch.cuda.is_current_stream_capturing():
            self.in_capture()
        of_tables = sum(table.sum() for table in tables.attention.tensors)
        return ((x_TD[tables.leaf_rows_L] + self.slots.sum(0)) * of_tables)[:, :2].float()


def made_pass(number: int, num_tokens: int) -> tuple[Bucket, PassTables[Any]]:
    """A pass with ids, positions and leaves of its own, and the bucket of its length."""
    generator = torch.Generator().manual_seed(number)
    ids, positions = (torch.randint(0, IDS, (num_tokens,), generator=generator) for _ in range(2))
    rows = torch.randint(0, num_tokens, (3,), generator=generator)
    tree_pass = replace(TreePass.of_sequence(ids), position_ids=positions, leaf_rows=rows)
    attention = TreeAttention("triton", "triton", group=2, scale=1.0, windows=[None] * 2)
    return Bucket(num_tokens, 3, TableSizes()), attention.tables(tree_pass, CPU)


def expected(model: Model, tables: PassTables[Any]) -> Tensor:
    """The logits of a pass by a model that has only seen passes as long as this."""
    on_cpu = Model("cpu")
    on_cpu.grow(len(model.slots))
    return on_cpu.launch(tables)


@pytest.fixture
def model(device: str, monkeypatch: pytest.MonkeyPatch) -> Model:
    if device == "cpu":
        stand_in(monkeypatch)
    return Model(device)


def run(graphs: PassGraphs, model: Model, number: int, num_tokens: int = 20) -> tuple[Tensor, Tensor]:
    """Logits of a pass, on the device and not waited for, and those expected."""
    bucket, tables = made_pass(number, num_tokens)
    logits = graphs.run(bucket, tables, model.addresses, model.launch)
    return logits, expected(model, tables)


def check(graphs: PassGraphs, model: Model, numbers: range) -> None:
    """Passes of numbers, all launched before the first logits are read."""
    found = [run(graphs, model, number) for number in numbers]
    for logits, right in found:
        assert torch.equal(logits.cpu(), right)


@on_each_device
def test_the_second_pass_of_a_bucket_is_captured_and_later_ones_are_replayed(device: str, model: Model) -> None:
    graphs = PassGraphs(torch.device(device))
    check(graphs, model, range(1))
    assert model.launches == 1
    check(graphs, model, range(1, 2))
    assert model.launches == 3  # on the stream of captures, and in the capture
    check(graphs, model, range(2, 9))
    assert model.launches == 3


@on_each_device
def test_buckets_take_turns(device: str, model: Model) -> None:
    graphs = PassGraphs(torch.device(device))
    lengths = [20, 33, 20, 20, 33, 20, 33, 33, 20]
    for number, num_tokens in enumerate(lengths):
        model.slots.fill_(3.0)  # the shorter passes read what the longer ones wrote
        logits, right = run(graphs, model, number, num_tokens)
        assert torch.equal(logits.cpu(), right)
    assert model.launches == 6


@on_each_device
def test_what_has_moved_is_captured_anew(device: str, model: Model) -> None:
    graphs = PassGraphs(torch.device(device))
    for number, num_slots in enumerate([SLOTS, SLOTS + 100, SLOTS, 2 * SLOTS]):
        model.grow(num_slots)
        check(graphs, model, range(7 * number, 7 * number + 7))
        assert model.launches == 3 * (number + 1)


def fail_to_allocate(device: str) -> None:
    """Memory runs out: on a GPU of torch's allocator itself."""
    if device == "cuda":
        torch.empty(2**50, dtype=torch.uint8, device=device)
    raise torch.OutOfMemoryError("CUDA out of memory")


def check_nothing_is_captured(device: str, stream: object) -> None:
    """The stream is the current one, and what is launched runs."""
    assert torch.cuda.current_stream() == stream
    assert not torch.cuda.is_current_stream_capturing()
    assert torch.arange(9, device=device).sum().item() == 36


@on_each_device
def test_memory_that_runs_out_in_a_capture(device: str, model: Model) -> None:
    graphs, stream = PassGraphs(torch.device(device)), torch.cuda.current_stream()
    check(graphs, model, range(1))
    model.in_capture = lambda: fail_to_allocate(device)
    with pytest.warns(UserWarning, match=r"passes of 20 tokens are launched kernel by kernel.*CUDA out of memory"):
        check(graphs, model, range(1, 2))
    check_nothing_is_captured(device, stream)
    assert model.launches == 4  # the last one is what counts
    check(graphs, model, range(2, 5))
    assert model.launches == 7  # it is not tried again
    model.in_capture = lambda: None
    model.grow(SLOTS)
    check(graphs, model, range(5, 9))
    assert model.launches == 10


@on_each_device
def test_a_capture_that_cannot_be_ended(device: str, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph takes memory of the driver, when the capture has ended and torch has not yet set the stream back."""
    graphs, stream = PassGraphs(torch.device(device)), torch.cuda.current_stream()

    class Endless(torch.cuda.CUDAGraph):
        def capture_end(self) -> None:
            super().capture_end()
            raise RuntimeError("CUDA error: out of memory")

    check(graphs, model, range(1))
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "CUDAGraph", Endless)
        with pytest.warns(UserWarning, match="CUDA error: out of memory"):
            check(graphs, model, range(1, 3))
    check_nothing_is_captured(device, stream)
    model.grow(SLOTS)
    check(graphs, model, range(3, 9))
    assert model.launches == 5 + 3


@on_each_device
def test_what_fails_without_a_graph_too_is_raised(device: str, model: Model) -> None:
    graphs = PassGraphs(torch.device(device))
    check(graphs, model, range(1))
    bucket, tables = made_pass(1, 20)

    def launch(tables: PassTables[Any]) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="kernel by kernel"):
        graphs.run(bucket, tables, model.addresses, launch)
    check_nothing_is_captured(device, torch.cuda.current_stream())


@on_each_device
def test_another_thread_allocates_launches_and_waits_during_a_capture(device: str, model: Model) -> None:
    graphs = PassGraphs(torch.device(device))
    check(graphs, model, range(1))
    is_capturing, is_done = threading.Event(), threading.Event()

    def work() -> int:
        try:
            assert is_capturing.wait(60)
            numbers = uploaded(torch.arange(2**20), torch.device(device))
            ones = torch.ones(64, 64, device=device)
            # A thread's first product makes a handle of cuBLAS.
            return int(numbers.sum().cpu()) + int((ones @ ones).sum())
        finally:
            is_done.set()

    def wait_for_work() -> None:
        is_capturing.set()
        assert is_done.wait(60)

    model.in_capture = wait_for_work
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(work)
        check(graphs, model, range(1, 5))
        assert other.result() == 2**19 * (2**20 - 1) + 64**3


@on_each_device
def test_captures_of_two_threads_take_turns(device: str, model: Model) -> None:
    def work(own: Model) -> int:
        graphs = PassGraphs(torch.device(device))
        own.in_capture = lambda: time.sleep(0.01)
        for number in range(5):
            own.grow(SLOTS + number)
            check(graphs, own, range(4))
        return own.launches

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, (model, Model(device)))) == [15, 15]
