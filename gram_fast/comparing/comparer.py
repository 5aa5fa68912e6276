"""Comparer: the interface between tournaments, which choose pairs of candidates, and judges, which compare them.

label_comparer.py compares by the label logits of one model, replicas.py spreads groups over several comparers. A judge
that generates its verdict, or one behind a server, can be ranked with by implementing this interface.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gram_fast.comparing.orders import Orders
from gram_fast.results import Preference, Stats
from gram_fast.text.group import Group

Pair = tuple[int, int]
"""Pair (i, j) of candidates of a group, numbered as in Group.texts; (i, i) asks a verifier for candidate i."""
Pairs = NDArray[np.int64]
"""Pairs of one group, int64 [P, 2]."""
Rounds = Mapping[int, Sequence[Pair]]
"""Pairs to compare next, one or more, by number of the group."""
Answers = Mapping[int, Sequence[Preference]]
"""Preferences by number of the group, one for each pair of its round, in order."""

Reload = Callable[[], "Comparer"]
"""Loads a comparer as it was loaded before; it can be pickled."""


class Session(Protocol):
    """One call of a comparer: takes rounds of pairs and answers them.

    A group's first round comes in the first `compare`, each further one in the `compare` after its answer; without one,
    the group is finished.
    """

    def compare(self, rounds: Rounds) -> Answers:
        """Takes new rounds and returns the answers of one or more groups, from these rounds or earlier ones.

        `rounds` may be empty while earlier ones are unanswered. The caller repeats the call until all are answered.
        Raises InputError, which names the candidates, on a pair that is too long, and NumericalError on logits that are
        not finite.
        """

    @property
    def stats(self) -> Stats:
        """Cost of the call; read after the last answer."""


class Comparer(Protocol):
    """Compares responses in pairs: P(first better than second).

    One with an attribute `verifies` that is true reads single responses: it is asked for pairs (i, i) in order "ab",
    and p of its preference is P(response i is right).

    One with a method `unfit(groups, pairs, orders)` knows beforehand what it cannot compare of these Pairs, one array a
    group. It returns reasons of one sentence by name of the prompt or candidate (`Group.prompt_name`, `Group.names`),
    of a pair that is too long for the longer candidate, but never for a reference (number -1). It is asked again about
    what is left, until it finds nothing. Without the method a pair that is too long is an error of the session, also in
    a call with `on_error="none"`.
    """

    @property
    def max_length(self) -> int:
        """Most tokens of one presentation, the judge's prompt included."""

    @property
    def tokens_at_once(self) -> int:
        """Tokens of presentations that fill the device once; much larger work can be cut into calls without loss.

        Evaluation cuts its batches by it; where a judge does not know, an estimate will do.
        """

    def flags(self, text: str) -> tuple[str, ...]:
        """Finds what `text` contains that may pass for part of the judge's prompt; it is compared unchanged."""

    def open(
        self, groups: Sequence[Group], orders: Orders, *, num_pairs: Sequence[int], has_one_round: bool
    ) -> AbstractContextManager[Session]:
        """Opens a call that compares candidates of these groups.

        Args:
            groups: prompts with their candidates.
            orders: which of a pair stands in slot A.
            num_pairs: number of pairs that each group will have, at least roughly, for spreading the work.
            has_one_round: whether each group has one round at most, so that nothing need be kept for the next.
        """
