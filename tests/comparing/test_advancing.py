"""Calls that advance side by side: the answers, errors and bits of each alone, the small ones before the large."""

import asyncio
import json
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.small_models import tiny_judge, write_judge

from gram_fast import InputError, PairwiseJudge, to_thread
from gram_fast.comparing.next_tokens import next_token_logprobs
from gram_fast.comparing.replicas import Replicas
from gram_fast.scoring.clients import as_client

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ["red", "green", "blue", "sky", "sea", "dusk", "dawn", "leaf", "root", "stone", "river", "cloud", "salt"]


def texts(seed: int, count: int) -> list[str]:
    """Responses that differ."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 8))) + f" {number}" for number in range(count)]


def calls_of(judge: PairwiseJudge) -> dict[str, Any]:
    """Calls of all kinds, large and small, some with a prompt in common."""
    prompt = "Name a colour of the sky."
    calls: dict[str, Any] = {
        "all pairs": lambda: judge.rank(prompt, texts(0, 9)).scores,
        "bracket": lambda: judge.best_of_n(prompt, texts(1, 13)).scores,
        "sorted": lambda: judge.rank("Name a sea.", texts(2, 8), strategy="sort").order,
        "groups": lambda: list(judge.rewards([prompt, "Name a river."], [texts(3, 4), texts(4, 5)])),
        "matrix": lambda: judge.matrix(prompt, texts(0, 6), orders="ab").tolist(),
    }
    calls |= {f"pair {k}": lambda k=k: judge.compare(prompt, *texts(10 + k, 2)).p for k in range(8)}
    return calls


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint: of a model in memory, which may change, nothing is cached."""
    return str(write_judge(tmp_path_factory.mktemp("judge")))


@pytest.mark.parametrize("cache_bytes", [0, 10**6, 10**9])
def test_calls_that_advance_together_have_the_answers_of_each_alone(name: str, cache_bytes: int) -> None:
    alone = {what: call() for what, call in calls_of(tiny_judge(max_batch_tokens=300)).items()}
    judge = PairwiseJudge.from_pretrained(name, max_batch_tokens=300)
    judge.comparer.advance_together(cache_bytes)
    calls = list(calls_of(judge).items()) * 3
    random.Random(0).shuffle(calls)

    def work(number: int) -> tuple[str, Any]:
        what, call = calls[number]
        with as_client(number % 3):
            return what, call()

    with ThreadPoolExecutor(12) as pool:
        for what, found in pool.map(work, range(len(calls))):
            for ours, expected in zip(flat(found), flat(alone[what]), strict=True):
                assert ours == pytest.approx(expected, abs=1e-5)


def flat(value: Any) -> list[Any]:
    return [part for item in value for part in flat(item)] if isinstance(value, list | tuple) else [value]


def test_a_deterministic_judge_keeps_its_bits(name: str) -> None:
    alone = PairwiseJudge.from_pretrained(name, deterministic=True, max_batch_tokens=256)
    expected = [call() for call in calls_of(alone).values()]
    judge = PairwiseJudge.from_pretrained(name, deterministic=True, max_batch_tokens=256)
    judge.comparer.advance_together(10**8)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(call) for call in list(calls_of(judge).values()) * 2]
    assert [future.result() for future in futures] == expected * 2


def test_a_small_call_ends_before_a_large_one_that_came_first(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = PairwiseJudge.from_pretrained(name, max_batch_tokens=200)
    judge.comparer.advance_together(10**8)
    running, may_run, own, order = threading.Event(), threading.Event(), judge.comparer.runner.forward, []

    def forward(tree_pass: Any, store: Any) -> Any:
        running.set()
        assert may_run.wait(30)
        return own(tree_pass, store)

    monkeypatch.setattr(judge.comparer.runner, "forward", forward)

    def large() -> None:
        judge.rank("Name a sea.", texts(5, 24))
        order.append("large")

    def small() -> None:
        judge.compare("Name a river.", *texts(6, 2))
        order.append("small")

    threads = [threading.Thread(target=large)]
    threads[0].start()
    assert running.wait(30)
    threads += [threading.Thread(target=small) for _ in range(3)]
    for thread in threads[1:]:
        thread.start()
    while len(judge.comparer.engine._turns._asked) < len(threads):
        assert all(thread.is_alive() for thread in threads)
    may_run.set()
    for thread in threads:
        thread.join(60)
    assert order == ["small"] * 3 + ["large"]


def test_errors_reach_only_whose_they_are() -> None:
    judge = tiny_judge(max_batch_tokens=200, max_length=300)
    judge.comparer.advance_together(10**8)

    def work(number: int) -> Any:
        if number % 3:
            return judge.rank("Name a sea.", texts(number, 5)).scores
        with pytest.raises(InputError, match=r"responses\[1\]"):
            judge.rank("Name a sea.", [*texts(number, 1), "blue " * 500])
        return None

    with ThreadPoolExecutor(9) as pool:
        found = list(pool.map(work, range(18)))
    assert sum(scores is not None for scores in found) == 12


def test_a_call_that_is_given_up_ends_at_its_next_pass_and_leaves_the_cache(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = PairwiseJudge.from_pretrained(name, max_batch_tokens=200)
    judge.comparer.advance_together(10**8)
    pair = ("Name a river. " * 5, *texts(8, 2))
    first = judge.compare(*pair)
    running, may_run, own, passes = threading.Event(), threading.Event(), judge.comparer.runner.forward, []

    def forward(tree_pass: Any, store: Any) -> Any:
        passes.append(tree_pass.num_tokens)
        running.set()
        assert may_run.wait(30)
        return own(tree_pass, store)

    monkeypatch.setattr(judge.comparer.runner, "forward", forward)

    async def main() -> Any:
        large = asyncio.create_task(to_thread(judge.rank, "Name a sea.", texts(7, 40)))
        assert await asyncio.to_thread(running.wait, 30)
        large.cancel()
        await asyncio.wait([large])
        may_run.set()
        return await to_thread(judge.compare, *pair)

    again = asyncio.run(main())
    assert again.p == pytest.approx(first.p, abs=1e-6)
    assert len(passes) < 4  # of more than a hundred
    assert again.stats.tokens_computed < 0.5 * first.stats.tokens_computed


def test_replicas_advance_together_too() -> None:
    judge = PairwiseJudge(Replicas([tiny_judge(max_batch_tokens=300).comparer for _ in range(2)]))
    judge.comparer.advance_together(10**7)
    assert all(comparer.engine.cache_limit > 300 for comparer in judge.comparer.comparers)
    alone = {name: call() for name, call in calls_of(tiny_judge(max_batch_tokens=300)).items()}
    with ThreadPoolExecutor(6) as pool:
        futures = {name: pool.submit(call) for name, call in calls_of(judge).items()}
    for name, future in futures.items():
        for ours, expected in zip(flat(future.result()), flat(alone[name]), strict=True):
            assert ours == pytest.approx(expected, abs=1e-5)


def test_a_judge_that_is_divided_among_processes_does_not_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = tiny_judge()
    monkeypatch.setattr(type(judge.comparer.runner), "processes", SimpleNamespace(count=2))
    with pytest.raises(InputError, match="tensor_parallel: expected a judge that one process runs"):
        judge.comparer.advance_together(10**6)


def test_a_call_from_within_a_call_is_an_error_and_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = tiny_judge()
    judge.comparer.advance_together(10**6)
    own = judge.comparer.runner.forward

    def forward(tree_pass: Any, store: Any) -> Any:
        with pytest.raises(InputError, match="in the middle of a call"):
            judge.compare("Name a sea.", "a", "b")
        return own(tree_pass, store)

    monkeypatch.setattr(judge.comparer.runner, "forward", forward)
    assert 0 < judge.compare("Name a sea.", "c", "d").p < 1


def test_all_passes_run_in_one_thread_that_a_forked_child_has_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, threads = tiny_judge(), set()
    judge.comparer.advance_together(10**6)
    own = judge.comparer.runner.forward

    def forward(tree_pass: Any, store: Any) -> Any:
        threads.add(threading.current_thread().name)
        return own(tree_pass, store)

    monkeypatch.setattr(judge.comparer.runner, "forward", forward)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda k: judge.compare("Name a sea.", f"a {k}", "b").p, range(12)))
    assert len(threads) == 1
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(writing, json.dumps(judge.compare("Name a sea.", "a 3", "b").p).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        assert json.loads(answer.read()) == pytest.approx(found[3], abs=1e-6)
    os.waitpid(child, 0)


def test_requests_with_other_heads_leave_the_cache(name: str) -> None:
    """What has no instruction of the judge before it is read in the same tree."""
    judge = PairwiseJudge.from_pretrained(name)
    judge.comparer.advance_together(10**9)
    sequence = [np.arange(20, dtype=np.int32)]
    texts_of_call = ("Name a sea.", *texts(0, 2))
    p = judge.compare(*texts_of_call).p
    again = judge.compare(*texts_of_call)
    for _ in range(2):
        found, _ = next_token_logprobs(judge.comparer, [sequence], [3, 4])
        between = judge.compare(*texts_of_call)
        assert between.p == pytest.approx(p, abs=1e-6)
        assert between.stats.tokens_computed == again.stats.tokens_computed < between.stats.tokens_tree
        plain = PairwiseJudge.from_pretrained(name)
        expected, _ = next_token_logprobs(plain.comparer, [sequence], [3, 4])
        assert found == pytest.approx(expected, abs=1e-5)


def test_neither_a_long_head_nor_a_model_that_may_change_is_read_again_at_every_turn(name: str) -> None:
    """The one stays in the cache; calls of the other do not give way, as nothing of it stays."""
    for judge in (PairwiseJudge.from_pretrained(name, max_batch_tokens=64), tiny_judge(max_batch_tokens=200)):
        alone = judge.rank("Name a sea.", texts(0, 8)).stats.tokens_computed
        judge.comparer.advance_together(10**8)
        with ThreadPoolExecutor(2) as pool:
            found = [pool.submit(judge.rank, "Name a sea.", texts(seed, 8)) for seed in range(2)]
        assert max(future.result().stats.tokens_computed for future in found) < 1.5 * alone
