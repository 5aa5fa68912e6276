"""Plays tournaments: has a comparer compare the pairs of every group's next round until all are over."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from gram_fast.comparing.comparer import Comparer, Pair, Pairs, Session
from gram_fast.comparing.orders import Orders, check_orders
from gram_fast.errors import InputError, shown_value
from gram_fast.ranking.tournament import Round, Strategy, Tournament
from gram_fast.results import Preference, Stats
from gram_fast.text.arguments import OnError
from gram_fast.text.batch import Batch
from gram_fast.text.group import Group


@dataclass(frozen=True)
class Outcome:
    """Results of tournaments, one per group; candidates are numbered as in Group.texts."""

    leaders: list[list[int]]
    """Candidates whose place each group's tournament decided, best first; the scores over all comparisons order the
    others."""
    comparisons: list[list[Preference]]
    """Of each pair that was compared, in the order of the comparisons."""
    met: list[list[Preference]]
    """Of each pair that a tournament asked for, in its order. A pair that meets again, as in `knockouts`, is here
    again; all scores are made of these."""
    stats: Stats


def play(
    groups: Sequence[Group], strategy: Strategy, comparer: Comparer, orders: Orders = "both", seed: int = 0
) -> Outcome:
    """Plays one tournament per group, all at the same time, so that the comparer can batch their rounds.

    `seed`: of each tournament's random generator. Raises InputError on unknown orders, on a seed below 0 and where the
    strategy asks for pairs and the comparer reads single responses, or the reverse; errors of the comparer; and
    ValueError on answers that are not to what it was asked.
    """
    check_play(comparer, strategy, orders, seed)
    matches = [_Match(strategy.start(len(group.texts), np.random.default_rng(seed))) for group in groups]
    pairs_of = {count: strategy.num_pairs(count) for count in {len(group.texts) for group in groups}}
    num_pairs = [pairs_of[len(group.texts)] for group in groups]
    try:
        with comparer.open(groups, orders, num_pairs=num_pairs, has_one_round=strategy.has_one_round) as session:
            stats = _play(matches, session)
    except InputError as error:
        # It names what one round of one replica has. One of some groups alone was not known beforehand.
        if error.reasons and not error.by_group and (all_reasons := unfit(groups, strategy, comparer, orders, seed)):
            raise InputError.of(all_reasons) from None
        raise
    return Outcome(
        [match.leaders for match in matches],
        [list(match.known.values()) for match in matches],
        [match.met for match in matches],
        stats,
    )


def fitting(
    batch: Batch, comparer: Comparer, on_error: OnError, strategy: Strategy, orders: Orders, seed: int = 0
) -> Batch:
    """Leaves out of a batch what cannot be compared; with `on_error="raise"`, the call itself finds it."""
    return batch.without(unfit(batch.groups, strategy, comparer, orders, seed)) if on_error == "none" else batch


def unfit(
    groups: Sequence[Group], strategy: Strategy, comparer: Comparer, orders: Orders = "both", seed: int = 0
) -> dict[str, str]:
    """Finds prompts and candidates that the comparer cannot compare, before anything is computed -> reasons by name.

    Without them, no pair that the tournaments may ask for is too long: of two candidates that are too long together the
    longer one is named. A strategy of several rounds may ask for any two. Raises errors like `play`. A comparer that
    does not know beforehand, without a method `unfit`, finds nothing.
    """
    check_play(comparer, strategy, orders, seed)
    find = getattr(comparer, "unfit", None)
    reasons: dict[str, str] = {}
    least = 1 if strategy.verifies else 2
    while find and groups:
        pairs = [_pairs(len(group.texts), strategy, orders, seed) for group in groups]
        if not (found := find(groups, pairs, orders)):
            break
        reasons |= found
        groups = [kept for group in groups if (kept := group.without(found)) and len(kept.numbers) >= least]
    return reasons


def _pairs(count: int, strategy: Strategy, orders: Orders, seed: int) -> Pairs:
    """Pairs that a tournament may ask for: those of its one round, or any two candidates, either of them first."""
    if strategy.has_one_round:
        pairs = _Match(strategy.start(count, np.random.default_rng(seed))).round
        return np.array(pairs, np.int64).reshape(-1, 2)
    pairs_IJ = ~np.eye(count, dtype=bool)
    return np.argwhere(np.triu(pairs_IJ) if orders == "both" else pairs_IJ)


def _play(matches: Sequence["_Match"], session: Session) -> Stats:
    rounds = {g: match.round for g, match in enumerate(matches) if match.round}
    waiting = set(rounds)
    while waiting:
        answers = session.compare(rounds)
        if not answers or not answers.keys() <= waiting:
            raise ValueError(f"answers: expected some of groups {sorted(waiting)}, got {sorted(answers)}")
        for g, preferences in answers.items():
            matches[g].send(preferences)
        rounds = {g: matches[g].round for g in answers if matches[g].round}
        waiting = waiting - answers.keys() | rounds.keys()
    return session.stats


def check_play(comparer: Comparer, strategy: Strategy, orders: str, seed: int) -> None:
    """Raises InputError on settings of `play` that are wrong."""
    check_orders(orders)
    check_verifies(comparer, strategy.verifies)
    check_seed(seed)


def check_seed(seed: int) -> None:
    """Raises InputError on anything but an integer of at least 0."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise InputError(f"seed: expected an integer of at least 0, got {shown_value(seed)}")


def check_verifies(comparer: Comparer, verifies: bool) -> None:
    """Raises InputError on a comparer of pairs where a verifier is wanted, and on a verifier where it is not."""
    if verifies != getattr(comparer, "verifies", False):
        raise InputError(
            "this judge's prompt shows a pair of responses: expected one with {response} alone to verify with"
            if verifies
            else "this judge's prompt shows one response: it can verify, expected one of pairs to compare or rank with"
        )


class _Match:
    """State of one tournament: its current round, its preferences so far, and its leaders."""

    def __init__(self, tournament: Tournament) -> None:
        self._tournament = tournament
        self._asked: Round = []
        self.round: Round = []
        """Pairs to compare next, those of the tournament's round that are new; empty when the tournament is over."""
        self.known: dict[Pair, Preference] = {}
        self.met: list[Preference] = []
        self.leaders: list[int] = []
        self._advance(None)

    def send(self, preferences: Sequence[Preference]) -> None:
        """Takes the preferences of the current round and advances to the next."""
        pairs = [(preference.i, preference.j) for preference in preferences]
        if pairs != self.round:
            raise ValueError(f"preferences: expected one for each of {self.round}, in order, got {pairs}")
        self.known.update(zip(pairs, preferences, strict=True))
        self._advance(self._answers())

    def _answers(self) -> NDArray[np.float64]:
        """P(i better than j) of what the tournament asked for, all of it known."""
        preferences = [self.known[pair] for pair in self._asked]
        self.met += preferences
        return np.array([preference.p for preference in preferences])

    def _advance(self, p: NDArray[np.float64] | None) -> None:
        """Sends P(i better than j) (None to start) and advances to the next round with a pair that is new."""
        try:
            self._asked = next(self._tournament) if p is None else self._tournament.send(p)
            while not (new := [pair for pair in dict.fromkeys(self._asked) if pair not in self.known]):
                self._asked = self._tournament.send(self._answers())
            self.round = new
        except StopIteration as stop:
            self.round, self.leaders = [], stop.value
