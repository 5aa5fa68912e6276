"""Several arenas of one judge, each on a device of its own, behind the face of one: groups are spread over them."""

import heapq
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields

import numpy as np

from gram_fast.ranking.arena import Arena, Outcome
from gram_fast.ranking.tournament import Strategy
from gram_fast.results import Stats
from gram_fast.text.group import Group

# Characters of template text that a comparison reads behind the text in its second slot, about.
_TEMPLATE = 100
# Groups of one prompt stay together up to this part of an even share; beyond, balance is worth more than the prompt.
_PART = 0.25


class Replicas:
    """What an Arena is, over one arena a device.

    The arenas have the same weights, tokenizer and limit. The tokenizer is shared by their threads: nothing in it, or
    in the `tokenizers` library's encoding, changes after it was made.
    """

    def __init__(self, arenas: Sequence[Arena]) -> None:
        """`arenas`: one or more."""
        self._arenas = tuple(arenas)
        self._in_flight = [0] * len(self._arenas)  # by replica: costs of what running calls gave it
        self._lock = threading.Lock()  # of the line above

    @property
    def max_length(self) -> int:
        """As of an Arena."""
        return self._arenas[0].max_length

    @property
    def num_devices(self) -> int:
        """As of an Arena: how many arenas there are."""
        return len(self._arenas)

    @property
    def max_batch_tokens(self) -> int:
        """The least of the replicas': each halves its own when its device's memory runs out."""
        return min(arena.max_batch_tokens for arena in self._arenas)

    def play(self, groups: Sequence[Group], strategy: Strategy, orders: str, seed: int = 0) -> Outcome:
        """As Arena.play; each replica plays its share of the groups, all at the same time.

        A group is never divided: one group alone goes to the replica that has least to do. Counts of `stats` are sums
        over the replicas, each of which reads the judge's instruction for itself; `seconds` is the time of all.

        Raises what a replica raises, when all have come to their end: where several do, the one whose share begins
        first in `groups`. An interruption of several waits for their end too.
        """
        started = time.perf_counter()
        with self._shared_out(groups, costs(groups, strategy)) as shares:
            if len(shares) < 2:
                # In the caller's thread: a call costs no thread, and an interruption ends it at once.
                replica = next(iter(shares), 0)
                return self._arenas[replica].play(groups, strategy, orders, seed)

            def play(replica: int) -> Outcome:
                return self._arenas[replica].play([groups[g] for g in shares[replica]], strategy, orders, seed)

            with ThreadPoolExecutor(len(shares), thread_name_prefix="gram_fast") as pool:
                outcomes = list(pool.map(play, shares))
            return _joined(list(shares.values()), outcomes, time.perf_counter() - started)

    @contextmanager
    def _shared_out(self, groups: Sequence[Group], costs: Sequence[int]) -> Iterator[dict[int, list[int]]]:
        """Numbers of groups by replica, those of replicas with a share, the one with group 0 first.

        What the shares cost counts as in flight until the end of the context.
        """
        units = together([group.prompt for group in groups], costs, len(self._arenas))
        unit_costs = [sum(costs[g] for g in unit) for unit in units]
        with self._lock:
            replica_of = spread(unit_costs, self._in_flight)
            for replica, cost in zip(replica_of, unit_costs, strict=True):
                self._in_flight[replica] += cost
        shares: dict[int, list[int]] = {}
        for g, replica in sorted((g, r) for unit, r in zip(units, replica_of, strict=True) for g in unit):
            shares.setdefault(replica, []).append(g)
        try:
            yield shares
        finally:
            with self._lock:
                for replica, cost in zip(replica_of, unit_costs, strict=True):
                    self._in_flight[replica] -= cost


def costs(groups: Sequence[Group], strategy: Strategy) -> list[int]:
    """What each group costs, estimated in characters to read.

    The prompt and, in slot A, every response are read once; every comparison reads one more response of average length
    with the template behind it. An estimate is enough: text is not tokenized to decide who tokenizes it.
    """
    comparisons = {count: _comparisons(strategy, count) for count in {len(group.texts) for group in groups}}
    return [_cost(group, comparisons[len(group.texts)]) for group in groups]


def _cost(group: Group, comparisons: int) -> int:
    characters = sum(map(len, group.texts))
    return len(group.prompt) + characters + comparisons * (characters // len(group.texts) + _TEMPLATE)


def _comparisons(strategy: Strategy, count: int) -> int:
    """Pairs that the strategy asks for; of several rounds it is an elimination, in which all but one lose once."""
    if not strategy.has_one_round:
        return count - 1
    return len(next(strategy.play(count, np.random.default_rng(0))))


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


def _joined(shares: Sequence[Sequence[int]], outcomes: Sequence[Outcome], seconds: float) -> Outcome:
    """The outcome of all groups from those of the shares."""
    played = {
        g: answer
        for members, outcome in zip(shares, outcomes, strict=True)
        for g, *answer in zip(members, outcome.winners, outcome.comparisons, strict=True)
    }
    counts = {
        field.name: sum(getattr(outcome.stats, field.name) for outcome in outcomes)
        for field in fields(Stats)
        if field.name != "seconds"
    }
    winners, comparisons = zip(*(played[g] for g in range(len(played))), strict=True)
    return Outcome(list(winners), list(comparisons), Stats(**counts, seconds=seconds))
