"""Passes that follow each other without a wait: growing buffers, threads, too little memory change no bit of them.

On a CPU, which waits for every operation, these tests are small and show that they themselves are right.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.dense import dense_runner
from helpers.ops import on_each_device
from helpers.small_models import VOCAB, score, tiny_model

from gram_fast.models.dense.runner import DenseRunner
from gram_fast.scoring.engine import Engine

pytestmark = pytest.mark.usefixtures("one_thread")

Sequences = list[list[list[int]]]
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "initializer_range": 0.09,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("in_a_row")
    model = tiny_model("qwen3", **SHAPE)
    model.save_pretrained(folder)
    return folder, model.config


MakeRunner = Callable[..., DenseRunner]


@pytest.fixture
def make(checkpoint: tuple[Path, Any], device: str) -> MakeRunner:
    return lambda dtype=torch.bfloat16: dense_runner(*checkpoint, dtype, device=device)


class Before:
    """A runner that does something before each pass."""

    def __init__(self, runner: DenseRunner, act: Callable[[], object]) -> None:
        self._runner, self._act = runner, act

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def forward(self, *arguments: Any) -> Any:
        self._act()
        return self._runner.forward(*arguments)


def launching(runner: DenseRunner) -> Before:
    """The runner without a graph: the first pass of a bucket is launched, and to it every pass is the first."""
    return Before(runner, lambda: runner._graphs and runner._graphs._graphs.clear())


def waiting(runner: DenseRunner, device: str) -> Before:
    return Before(runner, lambda: device == "cuda" and torch.cuda.synchronize())


def two_rounds(seed: int, prompt: int, count: int, longest: int) -> list[Sequences]:
    """Pairs of responses to one prompt, then some of them behind other last tokens, so that keys are kept."""
    rng = np.random.default_rng(seed)
    first, *others = (rng.integers(0, VOCAB, n).tolist() for n in (prompt, *rng.integers(1, longest, count)))
    pairs = [[first, others[a], others[b], [a]] for a in range(count) for b in range(max(0, a - 2), a)]
    return [pairs, [[*pair, [5]] for pair in pairs[::3]]]


def ask(engine: Engine, rounds: list[Sequences]) -> list[np.ndarray]:
    """Logits of each round. There is no head that is kept between calls: each call computes the same passes."""
    return score(engine, [], rounds)


def same_bits(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return all(np.array_equal(*of_round) for of_round in zip(found, expected, strict=True))


def sizes(device: str) -> list[tuple[int, int, int]]:
    """Tokens of a prompt, responses and the longest: calls of one small pass and of many."""
    return [(30, 3, 20), (301, 24, 150), (90, 4, 30)] if device == "cuda" else [(30, 3, 9), (61, 5, 30), (9, 4, 9)]


@on_each_device
def test_passes_that_are_not_waited_for_have_the_bits_of_those_that_are(device: str, make: MakeRunner) -> None:
    budget = 1024 if device == "cuda" else 100
    patient, hasty = Engine(waiting(make(), device), budget), Engine(make(), budget)
    for seed in range(8 if device == "cuda" else 2):
        for size in sizes(device):
            rounds = two_rounds(seed, *size)
            expected = ask(patient, rounds)
            if device == "cuda":
                torch.cuda._sleep(10**8)  # some 50 ms, in which the host launches all passes of the first round
            assert same_bits(ask(hasty, rounds), expected)


@on_each_device
def test_keys_values_and_positions_grow_between_passes(device: str, make: MakeRunner) -> None:
    """Prompts of more tokens than a pass and than the table of positions has, between passes that are replayed."""
    runner, budget = make(), 512 if device == "cuda" else 128
    replaying, plain = Engine(runner, budget), Engine(launching(make()), budget)
    slots = []
    for seed, prompt in enumerate([30, 30, 30, 1200, 30, 30, 2500, 30, 30, 40, 30]):
        rounds = two_rounds(seed, prompt, 3, 20)
        assert same_bits(ask(replaying, rounds), ask(plain, rounds))
        slots.append(replaying.num_slots)
    assert slots[0] < slots[3] < slots[6]
    if device == "cuda":
        assert any(runner._graphs._graphs.values())


@on_each_device
def test_two_judges_of_one_device_in_two_threads(device: str, make: MakeRunner) -> None:
    """Each captures, allocates and launches while the other does."""
    budget = 512 if device == "cuda" else 100
    asked = [two_rounds(seed, *size) for seed in range(4 if device == "cuda" else 1) for size in sizes(device)]
    plain = Engine(launching(make()), budget)
    expected = [ask(plain, rounds) for rounds in asked]

    def work(runner: DenseRunner) -> bool:
        # A new engine has other buffers: everything is captured anew.
        engines = [engine for _ in range(3) for engine in [Engine(runner, budget)] * 2]
        return all(
            same_bits(ask(engine, rounds), right)
            for engine in engines
            for rounds, right in zip(asked, expected, strict=True)
        )

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, (make(), make()))) == [True, True]


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_memory_of_a_gpu_that_runs_out(device: str, make: MakeRunner) -> None:
    """The budget is halved until a pass fits; what is left of the memory would do for some 4,000 tokens."""
    runner, rounds = make(torch.float32), two_rounds(0, 301, 40, 260)
    expected = ask(Engine(runner, 8192), rounds)
    engine = Engine(runner, 8192)
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + 100 * 2**20
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.mem_get_info()[1])
    try:
        with pytest.warns(UserWarning, match="out of memory: passes of 8192 tokens are halved to 4096"):
            found = ask(engine, rounds)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert engine.budget < 8192
    for logits, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(logits, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_memory_that_runs_out_in_a_capture(device: str, make: MakeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, plain = make(), Engine(launching(make()), 512)
    forward = runner.model.forward

    def fail_in_a_capture(*arguments: Any) -> torch.Tensor:
        logits_L2 = forward(*arguments)
        if torch.cuda.is_current_stream_capturing():
            torch.empty(2**50, dtype=torch.uint8, device=device)
        return logits_L2

    monkeypatch.setattr(runner.model, "forward", fail_in_a_capture)
    for seed in range(3):
        rounds, engine = two_rounds(seed, 30, 3, 20), Engine(runner, 512)
        expected = ask(plain, rounds)
        with pytest.warns(UserWarning, match="tokens are launched kernel by kernel.*CUDA out of memory"):
            found = [ask(engine, rounds) for _ in range(3)]
        assert all(same_bits(logits, expected) for logits in found)
        assert engine.budget == 512
