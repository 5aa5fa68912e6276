"""Several comparers of one judge side by side, each on a device of its own: groups are spread over them."""

import heapq
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from gram_fast.comparing.comparer import Answers, Comparer, Rounds, Session
from gram_fast.comparing.preference import Orders
from gram_fast.results import Stats, total_stats
from gram_fast.text.group import Group

# Characters of template text that a comparison reads behind the text in its second slot, about.
_TEMPLATE = 100
# Groups of one prompt stay together up to this part of an even share; beyond, balance is worth more than the prompt.
_PART = 0.25

AnyComparer = TypeVar("AnyComparer", bound=Comparer)


class Replicas(Generic[AnyComparer]):
    """A comparer over comparers that give the same answers. They may share a tokenizer: nothing in it changes."""

    def __init__(self, comparers: Sequence[AnyComparer]) -> None:
        """`comparers`: one or more."""
        self.comparers = tuple(comparers)
        self.in_flight = [0] * len(self.comparers)
        """By replica: the costs of what running calls gave it."""
        self._lock = threading.Lock()  # of the line above

    @property
    def max_length(self) -> int:
        """Most tokens of one pair, the same for all."""
        return self.comparers[0].max_length

    @property
    def tokens_at_once(self) -> int:
        """The sum over the comparers."""
        return sum(comparer.tokens_at_once for comparer in self.comparers)

    def flags(self, text: str) -> tuple[str, ...]:
        """What any of them flags: they have the same prompt."""
        return self.comparers[0].flags(text)

    @contextmanager
    def open(
        self, groups: Sequence[Group], orders: Orders, *, num_pairs: Sequence[int], one_round: bool
    ) -> Iterator[Session]:
        """Opens a call on each replica that gets a share of the groups. Every share goes on at its own pace.

        A group is never divided: one group alone goes to the replica that has least to do. Counts of `stats` are sums
        over the replicas, each of which reads the judge's instruction for itself; `seconds` is the time of all.

        An error of one replica is raised when the others are through with their round; of several errors, that of the
        replica whose share begins first in `groups`. An interruption waits for that round too.
        """
        with self._shared_out(groups, costs(groups, num_pairs)) as shares:
            if len(shares) < 2:
                # In the caller's thread: a call costs no thread, and an interruption ends it at once.
                comparer = self.comparers[next(iter(shares), 0)]
                with comparer.open(groups, orders, num_pairs=num_pairs, one_round=one_round) as session:
                    yield session
                return

            def open_share(comparer: Comparer, numbers: Sequence[int]) -> AbstractContextManager[Session]:
                share, pairs = [groups[g] for g in numbers], [num_pairs[g] for g in numbers]
                return comparer.open(share, orders, num_pairs=pairs, one_round=one_round)

            session = _SpreadSession(
                [_Share(numbers, partial(open_share, self.comparers[r], numbers)) for r, numbers in shares.items()]
            )
            try:
                session.start()
                yield session
            finally:
                session.end()
            session.check()

    @contextmanager
    def _shared_out(self, groups: Sequence[Group], costs: Sequence[int]) -> Iterator[dict[int, list[int]]]:
        """Numbers of groups by replica, those of replicas with a share, the one with group 0 first.

        What the shares cost counts as in flight until the end of the context.
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
    """The groups that one replica compares, in a thread of its own."""

    def __init__(self, numbers: Sequence[int], open_session: Callable[[], AbstractContextManager[Session]]) -> None:
        """`numbers`: of the groups in the call. The session is opened in the thread, which may wait for a device."""
        self.numbers = numbers
        self._place_of = {g: place for place, g in enumerate(numbers)}
        self.num_waiting = 0
        """Groups that were asked for and are not answered."""
        self.stats: Stats | None = None
        """Once the share is over."""
        self.error: BaseException | None = None
        self._open_session = open_session
        self._rounds: SimpleQueue[Rounds | None] = SimpleQueue()  # None ends the share
        self._thread: threading.Thread | None = None

    def start(self, answered: "SimpleQueue[tuple[_Share, Answers]]") -> None:
        """Begins to work; answers, by number of the group in the call, and errors go into the queue."""
        thread = threading.Thread(target=self._work, args=(answered,), name="gram_fast")
        thread.start()
        self._thread = thread  # one that could not start cannot be joined

    def ask(self, rounds: Rounds) -> None:
        """Takes new rounds, by number of the group in the call."""
        self.num_waiting += len(rounds)
        self._rounds.put({self._place_of[g]: pairs for g, pairs in rounds.items()})

    def finish(self) -> None:
        """Ends the share when it is through with what it was asked for; its session is free for others then."""
        self._rounds.put(None)

    def join(self) -> None:
        """Waits for its end."""
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
        except BaseException as error:  # raised again in the caller's thread
            self.error = error
            answered.put((self, {}))

    def _next_rounds(self, num_waiting: int) -> Rounds | None:
        """New rounds; where answers are still to come, none need be there."""
        try:
            return self._rounds.get(block=num_waiting == 0)
        except Empty:
            return {}


class _SpreadSession:
    """The shares of one call, each at its own pace."""

    def __init__(self, shares: Sequence[_Share]) -> None:
        """`shares`: two or more, the one with group 0 first."""
        self._started = time.perf_counter()
        self._shares, self._running = shares, list(shares)
        self._answered: SimpleQueue[tuple[_Share, Answers]] = SimpleQueue()

    def start(self) -> None:
        """Starts a thread for each share."""
        for share in self._shares:
            share.start(self._answered)

    def compare(self, rounds: Rounds) -> Answers:
        """Hands the rounds out, and returns the answers of the share that is the first to have some."""
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
        """Sums over the shares, whose end this waits for."""
        self.end()
        self.check()
        parts = [share.stats for share in self._shares if share.stats is not None]
        return total_stats(parts, time.perf_counter() - self._started)

    def end(self) -> None:
        """Waits until every share is through with the round that it is in."""
        for share in self._running:
            share.finish()
        self._running.clear()
        for share in self._shares:
            share.join()

    def check(self) -> None:
        """Raises the error of the first share, by its groups, that has one."""
        for share in self._shares:
            if share.error is not None:
                raise share.error


def costs(groups: Sequence[Group], num_pairs: Sequence[int]) -> list[int]:
    """What each group costs, estimated in characters to read.

    The prompt and, in slot A, every response are read once; every comparison reads one more response of average length
    with the template behind it. An estimate is enough: text is not tokenized to decide who tokenizes it.
    """
    return [_cost(group, pairs) for group, pairs in zip(groups, num_pairs, strict=True)]


def _cost(group: Group, num_pairs: int) -> int:
    characters = sum(map(len, group.texts))
    return len(group.prompt) + characters + num_pairs * (characters // len(group.texts) + _TEMPLATE)


def together(prompts: Sequence[str], costs: Sequence[int], count: int) -> list[list[int]]:
    """Divides groups into units, each for one of `count` replicas.

    Groups of one prompt are a unit, because a replica reads a prompt once for all its groups, unless they are more
    than a quarter of an even share: then each is its own.
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
    """The bin of each item: the costliest first, each into the bin with the least load by then.

    `loads`: what the bins hold already. From empty bins, no bin comes to more than the mean plus one item.
    """
    bins = [(load, number) for number, load in enumerate(loads)]
    heapq.heapify(bins)
    bin_of = [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        load, number = bins[0]
        bin_of[item] = number
        heapq.heapreplace(bins, (load + costs[item], number))
    return bin_of
