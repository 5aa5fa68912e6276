"""Turns: who waits at the same time has one together; errors and interruptions meet only whose they are."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress

import pytest
from helpers.interruptions import interrupted_at, lines_of

from gram_fast.scoring.clients import as_client
from gram_fast.scoring.turns import RunApartError, Turns


class Asker:
    """Asks for a number twice as large as its own; `error` is raised when it is run. It takes so many `runs`."""

    def __init__(self, number: int, error: BaseException | None = None, runs: int = 1) -> None:
        self.number, self.error, self.runs = number, error, runs
        self.is_stopped = False
        self.answer: int | None = None


class Doubling:
    """What takes turns: notes who was run together, in which thread, and that no two run at once."""

    def __init__(self, most: int = 100, gives_way: bool = False) -> None:
        self.turns = Turns(
            self.run,
            self.end,
            lambda askers: len(askers) <= most,
            lambda asker: asker.is_stopped,
            lambda: gives_way,
        )
        self.alarm: Exception | None = None
        """Raised, once, by the first run of several."""
        self.runs: list[list[int]] = []
        self.threads: list[threading.Thread] = []
        self.ends = 0
        self.may_run = threading.Event()
        self.may_run.set()
        self._is_running = threading.Lock()

    def run(self, askers: Sequence[Asker]) -> Sequence[Asker]:
        assert self._is_running.acquire(blocking=False), "two run at once"
        try:
            self.runs.append([asker.number for asker in askers])
            self.threads.append(threading.current_thread())
            assert self.may_run.wait(30)
            if self.alarm is not None and len(askers) > 1:
                error, self.alarm = self.alarm, None
                raise error
            for asker in askers:
                if asker.error is not None:
                    raise asker.error
            for asker in askers:
                asker.runs -= 1
                if not asker.runs:
                    asker.answer, asker.runs = 2 * asker.number, 1
            return [asker for asker in askers if asker.answer is None]
        finally:
            self._is_running.release()

    def end(self) -> None:
        self.ends += 1

    def ask(self, asker: Asker) -> int | None:
        """One call of one round."""
        with self.call(asker) as ask:
            return ask()

    @contextmanager
    def call(self, asker: Asker) -> Iterator[Callable[[], int | None]]:
        """A call, which may ask several times."""

        with self.turns.place(asker) as wait:

            def ask() -> int | None:
                wait()
                return asker.answer

            yield ask

    @property
    def num_waiting(self) -> int:
        return len(self.turns._asked)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


@contextmanager
def threads(doubling: Doubling, askers: Sequence[Asker]) -> Iterator[list[Future]]:
    """Each asks from a thread of its own, in this order; the first runs alone while the others come, until the end."""
    doubling.may_run.clear()
    with ThreadPoolExecutor(len(askers)) as pool:
        futures = []
        for count, asker in enumerate(askers, start=1):
            futures.append(pool.submit(doubling.ask, asker))
            until(lambda count=count: doubling.num_waiting == count and bool(doubling.runs))
        yield futures
        doubling.may_run.set()


def test_a_lone_asker_runs_at_once_in_its_own_thread() -> None:
    doubling = Doubling()
    assert [doubling.ask(Asker(number)) for number in range(3)] == [0, 2, 4]
    assert (doubling.runs, doubling.ends) == ([[0], [1], [2]], 3)
    assert set(doubling.threads) == {threading.current_thread()}


def test_who_waits_goes_together_in_order_as_many_as_fit() -> None:
    doubling = Doubling(most=3)
    with threads(doubling, [Asker(number) for number in range(8)]) as futures:
        pass
    assert [future.result() for future in futures] == [2 * number for number in range(8)]
    assert doubling.runs == [[0], [1, 2, 3], [4, 5, 6], [7]]
    assert doubling.ends == 4


def test_an_error_reaches_only_whose_it_is() -> None:
    doubling = Doubling()
    errors = {2: KeyError("two"), 4: KeyError("four")}
    with threads(doubling, [Asker(number, errors.get(number)) for number in range(6)]) as futures:
        pass
    for number, future in enumerate(futures):
        if number in errors:
            assert future.exception() is errors[number]
        else:
            assert future.result() == 2 * number
    assert sorted(doubling.runs[2:]) == [[1], [2], [3], [4], [5]]  # one by one, after all together
    assert doubling.ask(Asker(7)) == 14


def test_an_error_that_is_no_asker_s_is_raised_in_the_thread_in_which_it_came() -> None:
    doubling = Doubling()
    alarm = doubling.alarm = TimeoutError("an alarm's handler raised it")
    with threads(doubling, [Asker(number) for number in range(4)]) as futures:
        pass
    runner = next(k for k, future in enumerate(futures) if future.exception() is alarm)
    assert doubling.threads[1] is doubling.threads[-1]  # whose it is runs last, when nobody else can have it
    assert [future.result() for k, future in enumerate(futures) if k != runner] == [
        2 * number for number in range(4) if number != runner
    ]
    assert doubling.ask(Asker(7)) == 14


def test_run_may_want_askers_apart_without_an_error_of_anybody() -> None:
    doubling = Doubling()
    doubling.alarm = RunApartError()
    with threads(doubling, [Asker(number) for number in range(4)]) as futures:
        pass
    assert [future.result() for future in futures] == [0, 2, 4, 6]


def test_who_is_stopped_in_line_waits_for_nobody() -> None:
    doubling = Doubling()
    stopped = Asker(1)
    with threads(doubling, [Asker(0), stopped, Asker(2)]) as futures:
        stopped.is_stopped = True
        assert futures[1].result(timeout=10) is None  # while the first still runs
        assert not futures[0].done()
    assert [futures[k].result() for k in (0, 2)] == [0, 4]
    assert doubling.runs == [[0], [2]]


def test_an_interruption_meets_one_thread_and_the_others_are_run_again() -> None:
    doubling = Doubling()
    interrupted = Asker(1)
    with threads(doubling, [Asker(0), interrupted, Asker(2), Asker(3)]) as futures:
        interrupted.error = KeyboardInterrupt()  # in the thread that runs, its own: it came first
    assert isinstance(futures[1].exception(), KeyboardInterrupt)
    assert [futures[k].result() for k in (0, 2, 3)] == [0, 4, 6]
    assert doubling.runs == [[0], [1, 2, 3], [2, 3]]


def test_a_turn_runs_when_each_of_it_has_asked_or_left() -> None:
    doubling = Doubling()
    first, second, third = Asker(1), Asker(2), Asker(3)
    doubling.may_run.clear()
    with ThreadPoolExecutor(4) as pool:
        blocker = pool.submit(doubling.ask, Asker(0))
        until(lambda: doubling.runs == [[0]])
        with doubling.call(first) as ask_first, ExitStack() as stack:
            ask_second = stack.enter_context(doubling.call(second))
            both = [pool.submit(ask_first), pool.submit(ask_second)]
            until(lambda: doubling.num_waiting == 3)
            doubling.may_run.set()
            assert [blocker.result(), *(future.result() for future in both)] == [0, 2, 4]
            again = pool.submit(ask_first)
            late = pool.submit(doubling.ask, third)
            until(lambda: doubling.num_waiting == 2)
            time.sleep(0.01)
            assert len(doubling.runs) == 2  # the second of the turn may ask again
            stack.close()
            assert again.result() == 2
            assert doubling.runs == [[0], [1, 2], [1]] or doubling.runs == [[0], [2, 1], [1]]
            assert not late.done()  # it waits for the next turn
        assert late.result() == 6
    assert doubling.ends == 3


@contextmanager
def taking(seconds: float, doubling: Doubling) -> Iterator[None]:
    """Each run takes so long, by a clock that is turned by hand."""
    clock = [0.0]
    run = doubling.turns._run

    def slow(askers: Sequence[Asker]) -> Collection[Asker]:
        clock[0] += seconds
        return run(askers)

    doubling.turns._run = slow
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gram_fast.scoring.turns.time.monotonic", lambda: clock[0])
        yield


def test_who_has_much_to_ask_gives_way_after_each_run() -> None:
    doubling = Doubling(gives_way=True, most=1)
    with (
        taking(1.0, doubling),
        threads(doubling, [Asker(0, runs=4), Asker(1), Asker(2, runs=2), Asker(3)]) as futures,
    ):
        pass
    assert [future.result() for future in futures] == [0, 2, 4, 6]
    assert doubling.runs == [[0], [1], [2], [3], [0], [2], [0], [0]]
    assert doubling.ends == 7  # the last two runs are one turn: nobody waits


def test_who_is_alone_gives_way_to_nobody() -> None:
    doubling = Doubling(gives_way=True)
    assert doubling.ask(Asker(3, runs=5)) == 6
    assert (doubling.runs, doubling.ends) == ([[3]] * 5, 1)


def test_without_giving_way_one_runs_to_its_end() -> None:
    doubling = Doubling(most=1)
    with threads(doubling, [Asker(0, runs=3), Asker(1)]):
        pass
    assert doubling.runs == [[0], [0], [0], [1]]


def test_between_two_rounds_others_come() -> None:
    """A call that asks again waits like a new one, and holds nobody up before it does."""
    doubling = Doubling(gives_way=True)
    with doubling.call(Asker(1)) as ask:
        assert ask() == 2
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(doubling.ask, Asker(5)).result(30) == 10
        assert ask() == 2
    assert doubling.runs == [[1], [5], [1]]


def test_a_large_call_has_its_share_however_many_come_and_go() -> None:
    """Three clients make small calls one after another, each new to the line; the large one is not always passed."""
    doubling, is_over = Doubling(gives_way=True, most=1), threading.Event()

    def small(number: int) -> None:
        while not is_over.is_set():
            doubling.ask(Asker(number))

    with taking(1.0, doubling), ThreadPoolExecutor(4) as pool:
        doubling.may_run.clear()
        large = pool.submit(doubling.ask, Asker(9, runs=10))
        until(lambda: bool(doubling.runs))
        for number in range(3):
            pool.submit(small, number)
        until(lambda: doubling.num_waiting == 4)
        doubling.may_run.set()
        try:
            assert large.result(30) == 18
        finally:
            is_over.set()
    last = max(turn for turn, (number,) in enumerate(doubling.runs) if number == 9)
    assert last < 80  # of ten turns, where each of four has about as many


def test_a_client_with_many_calls_has_no_more_than_one_with_few() -> None:
    doubling = Doubling(gives_way=True, most=1)
    numbers = iter(range(100))

    def of(client: str, doubling: Doubling, asker: Asker) -> int | None:
        with as_client(client):
            return doubling.ask(asker)

    doubling.may_run.clear()
    with taking(1.0, doubling), ThreadPoolExecutor(8) as pool:
        futures = []
        for client, runs in [("many", 3)] * 5 + [("few", 5)]:
            futures.append(pool.submit(of, client, doubling, Asker(next(numbers), runs=runs)))
            until(lambda: doubling.num_waiting == len(futures) and bool(doubling.runs))
        doubling.may_run.set()
        for future in futures:
            future.result()
    of_few = [turn for turn, (number,) in enumerate(doubling.runs) if number == 5]
    assert of_few == [1, 3, 5, 7, 9]  # every other turn, though five others wait


def test_a_client_owes_nothing_once_it_has_left() -> None:
    doubling = Doubling(gives_way=True, most=1)
    with taking(1.0, doubling):
        with as_client("first"):
            doubling.ask(Asker(0, runs=50))
        assert not doubling.turns._had


@pytest.mark.parametrize("gives_way", [False, True])
def test_many_threads_with_errors_and_losses_are_all_answered(gives_way: bool) -> None:
    """Two thousand calls of up to four rounds: none waits for ever, and each gets its own answers and errors."""
    doubling = Doubling(most=5, gives_way=gives_way)
    found: Counter[str] = Counter()

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(125):
            asker = Asker(rng.randrange(10**9))
            with doubling.call(asker) as ask:
                for _ in range(rng.randrange(5)):  # a call may end before it asks
                    asker.answer, asker.runs = None, rng.choice([1, 1, 1, 3])
                    asker.error = rng.choice([None] * 8 + [ValueError("its own")])
                    if asker.error is None:
                        assert ask() == 2 * asker.number
                        found["answers"] += 1
                    else:
                        with pytest.raises(ValueError, match="its own") as raised:
                            ask()
                        assert raised.value is asker.error
                        found["errors"] += 1
                        break

    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(work, seed) for seed in range(16)]
        done, late = wait(futures, timeout=60)
    assert not late
    for future in done:
        future.result()
    assert found["answers"] > 1000
    assert found["errors"] > 100
    assert max(map(len, doubling.runs)) > 1
    assert not doubling.num_waiting


@pytest.mark.parametrize("gives_way", [False, True])
def test_a_call_that_is_interrupted_at_any_line_holds_nobody_up(gives_way: bool) -> None:
    doubling, is_over = Doubling(gives_way=gives_way), threading.Event()
    lines = lines_of(lambda: doubling.ask(Asker(0)))
    assert lines > 30

    def work(seed: int) -> int:
        count = 0
        while not is_over.is_set():
            with doubling.call(Asker(seed)) as ask:
                assert [ask(), ask()] == [2 * seed] * 2
            count += 1
        return count

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(work, seed) for seed in range(3)]
        for line in range(lines + 10):
            with suppress(KeyboardInterrupt):
                interrupted_at(line, lambda: doubling.ask(Asker(9)))
        is_over.set()
        _, late = wait(futures, timeout=30)
        assert not late
        assert sum(future.result() for future in futures) > lines
    assert doubling.ask(Asker(4)) == 8
