"""Tournament strategies: choose the pairs to compare, round by round.

A tournament is a generator. It yields a round, a list of pairs (i, j), is sent P(i better than j) for each, and returns
its leaders: the candidates whose place it decided, best first. The scores over all comparisons order the others. A draw
(p = 0.5) goes to i. A pair is compared once: only `knockouts` asks for one again, as (i, j) again, and is sent what is
known. Where preferences are cyclic, leaders depend on who met whom.
"""

import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, log2
from numbers import Integral
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gram_fast.comparing.comparer import Pair
from gram_fast.errors import InputError, shown_value

StrategyName = Literal["linear", "knockout", "reference", "round_robin", "sort", "top_k", "opponents", "knockouts"]
"""Names for `find_strategy`, as types."""
Round = list[Pair]
# Most responses of a round robin without a warning: 2,016 pairs.
_MANY = 64
Tournament = Generator[Round, NDArray[np.float64], list[int]]


@dataclass(frozen=True)
class Strategy:
    """Strategy for ranking n candidates."""

    start: Callable[[int, np.random.Generator], Tournament]
    """Starts a tournament: (n >= 1, random generator) -> generator, whose rounds may be empty."""
    has_one_round: bool
    """Whether all pairs are known at the start."""
    verifies: bool = False
    """Whether its pairs are (i, i): candidates by themselves, for a verifier."""

    def num_pairs(self, count: int) -> int:
        """Number of distinct pairs for n candidates; where it depends on their order, that of one random order."""
        rng = np.random.default_rng(0)
        place, tournament = rng.permutation(count), self.start(count, rng)
        found: set[Pair] = set()
        try:
            pairs = next(tournament)
            while True:
                found.update(pairs)
                pairs = tournament.send(np.array([float(place[i] < place[j]) for i, j in pairs]))
        except StopIteration:
            return len(found)


def linear(count: int, rng: np.random.Generator) -> Tournament:
    """Compares the running best (i) with the next candidate (j), in order: n - 1 rounds of one pair.

    GRAM's list-wise ranking (arXiv 2506.14175).
    """
    best = 0
    for challenger in range(1, count):
        p = yield [(best, challenger)]
        if p[0] < 0.5:
            best = challenger
    return [best]


def knockout(
    count: int, rng: np.random.Generator, k: int = 1, met: dict[frozenset[int], Pair] | None = None
) -> Tournament:
    """Single elimination with a random bracket: n - 1 pairs in ceil(log2 n) rounds.

    GRAM's divide and conquer (arXiv 2506.14175). A candidate that was first of a pair (slot A) before is so again if
    its opponent was not: its tokens are computed already. With an odd number, the last candidate has a bye and heads
    the next round's bracket, so that none has two byes in a row.

    With `k` above 1 there is another knockout for each further place, among those that the last winner has beaten: all
    others lost to one of them. They are about log2 n, in the order of the rounds in which they lost.

    `met`, which several knockouts may share: pairs as they were asked for; two that meet again are asked for so again.
    """
    met = {} if met is None else met
    alive = [int(index) for index in rng.permutation(count)]
    beaten_by: dict[int, list[int]] = {index: [] for index in alive}
    stood_first: set[int] = set()
    leaders: list[int] = []
    while alive and len(leaders) < k:
        while len(alive) > 1:
            pairs = [
                (y, x) if y in stood_first and x not in stood_first else (x, y)
                for x, y in zip(alive[0::2], alive[1::2], strict=False)
            ]
            pairs = [met.setdefault(frozenset(pair), pair) for pair in pairs]
            stood_first.update(i for i, _ in pairs)
            p = yield pairs
            alive = alive[len(pairs) * 2 :]  # the bye
            for (i, j), preferred in zip(pairs, p, strict=True):
                winner, loser = (i, j) if preferred >= 0.5 else (j, i)
                beaten_by[winner].append(loser)
                alive.append(winner)
        leaders += alive
        alive = beaten_by[alive[0]]
    return leaders


def sort(count: int, rng: np.random.Generator) -> Tournament:
    """Merge sort: at most n ceil(log2 n) pairs in about n rounds; all candidates are leaders.

    All merges of a level run at the same time. Stable: draws stay in order.
    """
    return (yield from _sorted(range(count)))


def _sorted(candidates: Sequence[int]) -> Tournament:
    if len(candidates) < 2:
        return list(candidates)
    middle = len(candidates) // 2
    better, worse = yield from _side_by_side([_sorted(candidates[:middle]), _sorted(candidates[middle:])])
    return (yield from _merge(better, worse))


def _merge(left: list[int], right: list[int]) -> Tournament:
    """Merges two orders from both ends: a round decides the best and, where both have two or more left, the worst."""
    first: list[int] = []
    last: list[int] = []
    while left and right:
        has_two_ends = min(len(left), len(right)) > 1
        p = yield [(left[0], right[0]), (left[-1], right[-1])][: 1 + has_two_ends]
        first.append((left if p[0] >= 0.5 else right).pop(0))
        if has_two_ends:
            last.append((right if p[1] >= 0.5 else left).pop())
    return [*first, *left, *right, *reversed(last)]


def _side_by_side(tournaments: Sequence[Tournament]) -> Generator[Round, NDArray[np.float64], list[list[int]]]:
    """Plays tournaments at the same time: a round has the pairs of all that are not over -> the leaders of each."""
    leaders: list[list[int]] = [[] for _ in tournaments]
    rounds: dict[int, Round] = {}

    def advance(number: int, p: "NDArray[np.float64] | None") -> None:
        try:
            rounds[number] = next(tournaments[number]) if p is None else tournaments[number].send(p)
        except StopIteration as stop:
            rounds.pop(number, None)
            leaders[number] = stop.value

    for number in range(len(tournaments)):
        advance(number, None)
    while rounds:
        p = yield [pair for pairs in rounds.values() for pair in pairs]
        for number, pairs in list(rounds.items()):
            advance(number, p[: len(pairs)])
            p = p[len(pairs) :]
    return leaders


def reference(count: int, rng: np.random.Generator) -> Tournament:
    """Compares the first candidate (i) with all others: n - 1 pairs in one round."""
    yield [(0, other) for other in range(1, count)]
    return []


def round_robin(count: int, rng: np.random.Generator) -> Tournament:
    """Compares all pairs: n (n - 1) / 2 in one round."""
    yield [(i, j) for i in range(count) for j in range(i + 1, count)]
    return []


def _steps(count: int, k: int) -> list[int]:
    """Spreads k // 2 different steps over 1, about count / 2 and what is evenly between them in logarithms."""
    number_of, most = k // 2, (count - 1 - k % 2) // 2
    steps = [0]
    for number in range(number_of):
        spread = round(count ** (number / number_of))
        steps.append(min(max(spread, steps[-1] + 1), most - (number_of - 1 - number)))
    return steps[1:]


def _opponents(count: int, rng: np.random.Generator, k: int) -> Tournament:
    if k >= count - 1:
        return (yield from round_robin(count, rng))
    circle = rng.permutation(count).tolist()
    places = [(place, step) for step in _steps(count, k) for place in range(count)]
    if k % 2:
        places += [(place, count // 2) for place in range((count + 1) // 2)]
    yield [(circle[place], circle[(place + step) % count]) for place, step in places]
    return []


def _knockouts(count: int, rng: np.random.Generator, k: int) -> Tournament:
    met: dict[frozenset[int], Pair] = {}
    yield from _side_by_side([knockout(count, rng, met=met) for _ in range(k)])
    return []


STRATEGIES = {
    "linear": Strategy(linear, has_one_round=False),
    "knockout": Strategy(knockout, has_one_round=False),
    "reference": Strategy(reference, has_one_round=True),
    "round_robin": Strategy(round_robin, has_one_round=True),
    "sort": Strategy(sort, has_one_round=False),
}


def top_k(k: int) -> Strategy:
    """Makes the strategy that decides the best k in order: a knockout, and one among few for each further place."""
    return Strategy(partial(knockout, k=k), has_one_round=False)


def opponents(k: int) -> Strategy:
    """Makes the strategy in which each candidate meets k others, in one round: ceil(n k / 2) pairs.

    It is first of half of its pairs. Where n and k are odd, one candidate meets k + 1; where k is n - 1 or more, all
    meet all. In a circle of the candidates in random order, each meets those that are 1, ... and about sqrt(n) further
    on for k = 4, and so on in logarithms (and n / 2 where k is odd): step 1 connects all, long steps keep them near
    each other. For n = 32 and k = 4 strengths differ with 1.4 times the mean variance that no as cheap design can go
    below; random pairs have as much, steps 1 and 2 have 2.6 times.
    """
    return Strategy(partial(_opponents, k=k), has_one_round=True)


def knockouts(k: int) -> Strategy:
    """Makes the strategy of k knockouts at the same time, each in a bracket of its own: at most k (n - 1) pairs.

    Pairs that met in another bracket are asked for again, as they met there: their answer is known, but counts again
    in scores. Tournament-GRPO (arXiv 2605.26958) rewards with the points of four knockouts of eight.
    """
    return Strategy(partial(_knockouts, k=k), has_one_round=False)


def _both_ways(count: int, rng: np.random.Generator) -> Tournament:
    yield [(i, j) for i in range(count) for j in range(count) if i != j]
    return []


BOTH_WAYS = Strategy(_both_ways, has_one_round=True)
"""All pairs, each as (i, j) and as (j, i): in one order these are two presentations."""


def _each_alone(count: int, rng: np.random.Generator) -> Tournament:
    yield [(i, i) for i in range(count)]
    return []


EACH_ALONE = Strategy(_each_alone, has_one_round=True, verifies=True)
"""Every candidate by itself, for a verifier."""


WITH_K: dict[str, tuple[Callable[[int], Strategy], int]] = {
    "top_k": (top_k, 1),
    "opponents": (opponents, 2),
    "knockouts": (knockouts, 1),
}
"""What makes the strategies with a parameter `k`, and the least that it may be."""
STRATEGY_NAMES = (*STRATEGIES, *WITH_K)
"""Names for `find_strategy`."""


def find_strategy(name: str, k: int | None = None) -> Strategy:
    """Finds the strategy of that name; `k` is the parameter of those in WITH_K.

    Raises InputError that lists the names, and where `k` is missing, too small or no integer, or beside another
    strategy.
    """
    if not isinstance(name, str) or name not in STRATEGY_NAMES:
        raise InputError(f"there is no strategy {shown_value(name)}: expected one of {', '.join(STRATEGY_NAMES)}")
    if name not in WITH_K:
        if k is not None:
            beside = " or ".join(WITH_K)
            raise InputError(f"k: expected it beside strategy {beside} alone, got {shown_value(k)} with {name!r}")
        return STRATEGIES[name]
    make, least = WITH_K[name]
    if isinstance(k, bool) or not isinstance(k, Integral) or k < least:
        expected = f"an integer of at least {least} for strategy {name!r} of rank and rewards"
        raise InputError(f"k: expected {expected}, got {shown_value(k)}")
    return make(int(k))


def warn_of_all_pairs(name: str, counts: Sequence[int]) -> None:
    """Warns, in the caller's caller, of a round robin of many responses; `counts`: of each group of the call."""
    large = [n for n in counts if n > _MANY]
    if name == "round_robin" and large:
        most, pairs = max(large), sum(n * (n - 1) // 2 for n in large)
        where = f"{most} responses" if len(large) == 1 else f"{len(large)} groups of up to {most} responses"
        warnings.warn(
            f"strategy 'round_robin' compares all pairs, {pairs} of {where}: for {most} responses 'knockout' finds the "
            f"best in {most - 1} pairs, 'sort' orders all in at most {most * ceil(log2(most))}, and 'opponents' with "
            f"k=4 scores all in {2 * most}",
            stacklevel=3,
        )
