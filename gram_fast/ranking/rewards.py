"""Rewards of groups: which scores of which tournament they are, and what duplicates and references are to them."""

import time
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from gram_fast.comparing.comparer import Comparer
from gram_fast.comparing.orders import Orders
from gram_fast.errors import InputError, shown_value
from gram_fast.ranking.play import play
from gram_fast.ranking.scores import Played, Scores, ScoresName, find_scores, margin, win_rate
from gram_fast.ranking.tournament import Strategy, find_strategy
from gram_fast.results import MaybeNone, Rewards
from gram_fast.text.batch import Batch
from gram_fast.text.group import Group

RewardsName = ScoresName | Literal["probability"]
"""Scores of `find_rule`, as types; "probability" beside references."""
Duplicates = Literal["merged", "counted"]
AGAINST_REFERENCE: dict[str, tuple[Scores, float]] = {"probability": (win_rate, 0.5), "margin": (margin, 0.0)}
"""Scores against a reference, each with that of a candidate which equals it. All others have one comparison."""


@dataclass(frozen=True)
class RewardRule:
    """How candidates are compared, and what of it is their reward."""

    strategy: Strategy
    scores: Scores
    counts_copies: bool
    equal_to_reference: float | None = None
    """Reward of the reference's own text; None without references, where candidates meet each other."""

    def rewards(self, group: Group, played: Played) -> list[float | MaybeNone]:
        """Computes the rewards of the candidates that the caller gave of a group."""
        scores = self.scores(played)
        if self.equal_to_reference is not None:
            scores[0] = self.equal_to_reference
        return group.by_candidate(scores)


def find_rule(strategy: str | None, scores: str, k: int | None, duplicates: str, has_references: bool) -> RewardRule:
    """Finds the rule of these options of `PairwiseJudge.rewards`. Raises InputError on what does not go together."""
    if not isinstance(duplicates, str) or duplicates not in get_args(Duplicates):
        raise InputError(f"duplicates: expected {' or '.join(get_args(Duplicates))}, got {shown_value(duplicates)}")
    name = ("reference" if has_references else "round_robin") if strategy is None else strategy
    found = find_strategy(name, k)
    if not has_references:
        return RewardRule(found, find_scores(scores, name), counts_copies=duplicates == "counted")
    if name != "reference":
        raise InputError(f"references: expected no strategy beside them, got {shown_value(name)}")
    if not isinstance(scores, str) or scores not in ("auto", *AGAINST_REFERENCE):
        names = ", ".join(AGAINST_REFERENCE)
        raise InputError(
            f"there are no scores {shown_value(scores)} beside references: expected auto or one of {names}"
        )
    against, equal = AGAINST_REFERENCE["probability" if scores == "auto" else scores]
    return RewardRule(found, against, counts_copies=False, equal_to_reference=equal)


def reward_groups(
    batch: Batch, comparer: Comparer, rule: RewardRule, orders: Orders = "both", seed: int = 0
) -> Rewards:
    """Rewards the candidates of each group of a batch. Raises errors like `play`."""
    started = time.perf_counter()
    outcome = play(batch.groups, rule.strategy, comparer, orders, seed)
    values = [
        rule.rewards(group, Played(_copies(group, rule.counts_copies), met, leaders))
        for group, met, leaders in zip(batch.groups, outcome.met, outcome.leaders, strict=True)
    ]
    comparisons = [group.preferences(found) for group, found in zip(batch.groups, outcome.comparisons, strict=True)]
    return Rewards(
        batch.restored(values, lambda size: [None] * size),
        comparisons=batch.restored(comparisons, lambda size: ()),
        errors=batch.errors,
        flagged=batch.flags(comparer.flags),
        stats=replace(outcome.stats, seconds=time.perf_counter() - started),
    )


def _copies(group: Group, counted: bool) -> NDArray[np.int64]:
    return np.bincount(group.text_of) if counted else np.ones(len(group.texts), np.int64)
