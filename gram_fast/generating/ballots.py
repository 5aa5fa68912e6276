"""Ballots: the votes on a pair, how many more are needed, and what they come to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scipy.special import expit, logit

from gram_fast.comparing.orders import Orders, shown
from gram_fast.generating.options import VerdictKind
from gram_fast.generating.verdicts import Verdict
from gram_fast.results import Preference, Reasoning, Vote

# More than means of probabilities are rounded by, and less than any two models differ by.
_ROUNDING = 2**-40
# Log odds stay finite where a soft verdict is 0 or 1 to all digits.
_LEAST = 1e-9


@dataclass
class Ballot:
    """The votes on one pair (i, j), equal responses among them (i, i), or on response i of a verifier."""

    i: int
    j: int
    orders: list[str]
    """Orders that are shown, "ab" before "ba"."""
    votes_per_order: int
    is_adaptive: bool
    verifies: bool = False
    """Whether one response is shown, i, rather than a pair."""
    votes: list[Vote] = field(default_factory=list)
    margins: list[float | None] = field(default_factory=list)
    """Of each vote, logit of the label for i less that of the other."""

    @classmethod
    def of(
        cls, i: int, j: int, orders: Orders, votes_per_order: int, is_adaptive: bool, verifies: bool = False
    ) -> "Ballot":
        """Makes a ballot without votes.

        Equal responses have all votes: both orders show the same text and get the same answers, which cancel.
        """
        found = ["ab"] if verifies else [order for order in ("ab", "ba") if orders in (order, "both")]
        return cls(i, j, found, votes_per_order, is_adaptive and (verifies or i != j), verifies)

    def shown(self, order: str) -> tuple[int, ...]:
        """The responses that are shown in an order: in slots A and B, or that of a verifier."""
        return (self.i,) if self.verifies else shown(self.i, self.j, order)[0]

    @property
    def total(self) -> int:
        """Most votes of the ballot."""
        return len(self.orders) * self.votes_per_order

    def count(self, verdict: bool | None) -> int:
        """Votes for i (True), for j (False), or without a verdict (None)."""
        return sum(vote.is_for_i is verdict for vote in self.votes)

    @property
    def missing(self) -> dict[str, int]:
        """How many votes to draw next in each order; none where it is over.

        With `is_adaptive`, the fewest that could decide the majority: it is decided when it leads by more than are
        left. The orders have as many votes as each other, the first one more where the number is odd.
        """
        left = self.total - len(self.votes)
        lead = abs(self.count(True) - self.count(False))
        if not left or (self.is_adaptive and lead > left):
            return {}
        more = (left - lead) // 2 + 1 if self.is_adaptive else left
        after = len(self.votes) + min(more, left)
        wanted = {order: (after + place) // len(self.orders) for place, order in enumerate(reversed(self.orders))}
        return {order: n for order in self.orders if (n := wanted[order] - self.drawn(order)) > 0}

    def drawn(self, order: str) -> int:
        """Votes that were drawn in an order."""
        return sum(vote.order == order for vote in self.votes)

    def add(self, order: str, verdict: Verdict, margin: float | None) -> None:
        """Adds a vote. `margin`: logit of the first label less that of the second behind its rationale, if known."""
        sign = -1 if order == "ba" else 1
        margin = None if margin is None else sign * margin
        self.margins.append(margin)
        self.votes.append(
            Vote(
                order=order,
                rationale=verdict.rationale,
                is_for_i=None if verdict.label is None else (verdict.label == 0) == (order != "ba"),
                problem=verdict.problem,
                p=None if margin is None else float(expit(margin)),
            )
        )

    def preference(self, kind: VerdictKind) -> Preference:
        """What the votes come to."""
        hard = {order: self._hard([order]) for order in self.orders}
        reasoning = Reasoning(
            votes=tuple(self.votes),
            for_i=self.count(True),
            for_j=self.count(False),
            invalid=self.count(None),
            soft=self._soft(self.orders),
            hard=self._hard(self.orders),
        )
        if kind == "soft" and reasoning.soft is not None:
            # An order of which no vote has logits has its verdicts: the other alone would have the bias to a slot.
            soft = {order: self._soft([order]) for order in self.orders}
            p_of = {order: hard[order] if p is None else p for order, p in soft.items()}
            p, margin = _settled(math.fsum(p_of.values()) / len(p_of)), self._margin(hard)
        else:
            p_of, p, margin = hard, reasoning.hard, float(logit(reasoning.hard))
        return Preference(
            self.i,
            self.j,
            p=p,
            margin=margin,
            p_ab=p_of.get("ab"),
            p_ba=p_of.get("ba"),
            reasoning=reasoning,
        )

    def _soft(self, orders: Sequence[str]) -> float | None:
        """Mean over orders of the mean over votes; None where no vote has a probability."""
        soft = _mean([_mean([vote.p for vote in self.votes if vote.order == order]) for order in orders])
        return None if soft is None else _settled(soft)

    def _hard(self, orders: Sequence[str]) -> float:
        soft = self._soft(orders)
        valid = [vote.is_for_i for vote in self.votes if vote.order in orders and vote.is_for_i is not None]
        share = (sum(valid) + (0.5 if soft is None else soft)) / (len(valid) + 1)
        return min(max(share, _LEAST), 1 - _LEAST)

    def _margin(self, hard: Mapping[str, float]) -> float:
        """Mean over orders of the mean margin, or of the log odds of an order's hard verdict where it has none."""
        found = {
            order: _mean([m for vote, m in zip(self.votes, self.margins, strict=True) if vote.order == order])
            for order in self.orders
        }
        known = [float(logit(hard[order])) if margin is None else margin for order, margin in found.items()]
        return math.fsum(known) / len(known)


def _settled(p: float) -> float:
    """A probability, or a half where rounding alone could decide: answers that cancel are a draw."""
    return 0.5 if abs(p - 0.5) < _ROUNDING else p


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
