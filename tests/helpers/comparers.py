"""A comparer without a model, for tests of what stands on comparers."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from scipy.special import expit

from gram_fast.comparing.comparer import Answers, Rounds
from gram_fast.comparing.orders import Orders, shown
from gram_fast.comparing.preference import preference
from gram_fast.results import Stats
from gram_fast.text.group import Group


def p_longer(a: str, b: str) -> float:
    """P(a better than b) in the mean of both orders, to LengthComparer."""
    return float(expit([len(a) - len(b) + 0.25, len(a) - len(b) - 0.25]).mean())


@dataclass
class LengthComparer:
    """Knows the length of texts: the longer response is better, slot A is worth a quarter of a character."""

    at_once: int | None = None
    """Groups that a session answers in one call, those that were asked for last; None for all."""
    max_length: int = 1000
    tokens_at_once: int = 64
    opened: list[dict] = field(default_factory=list)
    """What each call was opened with."""
    is_open: bool = False

    def flags(self, text: str) -> tuple[str, ...]:
        return ("long",) if "long" in text else ()

    @contextmanager
    def open(
        self, groups: Sequence[Group], orders: Orders, *, num_pairs: Sequence[int], has_one_round: bool
    ) -> "Iterator[LengthSession]":
        self.opened.append({"groups": list(groups), "num_pairs": list(num_pairs), "has_one_round": has_one_round})
        self.is_open = True
        try:
            yield LengthSession(self, groups, orders)
        finally:
            self.is_open = False


@dataclass
class LengthSession:
    """Holds the caller to the rules of a session, too."""

    comparer: LengthComparer
    groups: Sequence[Group]
    orders: Orders
    due: dict = field(default_factory=dict)
    comparisons: int = 0

    def compare(self, rounds: Rounds) -> Answers:
        assert not rounds.keys() & self.due.keys(), "a group asks for its next round when its last is answered"
        assert all(rounds.values()), "no round is empty"
        self.due.update(rounds)
        assert self.due, "nothing is due"
        count = self.comparer.at_once or len(self.due)
        return {g: self._answer(g, self.due.pop(g)) for g in list(self.due)[-count:]}

    def _answer(self, g: int, pairs):
        texts, answers = self.groups[g].texts, []
        for i, j in pairs:
            margins = [len(texts[a]) - len(texts[b]) + 0.25 for a, b in shown(i, j, self.orders)]
            self.comparisons += len(margins)
            answers.append(preference(i, j, np.array([[m, 0] for m in margins], np.float32), self.orders))
        return answers

    @property
    def stats(self) -> Stats:
        return Stats(comparisons=self.comparisons, seconds=0.0)


def own_threads() -> list[threading.Thread]:
    """The threads that a call of several comparers started and has not ended."""
    return [thread for thread in threading.enumerate() if thread.name == "gram_fast"]
