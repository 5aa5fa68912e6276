"""A judge in a forked child, while other threads of the parent use it: an answer or an error, never a hang."""

import gc
import itertools
import os
import threading

import pytest
import torch
from helpers.comparers import LengthComparer
from helpers.forks import exit_code_of_fork, held
from helpers.small_models import tiny_judge, write_judge

from gram_fast.comparing.replicas import Replicas
from gram_fast.errors import InputError
from gram_fast.judge import PairwiseJudge
from gram_fast.scoring import forks
from gram_fast.scoring.forks import check_forked_child

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    # Python warns of forks with threads: what this file tries.
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

PROMPT, RESPONSES = "Name a colour of the sky.", ["Blue.", "It is blue, mostly.", "Green?"]


@pytest.fixture(scope="module")
def judge() -> PairwiseJudge:
    return tiny_judge(max_batch_tokens=64)


def test_a_child_scores_while_another_thread_of_its_parent_has_the_engine(judge):
    expected = judge.rank(PROMPT, RESPONSES).scores

    def score() -> None:
        assert judge.rank(PROMPT, RESPONSES).scores == pytest.approx(expected, abs=1e-5)

    with held(judge.comparer.engine._turns._lock):
        assert exit_code_of_fork(score) == 0
    assert exit_code_of_fork(lambda: os._exit(exit_code_of_fork(score))) == 0  # a child's child
    assert judge.rank(PROMPT, RESPONSES).scores == pytest.approx(expected, abs=1e-5)


def test_children_forked_in_the_middle_of_calls_score(judge):
    expected, done = judge.rank(PROMPT, RESPONSES).scores, threading.Event()

    def work() -> None:
        for number in itertools.count():
            if done.is_set():
                return
            judge.rank(f"{PROMPT} {number}", [*RESPONSES, "Red, at dusk"], "sort")

    def score() -> None:
        assert judge.rank(PROMPT, RESPONSES).scores == pytest.approx(expected, abs=1e-5)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        assert [exit_code_of_fork(score) for _ in range(5)] == [0] * 5
    finally:
        done.set()
        for worker in workers:
            worker.join()


@pytest.mark.parametrize("runner", ["dense", "transformers"])
def test_a_child_of_a_parent_with_threads_has_threads_of_its_own(tmp_path, two_threads, runner):
    checkpoint = write_judge(tmp_path)
    judge = PairwiseJudge.from_pretrained(checkpoint, runner=runner)
    expected = judge.rank(PROMPT, RESPONSES).scores
    numbers = torch.randn(300, 300)
    numbers @ numbers  # several threads take part, for which torch in a forked child waits for ever

    def score() -> None:
        assert torch.get_num_threads() == 2
        for one in (judge, PairwiseJudge.from_pretrained(checkpoint, runner=runner)):
            assert one.rank(PROMPT, RESPONSES).scores == pytest.approx(expected, abs=1e-5)
        with pytest.raises(InputError, match=r"tokens, the limit is 4096"):
            judge.compare(PROMPT, "word " * 5000, "")

    assert exit_code_of_fork(score) == 0
    assert judge.rank(PROMPT, RESPONSES).scores == pytest.approx(expected, abs=1e-5)


def test_a_call_from_within_a_call_of_a_child_that_computes_in_a_thread_is_an_error(judge, two_threads):
    layer = judge.comparer.runner.model.model.layers[0]

    def score_within() -> None:
        hook = layer.register_forward_hook(lambda *_: judge.rank(PROMPT, RESPONSES))
        with pytest.raises(InputError, match=r"^the judge is in the middle of a call"):
            judge.rank(PROMPT, RESPONSES)
        hook.remove()
        judge.rank(PROMPT, RESPONSES)

    assert exit_code_of_fork(score_within) == 0


@pytest.mark.parametrize(
    ("device", "count", "found"), [("cuda:0", 1, "one on cuda:0"), ("cpu", 2, "one divided among 2 processes")]
)
def test_what_no_child_can_run_is_an_error(device, count, found):
    with pytest.raises(InputError, match=f"^this process was forked .* got {found}; start it by spawn$"):
        check_forked_child(torch.device(device), count)
    check_forked_child(torch.device("cpu"), 1)


def test_what_is_to_start_in_a_child_lives_no_longer_than_its_object():
    gc.collect()
    before = len(forks._starts)
    replicas = Replicas([LengthComparer()])
    assert len(forks._starts) == before + 1
    del replicas
    gc.collect()
    assert len(forks._starts) == before


def test_replicas_start_idle_in_a_child():
    replicas = Replicas([LengthComparer(), LengthComparer()])
    judge = PairwiseJudge(replicas)
    replicas.in_flight = [10**6, 0]

    def rank() -> None:
        assert replicas.in_flight == [0, 0]
        judge.rewards([PROMPT] * 3, [RESPONSES] * 3)
        assert replicas.in_flight == [0, 0]

    with held(replicas._lock):
        assert exit_code_of_fork(rank) == 0
    assert replicas.in_flight == [10**6, 0]
