"""Comparers that share the groups of a call, here without a model: one answer, errors, threads that end."""

import threading
import time
from contextlib import contextmanager

import pytest
from helpers.comparers import LengthComparer, own_threads

from gram_fast.comparing.replicas import Replicas
from gram_fast.ranking.play import play
from gram_fast.ranking.tournament import STRATEGIES
from gram_fast.text.group import Group


class Failing(LengthComparer):
    """Raises `error` when a session is closed."""

    error = ValueError("on closing")

    @contextmanager
    def open(self, *given, **named):
        with super().open(*given, **named) as session:
            yield session
        raise self.error


TEXTS = [Group.of(f"prompt {g}", ["x" * (1 + (5 * k + g) % 13) for k in range(2 + g % 4)]) for g in range(12)]


@pytest.mark.parametrize("at_once", [1, 2, None])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_comparers_that_answer_in_parts_answer_as_one(strategy, at_once):
    comparers = [LengthComparer(at_once), LengthComparer(1), LengthComparer()]
    outcome = play(TEXTS, STRATEGIES[strategy], Replicas(comparers), "both", 3)
    expected = play(TEXTS, STRATEGIES[strategy], LengthComparer(), "both", 3)
    assert (outcome.leaders, outcome.comparisons) == (expected.leaders, expected.comparisons)
    assert outcome.stats.comparisons == expected.stats.comparisons
    opened = [comparer.opened[0] for comparer in comparers]
    assert sorted(group.prompt for call in opened for group in call["groups"]) == sorted(g.prompt for g in TEXTS)
    for call in opened:
        assert call["num_pairs"] == [STRATEGIES[strategy].num_pairs(len(group.texts)) for group in call["groups"]]
    assert not any(comparer.is_open for comparer in comparers)


@pytest.mark.parametrize("read_stats", [True, False])
def test_an_error_behind_the_last_answer_is_not_lost(read_stats):
    replicas = Replicas([LengthComparer(), Failing()])
    pairs = {g: [(0, 1)] for g in range(len(TEXTS))}

    def call():
        with replicas.open(TEXTS, "ab", num_pairs=[1] * len(TEXTS), has_one_round=True) as session:
            answered = set(session.compare(pairs))
            while len(answered) < len(TEXTS):
                answered |= set(session.compare({}))
            if read_stats:
                assert session.stats is None

    with pytest.raises(ValueError, match="on closing") as caught:
        call()
    assert caught.value is Failing.error
    assert replicas.in_flight == [0, 0]
    assert not own_threads()


def test_a_thread_that_cannot_start_leaves_none_behind(monkeypatch):
    start, started = threading.Thread.start, []

    def fail_the_second(thread):
        started.append(thread)
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_the_second)
    comparers = [LengthComparer(), LengthComparer(), LengthComparer()]
    replicas = Replicas(comparers)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        play(TEXTS, STRATEGIES["knockout"], replicas)
    started[0].join(5)
    assert not own_threads()
    assert replicas.in_flight == [0, 0, 0]


def test_an_interruption_of_the_caller_ends_the_call():
    comparers = [LengthComparer(1), LengthComparer(1)]
    replicas = Replicas(comparers)

    def call():
        with replicas.open(TEXTS, "ab", num_pairs=[1] * len(TEXTS), has_one_round=True) as session:
            session.compare({g: [(0, 1)] for g in range(len(TEXTS))})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call()
    assert not own_threads()
    assert not any(comparer.is_open for comparer in comparers)
    assert replicas.in_flight == [0, 0]


def test_an_error_in_the_callers_own_code_comes_before_one_of_a_replica():
    with (
        pytest.raises(KeyError, match="own"),
        Replicas([Failing(), Failing()]).open(TEXTS, "ab", num_pairs=[1] * len(TEXTS), has_one_round=True),
    ):
        raise KeyError("own")


def test_a_replica_is_free_when_its_share_is_answered():
    # A group of eight goes to the first replica, one of two to the second, which then waits for no other.
    groups = [Group.of("p", ["x" * k for k in range(1, 9)]), Group.of("q", ["x", "xx"])]
    first, second = LengthComparer(), LengthComparer()
    with Replicas([first, second]).open(groups, "ab", num_pairs=[7, 1], has_one_round=False) as session:
        rounds, answered = {0: [(0, 1)], 1: [(0, 1)]}, set()
        while 1 not in answered:
            answers = session.compare(rounds)
            answered |= set(answers)
            rounds = {0: [(0, 1)]} if 0 in answers else {}
        session.compare(rounds)
        for _ in range(1000):
            if not second.is_open:
                break
            time.sleep(0.01)
        assert first.is_open
        assert not second.is_open
