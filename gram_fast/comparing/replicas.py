"""Spreads groups over several comparers of one judge, each on its own device (data parallelism)."""

import heapq
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import Context
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from gram_fast.comparing.comparer import Answers, Comparer, Pairs, Reload, Rounds, Session
from gram_fast.comparing.costs import costs
from gram_fast.comparing.modes import Mode, in_mode
from gram_fast.comparing.orders import Orders
from gram_fast.errors import InputError
from gram_fast.results import Stats, total_stats
from gram_fast.scoring.calls import Calls
from gram_fast.scoring.forks import in_forked_children
from gram_fast.scoring.stops import stopped_by
from gram_fast.text.group import Group

# Groups of one prompt stay together up to this part of an even share; beyond it, balance saves more than sharing.
_PART = 0.25

AnyComparer = TypeVar("AnyComparer", bound=Comparer)


class Replicas(Generic[AnyComparer]):
    """Comparer that spreads groups over comparers with equal results, which may share a (read-only) tokenizer."""

    def __init__(self, comparers: Sequence[AnyComparer], reload: Reload | None = None) -> None:
        """`comparers`: one or more. `reload`: loads them all anew; without it, they are pickled one by one."""
        self.comparers = tuple(comparers)
        self._reload = reload
        self.in_flight: list[int]
        """Estimated cost of the running calls' groups, by replica."""
        self._lock: threading.Lock  # guards in_flight
        self._calls: Calls
        self._start_idle()
        in_forked_children(self._start_idle)  # calls of other threads do not run there

    def _start_idle(self) -> None:
        self.in_flight = [0] * len(self.comparers)
        self._lock = threading.Lock()
        self._calls = Calls()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.comparers)}: {', '.join(map(repr, self.comparers))})"

    def __reduce__(self) -> tuple[Callable[..., Comparer], tuple[Any, ...]]:
        return (type(self), (self.comparers,)) if self._reload is None else (self._reload, ())

    def __copy__(self) -> "Replicas[AnyComparer]":
        """The comparer itself: what `__reduce__` makes would be loaded anew."""
        return self

    def __deepcopy__(self, memo: object) -> "Replicas[AnyComparer]":
        """The comparer itself, as of one device."""
        return self

    @property
    def max_length(self) -> int:
        """Most tokens of one presentation, the same for all comparers."""
        return self.comparers[0].max_length

    @property
    def tokens_at_once(self) -> int:
        """Tokens that fill all devices once: the sum over the comparers."""
        return sum(comparer.tokens_at_once for comparer in self.comparers)

    @property
    def verifies(self) -> bool:
        """Whether single responses are read rather than pairs, the same for all comparers."""
        return getattr(self.comparers[0], "verifies", False)

    def flags(self, text: str) -> tuple[str, ...]:
        """Finds what `text` contains that may pass for part of the judge's prompt, the same for all comparers."""
        return self.comparers[0].flags(text)

    @property
    def markers(self) -> tuple[str, ...]:
        """What `flags` finds, beside marks of chats, the same for all comparers."""
        return getattr(self.comparers[0], "markers", ())

    def advance_together(self, cache_bytes: int) -> None:
        """Has calls advance side by side on every comparer, each of which may keep so many bytes."""
        for comparer in self.comparers:
            if (advance := getattr(comparer, "advance_together", None)) is not None:
                advance(cache_bytes)

    def in_mode(self, mode: Mode) -> Comparer:
        """The same comparers, reading pairs in a mode; what they have to do is counted together."""
        other: Replicas[Any] = object.__new__(type(self))
        vars(other).update(vars(self), comparers=tuple(in_mode(comparer, mode) for comparer in self.comparers))
        return other

    def unfit(self, groups: Sequence[Group], pairs: Sequence[Pairs], orders: Orders) -> dict[str, str]:
        """Finds what cannot be compared, the same for all comparers; nothing where they do not know beforehand."""
        find = getattr(self.comparers[0], "unfit", None)
        return find(groups, pairs, orders) if find else {}

    @contextmanager
    def open(
        self, groups: Sequence[Group], orders: Orders, *, num_pairs: Sequence[int], has_one_round: bool
    ) -> Iterator[Session]:
        """Opens a call on each replica that gets a share of the groups; shares do not wait for each other's rounds.

        A group is never divided: a single group goes to the replica that has least to do. Counts of `stats` are sums
        over the replicas, each of which computes the judge's instruction itself; `seconds` is the wall time of all.
        Reading `stats` ends the call.

        An error of one replica is raised when the others have finished their round; of several errors, that of the
        replica with the first group, or one of all where they are of some groups alone. An interruption ends every
        share before its next pass. Raises InputError from within another call of the replicas, whose shares wait for
        the thread that such a call would wait in.
        """
        with self._calls.open(), self._shared_out(groups, costs(groups, num_pairs)) as shares:
            if len(shares) < 2:
                # In the caller's thread: no thread to start, and an interruption ends the call at once.
                comparer = self.comparers[next(iter(shares), 0)]
                with comparer.open(groups, orders, num_pairs=num_pairs, has_one_round=has_one_round) as session:
                    yield session
                return

            def open_share(comparer: Comparer, numbers: Sequence[int]) -> AbstractContextManager[Session]:
                share, pairs = [groups[g] for g in numbers], [num_pairs[g] for g in numbers]
                return comparer.open(share, orders, num_pairs=pairs, has_one_round=has_one_round)

            session = _SpreadSession(
                [_Share(numbers, partial(open_share, self.comparers[r], numbers)) for r, numbers in shares.items()]
            )
            try:
                session.start()
                yield session
            except BaseException:
                session.stop()
                raise
            finally:
                session.end()
            session.check()

    @contextmanager
    def _shared_out(self, groups: Sequence[Group], costs: Sequence[int]) -> Iterator[dict[int, list[int]]]:
        """Assigns groups to replicas -> numbers of groups by replica, the replica with group 0 first.

        The shares' costs count in `in_flight` until the end of the context.
        """
        units = together([group.prompt for group in groups], costs, len(self.comparers))
        unit_costs = [sum(costs[g] for g in unit) for unit in units]
        with self._lock:
            replica_of = spread(unit_costs, self.in_flight)
            for replica, cost in zip(replica_of, unit_costs, strict=True):
                self.in_flight[replica] += cost
        shares: dict[int, list[int]] = {}
        for g, replica in sorted((g, r) for unit, r in zip(units, replica_of, strict=True) for g in unit):
            shares.setdefault(replica, []).append(g)
        try:
            yield shares
        finally:
            with self._lock:
                for replica, cost in zip(replica_of, unit_costs, strict=True):
                    self.in_flight[replica] -= cost


class _Share:
    """One replica's part of a call: its groups, compared in a thread."""

    def __init__(self, numbers: Sequence[int], open_session: Callable[[], AbstractContextManager[Session]]) -> None:
        """`numbers`: of the groups in the call. `open_session` is called in the thread, as it may wait for a device."""
        self.numbers = numbers
        self._place_of = {g: place for place, g in enumerate(numbers)}
        self.num_waiting = 0
        """Number of groups whose round is not answered."""
        self.stats: Stats | None = None
        """Cost of the share, set at its end."""
        self.error: BaseException | None = None
        self._open_session = open_session
        self._rounds: SimpleQueue[Rounds | None] = SimpleQueue()  # None ends the share
        self._thread: threading.Thread | None = None

    def start(self, answered: "SimpleQueue[tuple[_Share, Answers]]", context: Context) -> None:
        """Starts the thread, which queues answers by number of the group in the call, and empty ones on an error.

        `context`: of its own, for the thread to run in.
        """
        thread = threading.Thread(target=context.run, args=(self._work, answered), name="gram_fast")
        thread.start()
        self._thread = thread  # one that could not start cannot be joined

    def ask(self, rounds: Rounds) -> None:
        """Queues new rounds, by number of the group in the call."""
        self.num_waiting += len(rounds)
        self._rounds.put({self._place_of[g]: pairs for g, pairs in rounds.items()})

    def finish(self) -> None:
        """Ends the share after its queued rounds; closing its session frees the device for other calls."""
        self._rounds.put(None)

    def join(self) -> None:
        """Waits for the end of the thread."""
        if self._thread is not None:
            self._thread.join()

    def _work(self, answered: "SimpleQueue[tuple[_Share, Answers]]") -> None:
        try:
            with self._open_session() as session:
                num_waiting = 0
                while (rounds := self._next_rounds(num_waiting)) is not None:
                    answers = session.compare(rounds)
                    num_waiting += len(rounds) - len(answers)
                    answered.put((self, {self.numbers[place]: found for place, found in answers.items()}))
                self.stats = session.stats
        except BaseException as error:  # `check` raises it in the caller's thread
            self.error = error
            answered.put((self, {}))

    def _next_rounds(self, num_waiting: int) -> Rounds | None:
        """Takes the next queued rounds; while groups are unanswered, does not wait for any."""
        try:
            return self._rounds.get(block=num_waiting == 0)
        except Empty:
            return {}


class _SpreadSession:
    """Session over the shares of one call."""

    def __init__(self, shares: Sequence[_Share]) -> None:
        """`shares`: two or more, the one with group 0 first."""
        self._started = time.perf_counter()
        self._shares, self._running = shares, list(shares)
        self._answered: SimpleQueue[tuple[_Share, Answers]] = SimpleQueue()
        self._stop = threading.Event()

    def start(self) -> None:
        """Starts a thread for each share."""
        for share in self._shares:
            share.start(self._answered, stopped_by(self._stop))

    def stop(self) -> None:
        """Has shares that still compute end before their next pass."""
        self._stop.set()

    def compare(self, rounds: Rounds) -> Answers:
        """Passes the rounds to their shares and returns the next answers of any share."""
        for share in list(self._running):
            if own := {g: rounds[g] for g in share.numbers if g in rounds}:
                share.ask(own)
            elif not share.num_waiting:
                share.finish()
                self._running.remove(share)
        share, answers = self._answered.get()
        if share.error is not None:
            self.end()
            self.check()
        share.num_waiting -= len(answers)
        return answers

    @property
    def stats(self) -> Stats:
        """Total cost of the shares; ends them and waits for it."""
        self.end()
        self.check()
        parts = [share.stats for share in self._shares if share.stats is not None]
        return total_stats(parts, time.perf_counter() - self._started)

    def end(self) -> None:
        """Ends all shares and waits for their threads, which finish their queued rounds."""
        for share in self._running:
            share.finish()
        self._running.clear()
        for share in self._shares:
            share.join()

    def check(self) -> None:
        """Raises the error of the first share that has one; of shares that know their groups at fault, one of all."""
        errors = [(share.numbers, share.error) for share in self._shares if share.error is not None]
        by_group: dict[int, Mapping[str, str]] = {}
        for numbers, error in errors:
            if not isinstance(error, InputError) or not error.by_group:
                raise error
            by_group |= {numbers[place]: reasons for place, reasons in error.by_group.items()}
        if by_group:
            raise InputError.of_groups(by_group) from errors[0][1]


def together(prompts: Sequence[str], costs: Sequence[int], count: int) -> list[list[int]]:
    """Divides groups into units that stay on one of `count` replicas.

    Groups of one prompt are a unit, because a replica computes a prompt once for all its groups, unless they cost more
    than a quarter of an even share: then each group is a unit.
    """
    by_prompt: dict[str, list[int]] = {}
    for g, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt, []).append(g)
    most = _PART * sum(costs) / count
    units = []
    for members in by_prompt.values():
        units += [members] if sum(costs[g] for g in members) <= most else [[g] for g in members]
    return units


def spread(costs: Sequence[int], loads: Sequence[int]) -> list[int]:
    """Assigns items to bins greedily: the costliest first, each to the least loaded bin -> the bin of each item.

    `loads`: initial loads of the bins. From 0, no bin exceeds the mean by more than the costliest item (Graham, 1969).
    """
    bins = [(load, number) for number, load in enumerate(loads)]
    heapq.heapify(bins)
    bin_of = [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        load, number = bins[0]
        bin_of[item] = number
        heapq.heapreplace(bins, (load + costs[item], number))
    return bin_of
