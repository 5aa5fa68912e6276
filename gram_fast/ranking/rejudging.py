"""The second stage of a ranking: the best of the first one compared again, by a judge that costs more."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from gram_fast.comparing.comparer import Comparer
from gram_fast.comparing.modes import in_mode
from gram_fast.comparing.orders import Orders
from gram_fast.errors import InputError, shown_value
from gram_fast.ranking.play import play
from gram_fast.ranking.scores import Played, win_rate
from gram_fast.ranking.tournament import find_strategy
from gram_fast.results import Preference, Stats
from gram_fast.text.group import Group


def second_stage(comparer: Comparer, mode: str, rejudge: int | None) -> "SecondStage | None":
    """Makes the stage of these options of `PairwiseJudge.rank`; None without `rejudge`.

    Raises errors like `check_rejudge`.
    """
    check_rejudge(mode, rejudge)
    return None if rejudge is None else SecondStage(in_mode(comparer, "full"), int(rejudge))


def check_rejudge(mode: str, rejudge: int | None) -> None:
    """Raises InputError on fewer than two candidates, and beside mode "full", which has nothing to judge again."""
    if rejudge is None:
        return
    if isinstance(rejudge, bool) or not isinstance(rejudge, Integral) or rejudge < 2:
        raise InputError(f"rejudge: expected at least 2 candidates, got {shown_value(rejudge)}")
    if mode != "factored":
        raise InputError(f"rejudge: expected mode 'factored', whose best are judged again in full, got {mode!r}")


@dataclass(frozen=True)
class SecondStage:
    """Compares the best candidates of each group with each other and orders them by their win rates."""

    comparer: Comparer
    count: int
    """Distinct candidates of a group that are compared, where it has so many."""

    def play(
        self, groups: Sequence[Group], orders_of: Sequence[tuple[int, ...]], orders: Orders
    ) -> tuple[list[tuple[int, ...]], list[tuple[Preference, ...]], Stats]:
        """Plays the stage -> the candidates of each group, best first, its new comparisons, and the cost.

        `orders_of`: the candidates of each group as the first stage ordered them. Raises errors like `play`.
        """
        best = [self._best(group, order) for group, order in zip(groups, orders_of, strict=True)]
        outcome = play(best, find_strategy("round_robin"), self.comparer, orders)
        ordered, comparisons = [], []
        for group, met, order in zip(best, outcome.met, orders_of, strict=True):
            first = order_of(win_rate(Played(np.ones(len(group.texts), np.int64), met)), group)
            ordered.append((*first, *(number for number in order if number not in first)))
            comparisons.append(group.preferences(met))
        return ordered, comparisons, outcome.stats

    def _best(self, group: Group, order: Sequence[int]) -> Group:
        """The group with the candidates of the first distinct texts of an order alone."""
        text_of = dict(zip(group.numbers, group.text_of.tolist(), strict=True))
        kept = list(dict.fromkeys(text_of[number] for number in order))[: self.count]
        found = group.without([name for name, text in zip(group.names, group.text_of, strict=True) if text not in kept])
        assert found is not None  # no reference is left out: rankings have none
        return found


def order_of(values: NDArray[np.float64], group: Group, leaders: Sequence[int] = ()) -> tuple[int, ...]:
    """Sorts candidates from best to worst: those with the leaders' texts, then by score, ties by number."""
    place = {text: number for number, text in enumerate(leaders)}
    texts = zip(group.numbers, group.text_of.tolist(), strict=True)
    return tuple(i for *_, i in sorted((place.get(text, len(leaders)), -values[text], i) for i, text in texts))
