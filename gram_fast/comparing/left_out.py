"""Chooses the candidates to leave out of a group where some of its pairs cannot be compared, and says why."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gram_fast.text.group import Group


def left_out(pairs: NDArray[np.int64], lengths: NDArray[np.int64], sizes: NDArray[np.int64]) -> dict[int, int]:
    """Leaves out the longest candidate of all the pairs, and so on with the pairs that are left, until none is.

    Of equally long ones the last goes first. A candidate that none of the pairs has stays, and so does one of size -1,
    which the other of its pair must leave.

    Args:
        pairs: those that cannot be compared, int64 [P, 2], or [P, 1] where single candidates cannot.
        lengths: of the pairs in tokens, int64 [P].
        sizes: of the candidates in tokens, int64 [C].

    Returns:
        By number of a candidate the number of its longest pair, in the order in which they are left out.
    """
    found: dict[int, int] = {}
    left = np.arange(len(pairs))
    while len(left):
        candidates = np.unique(pairs[left])[::-1]
        longest = int(candidates[sizes[candidates].argmax()])
        its = (pairs[left] == longest).any(axis=1)
        found[longest] = int(left[its][lengths[left[its]].argmax()])
        left = left[~its]
    return found


def shown_in(group: Group, shown: Sequence[int], text: int) -> str:
    """What a text is shown in: "the pair with responses[1] in slot A"; to a verifier it is shown alone."""
    if len(shown) == 1:
        return "the text"
    slot = "AB"[shown[0] == text]
    other = shown[shown[0] == text]
    return f"the pair with {group.names[group.first_of[other]]} in slot {slot}"
