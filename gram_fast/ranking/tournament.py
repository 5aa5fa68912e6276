"""Tournament strategies: choose the pairs to compare, round by round.

A tournament is a generator. It yields a round, a list of pairs (i, j), is sent P(i better than j) for each, and returns
the winner, or None when the scores over all comparisons decide. A draw (p = 0.5) goes to i. Where preferences are
cyclic, an elimination's winner depends on the bracket; a round robin has none.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gram_fast.comparing.comparer import Pair
from gram_fast.errors import InputError, shown_value

Round = list[Pair]
Tournament = Generator[Round, NDArray[np.float64], int | None]


@dataclass(frozen=True)
class Strategy:
    """Strategy for ranking n candidates."""

    start: Callable[[int, np.random.Generator], Tournament]
    """Starts a tournament: (n >= 1, random generator) -> generator, whose rounds may be empty."""
    has_one_round: bool
    """Whether all pairs are known at the start."""

    def num_pairs(self, count: int) -> int:
        """Number of pairs for n candidates; with several rounds an estimate, the n - 1 of an elimination."""
        return len(next(self.start(count, np.random.default_rng(0)))) if self.has_one_round else count - 1


def linear(count: int, rng: np.random.Generator) -> Tournament:
    """Compares the running best (i) with the next candidate (j), in order: n - 1 rounds of one pair.

    GRAM's list-wise ranking (arXiv 2506.14175).
    """
    best = 0
    for challenger in range(1, count):
        p = yield [(best, challenger)]
        if p[0] < 0.5:
            best = challenger
    return best


def knockout(count: int, rng: np.random.Generator) -> Tournament:
    """Single elimination with a random bracket: n - 1 pairs in ceil(log2 n) rounds.

    GRAM's divide and conquer (arXiv 2506.14175). A candidate that was first of a pair (slot A) before is so again if
    its opponent was not: its tokens are computed already. With an odd number, the last candidate has a bye and heads
    the next round's bracket, so that none has two byes in a row.
    """
    alive = [int(index) for index in rng.permutation(count)]
    stood_first: set[int] = set()
    while len(alive) > 1:
        pairs = [
            (y, x) if y in stood_first and x not in stood_first else (x, y)
            for x, y in zip(alive[0::2], alive[1::2], strict=False)
        ]
        stood_first.update(i for i, _ in pairs)
        p = yield pairs
        bye = alive[len(pairs) * 2 :]
        alive = bye + [i if preferred >= 0.5 else j for (i, j), preferred in zip(pairs, p, strict=True)]
    return alive[0]


def reference(count: int, rng: np.random.Generator) -> Tournament:
    """Compares the first candidate (i) with all others: n - 1 pairs in one round."""
    yield [(0, other) for other in range(1, count)]
    return None


def round_robin(count: int, rng: np.random.Generator) -> Tournament:
    """Compares all pairs: n (n - 1) / 2 in one round."""
    yield [(i, j) for i in range(count) for j in range(i + 1, count)]
    return None


STRATEGIES = {
    "linear": Strategy(linear, has_one_round=False),
    "knockout": Strategy(knockout, has_one_round=False),
    "reference": Strategy(reference, has_one_round=True),
    "round_robin": Strategy(round_robin, has_one_round=True),
}


def fixed_pairs(pairs: Round) -> Strategy:
    """Makes the strategy whose one round is these pairs."""

    def start(count: int, rng: np.random.Generator) -> Tournament:
        yield pairs
        return None

    return Strategy(start, has_one_round=True)


def find_strategy(name: str) -> Strategy:
    """Finds the strategy of that name; raises InputError that lists the names."""
    if not isinstance(name, str) or name not in STRATEGIES:
        raise InputError(f"there is no strategy {shown_value(name)}: expected one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]
