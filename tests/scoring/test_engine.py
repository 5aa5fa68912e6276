"""Rounds, budgets, memory: what is computed, what is kept, what happens when memory runs out."""

import itertools
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.small_models import plain, score, tiny_runner

from gram_fast.scoring.engine import CPU_BUDGET, Engine, default_budget
from gram_fast.scoring.key_values import KeyValueStore
from gram_fast.text.encoded import EncodedRound

pytestmark = pytest.mark.usefixtures("one_thread")

HEAD = list(range(10, 40))
PROMPT, A, OTHER_A = [50, 51, 52], [60, 61, 62, 63], [70, 71]
RUNNER = tiny_runner("qwen3")


class CountingRunner:
    """Runs as RUNNER does and notes the ids of every pass; raises `error` in passes over `limit` tokens."""

    def __init__(self, limit: int = 10**9, error: Exception | None = None) -> None:
        self.device, self.processes, self.may_change = RUNNER.device, RUNNER.processes, False
        self.bytes_per_slot, self.bytes_per_token = RUNNER.bytes_per_slot, RUNNER.bytes_per_token
        self.bytes_per_state = 0
        self.passes: list[list[int]] = []
        self.limit, self.error = limit, error

    def forward(self, tree_pass, store):
        if tree_pass.num_tokens > self.limit:
            raise self.error
        self.passes.append(tree_pass.input_ids.tolist())
        return RUNNER.forward(tree_pass, store)


def test_every_distinct_token_is_computed_once():
    runner = CountingRunner()
    sequences = [[PROMPT, A, [80]], [PROMPT, A, [81, 82]], [PROMPT, OTHER_A, [80]]]
    score(Engine(runner, max_batch_tokens=1000), HEAD, [sequences])
    assert sorted(itertools.chain(*runner.passes)) == sorted([*HEAD, *PROMPT, *A, *OTHER_A, 80, 81, 82, 80])


def test_nodes_above_a_border_are_kept_across_rounds():
    runner = CountingRunner()
    rounds = [[[PROMPT, A, [80]]], [[PROMPT, A, [81, 82]]], [[PROMPT, OTHER_A, [83]], [PROMPT, A, [84]]]]
    score(Engine(runner, max_batch_tokens=1000), HEAD, rounds)
    assert runner.passes == [[*HEAD, *PROMPT, *A, 80], [81, 82], [84, *OTHER_A, 83]]


def test_the_head_is_kept_across_calls():
    runner = CountingRunner()
    engine = Engine(runner, max_batch_tokens=1000)
    score(engine, HEAD, [[[PROMPT, A, [80]]]])
    score(engine, HEAD, [[[PROMPT, A, [80]]]])
    assert runner.passes[1] == [*PROMPT, *A, 80]


def test_a_model_that_may_change_keeps_nothing_across_calls():
    runner = CountingRunner()
    runner.may_change = True
    engine = Engine(runner, max_batch_tokens=1000)
    for _ in range(2):
        score(engine, HEAD, [[[PROMPT, A, [80]]]])
    assert runner.passes == [[*HEAD, *PROMPT, *A, 80]] * 2


def test_another_head_is_computed():
    runner = CountingRunner()
    engine = Engine(runner, max_batch_tokens=1000)
    score(engine, HEAD, [[[PROMPT]]])
    other = [1, 2, 3]
    (logits,) = score(engine, other, [[[PROMPT]]])
    assert runner.passes[1] == [*other, *PROMPT]
    np.testing.assert_allclose(logits, plain(RUNNER, other, [[PROMPT]]), atol=1e-4)


@pytest.mark.parametrize("budget", [1, 7, 40])
def test_no_pass_is_over_the_budget_and_memory_is_bounded_by_it(budget):
    runner = CountingRunner()
    engine = Engine(runner, max_batch_tokens=budget)
    rng = np.random.default_rng(0)
    sequences = [[PROMPT, A, rng.integers(0, 90, 20).tolist()] for _ in range(30)]
    score(engine, HEAD, [sequences])
    assert max(map(len, runner.passes)) <= budget
    # Slots: the pass, and the longest path that later passes read. Not the 30 leaves.
    assert engine.num_slots <= budget + len([*HEAD, *PROMPT, *A]) + 20


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_halves_the_budget_and_goes_on(error):
    runner = CountingRunner(limit=30, error=error)
    engine = Engine(runner, max_batch_tokens=200)
    sequences = [[PROMPT, A, [k, k + 1, k + 2]] for k in range(20)]
    with pytest.warns(UserWarning, match="out of memory: passes of") as warned:
        (logits,) = score(engine, HEAD, [sequences])
    assert "200 tokens are halved to 100; pass max_batch_tokens=100" in str(warned[0].message)
    assert engine.budget == 25
    np.testing.assert_allclose(logits, plain(RUNNER, HEAD, sequences), atol=1e-4)


def test_where_warnings_are_errors_the_next_call_has_the_smaller_budget():
    runner = CountingRunner(limit=100, error=torch.OutOfMemoryError("CUDA out of memory"))
    engine = Engine(runner, max_batch_tokens=200)
    sequences = [[PROMPT, A, [k, k + 1, k + 2]] for k in range(40)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="passes of 200 tokens are halved to 100"):
            score(engine, HEAD, [sequences])
        (logits,) = score(engine, HEAD, [sequences])
    np.testing.assert_allclose(logits, plain(RUNNER, HEAD, sequences), atol=1e-4)


def test_memory_that_runs_out_in_a_copy_loses_nothing(monkeypatch):
    """The pass before it is done: its logits stay, and its tokens are counted."""
    engine, copies = Engine(RUNNER, max_batch_tokens=100), []

    def copy(store, rows):
        copies.append(rows)
        if len(copies) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(KeyValueStore, "copy", copy)
    sequences = [[PROMPT, A, [k]] for k in range(4)]
    with engine.request(np.array(HEAD, np.int32)) as request:
        segments = [np.array(ids, np.int32) for ids in (PROMPT, A, *([k] for k in range(4)))]
        request.add(EncodedRound(segments, np.array([[0, 1, 2 + k] for k in range(4)], np.int32), 2))
        with pytest.warns(UserWarning, match="passes of 100 tokens are halved to 50"):
            logits = request.score(more_rounds=False)
        stats = request.stats(0.5)
    np.testing.assert_allclose(logits, plain(RUNNER, HEAD, sequences), atol=1e-4)
    assert (stats.passes, stats.tokens_computed) == (1, len([*HEAD, *PROMPT, *A]) + 4)


def test_out_of_memory_at_the_smallest_budget_is_an_error():
    runner = CountingRunner(limit=0, error=torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="out of memory"):
        score(Engine(runner, max_batch_tokens=100), HEAD, [[[PROMPT]]])


def test_a_failed_request_leaves_the_engine_usable():
    runner = CountingRunner(limit=50, error=KeyError("a bug"))
    engine = Engine(runner, max_batch_tokens=100)
    sequences = [[PROMPT, list(range(k, k + 30))] for k in range(4)]
    with pytest.raises(KeyError):
        score(engine, HEAD, [sequences])
    runner.limit = 1000
    (logits,) = score(engine, HEAD, [sequences])
    np.testing.assert_allclose(logits, plain(RUNNER, HEAD, sequences), atol=1e-4)


def test_stats_count_what_was_computed_and_what_sharing_saved():
    engine = Engine(RUNNER, max_batch_tokens=1000)
    with engine.request(np.array(HEAD, np.int32)) as request:
        segments = [np.array(ids, np.int32) for ids in (PROMPT, A, [80], [81, 82])]
        request.add(EncodedRound(segments, np.array([[0, 1, 2], [0, 1, 3]], np.int32), 2))
        request.score(more_rounds=False)
        stats = request.stats(0.5)
    assert (stats.comparisons, stats.passes, stats.seconds) == (2, 1, 0.5)
    assert stats.tokens_unshared == 2 * len([*HEAD, *PROMPT, *A]) + 3
    assert stats.tokens_tree == stats.tokens_computed == len([*HEAD, *PROMPT, *A]) + 3


def test_requests_from_several_threads_take_turns():
    engine = Engine(RUNNER, max_batch_tokens=16)
    sequences = [[PROMPT, A, [k]] for k in range(5)]
    expected = plain(RUNNER, HEAD, sequences)
    wrong = []

    def work():
        for _ in range(3):
            (logits,) = score(engine, HEAD, [sequences])
            if np.abs(logits - expected).max() > 1e-4:
                wrong.append(logits)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


GIB = 2**30


# Bytes of a token of Qwen3's shapes in bfloat16: activations, and keys and values.
@pytest.mark.parametrize(
    ("device", "of_token", "of_slot", "free", "budget"),
    [
        ("cuda", 107008, 147456, 60 * GIB, 16878),
        ("cuda", 53760, 114688, 75 * GIB, 25497),
        ("cuda", 53760, 114688, 2 * GIB, 6374),
        ("cuda", 2000, 1000, 75 * GIB, 65536),
        ("cuda", 107008, 147456, 0, 16),
        ("cpu", 107008, 147456, 60 * GIB, CPU_BUDGET),
    ],
)
def test_passes_on_a_gpu_go_by_memory(device, of_token, of_slot, free, budget):
    runner = SimpleNamespace(device=torch.device(device), bytes_per_token=of_token, bytes_per_slot=of_slot)
    assert default_budget(runner, free) == budget


def test_a_store_has_a_new_layout_whenever_its_buffers_may_move():
    store, layouts = KeyValueStore(), []
    for change in (lambda: None, lambda: store.reserve(4), lambda: store.reserve(9), store.release):
        change()
        layouts.append(store.layout)
    assert len({id(layout) for layout in layouts}) == 4
    store.reserve(4)
    before = store.layout
    store.reserve(3)
    assert store.layout is before


def of_prompt(prompt, others=((80,), (81, 82))):
    """Pairs of two responses to a prompt."""
    return [[prompt, A, list(other)] for other in others]


def test_a_cache_spares_later_requests_what_they_share():
    runner = CountingRunner()
    engine = Engine(runner, max_batch_tokens=1000)
    engine.cache_limit = 500
    other = [1, 2, 3, 4]
    for prompt in (PROMPT, other, PROMPT):
        (logits,) = score(engine, HEAD, [of_prompt(prompt)])
        np.testing.assert_allclose(logits, plain(RUNNER, HEAD, of_prompt(prompt)), atol=1e-4)
    assert runner.passes[1:] == [[*other, *A, 80, 81, 82], [80, 81, 82]]


def test_a_cache_takes_no_more_memory_than_its_limit():
    engine = Engine(CountingRunner(), max_batch_tokens=50)
    engine.cache_limit = 100
    rng = np.random.default_rng(0)
    for _ in range(40):
        score(engine, HEAD, [of_prompt(rng.integers(0, 90, 15).tolist())])
    assert engine.num_slots <= 50 + 100 + len(HEAD) + 15 + len(A) + 2


def test_a_model_that_may_change_has_no_cache():
    runner = CountingRunner()
    runner.may_change = True
    engine = Engine(runner, max_batch_tokens=1000)
    engine.cache_limit = 500
    for _ in range(2):
        score(engine, HEAD, [[[PROMPT, A, [80]]]])
    assert runner.passes == [[*HEAD, *PROMPT, *A, 80]] * 2


def test_memory_that_runs_out_leaves_a_smaller_cache():
    runner = CountingRunner(limit=50, error=torch.OutOfMemoryError("CUDA out of memory"))
    engine = Engine(runner, max_batch_tokens=80)
    engine.cache_limit = 401
    sequences = [[PROMPT, A, [k, k + 1, k + 2]] for k in range(20)]
    with pytest.warns(UserWarning, match="80 tokens are halved to 40"):
        (logits,) = score(engine, HEAD, [sequences])
    assert engine.cache_limit == 201
    np.testing.assert_allclose(logits, plain(RUNNER, HEAD, sequences), atol=1e-4)


def test_small_requests_need_not_wait_for_the_end_of_a_large_one():
    """A large request, in rounds, gives way after each pass; all have the logits of plain forwards, and count them."""
    runner = CountingRunner()
    engine = Engine(runner, max_batch_tokens=64)
    engine.cache_limit = 256
    large = [[[PROMPT, [k, k + 1], [other, k]] for other in range(12)] for k in range(4)]
    ended, results, stats = [], {}, {}
    is_running, may_run = threading.Event(), threading.Event()
    forward = runner.forward
    runner.forward = lambda tree_pass, store: (is_running.set(), may_run.wait(30), forward(tree_pass, store))[2]

    def work(name, rounds):
        with engine.request(np.array(HEAD, np.int32)) as request:
            found = []
            for number, sequences in enumerate(rounds):
                for sequence in sequences:
                    row = np.arange(request.num_segments, request.num_segments + len(sequence), dtype=np.int32)
                    request.add(EncodedRound([np.array(ids, np.int32) for ids in sequence], row[None], 2))
                found.append(request.score(more_rounds=number + 1 < len(rounds)))
            results[name], stats[name] = found, request.stats(0.0)
        ended.append(name)

    threads = [threading.Thread(target=work, args=("large", large))]
    threads[0].start()
    assert is_running.wait(30)
    small = {f"small {k}": [of_prompt([k, k + 1, 3])] for k in range(5)}
    threads += [threading.Thread(target=work, args=item) for item in small.items()]
    for thread in threads[1:]:
        thread.start()
    while len(engine._turns._asked) < len(threads):
        assert all(thread.is_alive() for thread in threads)
    may_run.set()
    for thread in threads:
        thread.join(30)
    assert ended[-1] == "large"
    for name, rounds in {"large": large, **small}.items():
        for found, sequences in zip(results[name], rounds, strict=True):
            np.testing.assert_allclose(found, plain(RUNNER, HEAD, sequences), atol=1e-4)
        lengths = [len(HEAD) + sum(map(len, sequence)) for sequences in rounds for sequence in sequences]
        assert stats[name].comparisons == len(lengths)
        assert stats[name].tokens_unshared == sum(lengths)
    assert sum(of.tokens_computed for of in stats.values()) == sum(map(len, runner.passes))
