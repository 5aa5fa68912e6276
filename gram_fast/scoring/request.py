"""Requests: a call as the engine sees it, with what it asks for and what it cost."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gram_fast.results import ForwardStats
from gram_fast.scoring.stops import StoppedError, stop_of_call
from gram_fast.scoring.tree import TokenTree
from gram_fast.text.encoded import EncodedRound
from gram_fast.text.tokens import Ids

_NO_LOGITS = np.empty((0, 2), np.float32)


class ScoringRequest:
    """One call's rounds over a token tree, which other calls may grow too, and their cost."""

    def __init__(self, head_ids: Ids) -> None:
        """`head_ids`: what all sequences start with."""
        self.head_ids = head_ids
        self.ask: Callable[[], None]
        """Has the engine `answer` what was added."""
        self.is_stopped: Callable[[], bool] = lambda: False
        """Whether nobody waits for the call any more."""
        self.more_rounds = False
        """Whether keys and values are kept for another round."""
        self.num_asked = self.tokens_asked = 0
        """Sequences that wait for their logits, and their tokens behind the heads."""
        self._asked: list[EncodedRound] = []
        self._segments: list[Ids] = []
        self._sizes = np.empty(0, np.int64)  # tokens of each segment
        self._numbers = np.empty(0, np.int32)  # of each segment in the tree
        self._logits = _NO_LOGITS
        self.tokens_tree = 0
        """Tokens of the tree that are counted as this call's."""
        self._comparisons = self._tokens_unshared = self._tokens_computed = self._passes = 0

    @property
    def num_segments(self) -> int:
        """Number of segments of this call so far."""
        return len(self._segments)

    def add(self, encoded: EncodedRound) -> NDArray[np.int64]:
        """Adds the sequences of a round to what is asked next -> their tokens, head included, int64 [P]."""
        self._segments += encoded.segments
        self._sizes = np.append(self._sizes, [len(ids) for ids in encoded.segments]).astype(np.int64)
        self._asked.append(encoded)
        lengths: NDArray[np.int64] = self._sizes[encoded.sequences].sum(axis=1)
        self.num_asked += len(lengths)
        self.tokens_asked += int(lengths.sum())
        return len(self.head_ids) + lengths

    def score(self, more_rounds: bool) -> NDArray[np.float32]:
        """Computes the label logits of what was added -> float32 [P, 2]; `more_rounds` keeps reusable keys and values.

        Waits for the engine the first time, and has it until the request ends. Raises StoppedError in a call that is to
        stop.
        """
        self.more_rounds, self.is_stopped = more_rounds, stop_of_call()
        self.ask()
        if self.num_asked:
            raise StoppedError("the call was stopped before its next pass")
        return self._logits

    def add_to(self, tree: TokenTree) -> NDArray[np.int32]:
        """Adds what is asked to the tree -> leaf numbers, int32 [P]; once more after an interruption does no harm."""
        added = [tree.add_segment(ids) for ids in self._segments[len(self._numbers) :]]
        self._numbers = np.append(self._numbers, np.array(added, np.int32))
        return np.concatenate(
            [tree.add_sequences(self._numbers[asked.sequences], asked.reusable) for asked in self._asked]
        )

    def answer(self, logits: NDArray[np.float32], tokens_computed: int, passes: int) -> None:
        """Takes the logits, float32 [P, 2], of what is asked, and what they cost."""
        self._logits = logits
        self._comparisons += self.num_asked
        self._tokens_unshared += self.tokens_asked + self.num_asked * len(self.head_ids)
        self._tokens_computed += tokens_computed
        self._passes += passes
        self._asked, self.num_asked, self.tokens_asked = [], 0, 0

    def stats(self, seconds: float) -> ForwardStats:
        """Cost of the request so far; `seconds`: wall time, which the caller measures."""
        return ForwardStats(
            comparisons=self._comparisons,
            seconds=seconds,
            tokens_unshared=self._tokens_unshared,
            tokens_tree=self.tokens_tree,
            tokens_computed=self._tokens_computed,
            passes=self._passes,
        )


def shares(total: int, weights: NDArray[np.int64]) -> list[int]:
    """Divides a count by weights, at least one of them above 0, into whole numbers that sum to it."""
    ends = np.cumsum(weights) * total // weights.sum()
    return [int(share) for share in np.diff(ends, prepend=0)]
