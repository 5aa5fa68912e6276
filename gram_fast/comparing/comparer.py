"""The seam between tournaments and judges: what a tournament asks for, and whoever can answer it.

A comparer knows how two texts are compared; a tournament knows which comparisons it wants next. The label logits of one
model are a comparer (label_comparer.py), several comparers side by side are one (replicas.py), and a judge that writes
its verdict, or one behind a server, needs no more than this to be ranked with.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from gram_fast.comparing.preference import Orders
from gram_fast.results import Preference, Stats
from gram_fast.text.group import Group

Pair = tuple[int, int]
"""(i, j): two candidates of a group, numbered as in Group.texts."""
Rounds = Mapping[int, Sequence[Pair]]
"""By number of the group, the pairs to compare next; none is empty."""
Answers = Mapping[int, Sequence[Preference]]
"""By number of the group, one preference for each pair that was asked for, in order."""


class Session(Protocol):
    """The comparisons of one call. A group is asked for its next round only when its last one is answered."""

    def compare(self, rounds: Rounds) -> Answers:
        """Takes new rounds, none at all perhaps, and returns the answers of one or more groups.

        They may be of groups that were asked for earlier. The caller goes on until every round is answered.

        Raises InputError, which names the candidates, on a pair that is too long, and NumericalError on a verdict that
        is no number.
        """

    @property
    def stats(self) -> Stats:
        """What the call has cost so far."""


class Comparer(Protocol):
    """Whoever can say which of two responses is better, and how sure that is."""

    @property
    def max_length(self) -> int:
        """Most tokens of one pair, the judge's prompt included."""

    @property
    def tokens_at_once(self) -> int:
        """Tokens of comparisons that keep it busy once: who has many times more may well cut them into calls."""

    def flags(self, text: str) -> tuple[str, ...]:
        """What `text` contains that may pass for part of the judge's prompt. It is compared as it is."""

    def open(
        self, groups: Sequence[Group], orders: Orders, *, num_pairs: Sequence[int], one_round: bool
    ) -> AbstractContextManager[Session]:
        """Opens a call about these groups.

        Args:
            groups: prompts with their candidates.
            orders: which of a pair stands in slot A.
            num_pairs: how many pairs each group will ask for, or about so many: what the work may be spread by.
            one_round: whether no group asks twice, so that nothing need be kept for a next round.
        """
