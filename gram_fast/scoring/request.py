"""Requests: a call as the engine sees it, with what it asks for and what it cost."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from gram_fast.results import ForwardStats
from gram_fast.scoring.stops import StoppedError, stop_of_call
from gram_fast.scoring.tree import TokenTree
from gram_fast.text.encoded import EncodedRound
from gram_fast.text.tokens import Ids

_NO_IDS = np.empty(0, np.int32)
_NO_LENGTHS = np.empty(0, np.int64)


class ScoringRequest:
    """One call's rounds over a token tree, which other calls may grow too, and their cost."""

    def __init__(
        self,
        head_ids: Ids,
        token_ids: tuple[int, ...] | None = None,
        *,
        head_is_segment: bool = False,
        is_factored: bool = False,
    ) -> None:
        """Makes a request that asks for nothing yet.

        Args:
            head_ids: what all sequences start with.
            token_ids: whose log probabilities are wanted; None: label logits.
            head_is_segment: the head is a segment of each sequence, in a tree of no head, which calls with other heads
                may grow too.
            is_factored: all sequences are verdicts behind two paths (`EncodedRound.is_factored`).
        """
        self.head_ids, self.token_ids, self._head_is_segment = head_ids, token_ids, head_is_segment
        self.is_factored = is_factored
        self.width = 2 if token_ids is None else len(token_ids)
        """Numbers of a sequence."""
        self.ask: Callable[[], None]
        """Has the engine `answer` what was added."""
        self.is_stopped: Callable[[], bool] = lambda: False
        """Whether nobody waits for the call any more."""
        self.more_rounds = False
        """Whether keys and values are kept for another round."""
        self._asked: list[EncodedRound] = []
        self._lengths = _NO_LENGTHS  # tokens behind the head of each sequence that was asked, int64 [P]
        self._left = _NO_LENGTHS  # positions of those without logits, int64 [Q]
        self._logits = np.empty((0, self.width), np.float32)
        self._segments: list[Ids] = []
        self._sizes = _NO_LENGTHS  # tokens of each segment
        self._numbers = np.empty(0, np.int32)  # of each segment in the tree
        self._head: list[int] = []  # that of the head's, if it is one
        self._planting = -1  # of the tree that these are of
        self._distinct: int | None = None
        self.tokens_tree = 0
        """Tokens of the tree that are counted as this call's."""
        self.is_counted = True
        """Whether those of what waits are."""
        self._comparisons = self._tokens_unshared = self._tokens_computed = self._passes = 0

    @property
    def root_ids(self) -> Ids:
        """Head of the tree that these sequences are of."""
        return _NO_IDS if self._head_is_segment else self.head_ids

    @property
    def num_asked(self) -> int:
        """Sequences that wait for their logits."""
        return len(self._left)

    @property
    def lengths_asked(self) -> NDArray[np.int64]:
        """Tokens behind the head of each of these, int64 [Q]."""
        return self._lengths[self._left]

    @property
    def tokens_distinct(self) -> int:
        """Tokens behind the head that these have, each prefix of segments once; of those that are done too."""
        if self._distinct is None:
            count = _distinct_factored if self.is_factored else _distinct
            self._distinct = sum(count(asked.sequences, self._sizes) for asked in self._asked)
        return self._distinct

    @property
    def least_budget(self) -> int:
        """Tokens that a pass must have room for: a verdict's tail is not divided among passes."""
        if not self.is_factored:
            return 1
        return max(int(self._sizes[asked.sequences[:, -1]].max()) for asked in self._asked)

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
        self._left = np.append(self._left, len(self._lengths) + np.arange(len(lengths)))
        self._lengths = np.append(self._lengths, lengths)
        self._logits = np.full((len(self._lengths), self.width), np.nan, np.float32)
        self._distinct, self.is_counted = None, False
        return len(self.head_ids) + lengths

    def score(self, more_rounds: bool) -> NDArray[np.float32]:
        """Computes the logits of what was added -> float32 [P, width]; `more_rounds` keeps reusable keys and values.

        Waits for the engine the first time, and has it until the request ends, unless the engine gives way. Raises
        StoppedError in a call that is to stop.
        """
        self.more_rounds, self.is_stopped = more_rounds, stop_of_call()
        self.ask()
        if self.num_asked:
            raise StoppedError("the call was stopped before its next pass")
        self._asked, self._lengths = [], _NO_LENGTHS
        return self._logits

    def add_to(self, tree: TokenTree, planting: int) -> NDArray[np.int32]:
        """Adds what waits to the tree -> leaf numbers, int32 [Q]; once more after an interruption does no harm.

        `planting` changes whenever the tree has lost its segments.
        """
        if planting != self._planting:
            # In this order: an interruption between them leaves no number of another tree.
            head = [tree.add_segment(self.head_ids)] if self._head_is_segment else []
            self._numbers, self._head, self._planting = np.empty(0, np.int32), head, planting
        added = [tree.add_segment(ids) for ids in self._segments[len(self._numbers) :]]
        self._numbers = np.append(self._numbers, np.array(added, np.int32))
        ends = np.cumsum([len(asked.sequences) for asked in self._asked])
        parts = np.split(self._left, np.searchsorted(self._left, ends[:-1]))
        leaves = []
        for asked, part, end in zip(self._asked, parts, ends.tolist(), strict=True):
            numbers = _behind(self._head, self._numbers[asked.sequences[part - (end - len(asked.sequences))]])
            leaves.append(
                tree.add_verdicts(numbers)
                if self.is_factored
                else tree.add_sequences(numbers, asked.reusable + len(self._head))
            )
        return np.concatenate(leaves)

    def answer(
        self, logits: NDArray[np.float32], is_done: NDArray[np.bool_], tokens_computed: int, passes: int
    ) -> None:
        """Takes logits, float32 [Q, width], of what waits, those that `is_done`, bool [Q], marks; and their cost."""
        done = self._left[is_done]
        self._logits[done] = logits[is_done]
        self._comparisons += len(done)
        self._tokens_unshared += int(self._lengths[done].sum()) + len(done) * len(self.head_ids)
        self._tokens_computed += tokens_computed
        self._passes += passes
        self._left = self._left[~is_done]

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


def _behind(head: Sequence[int], sequences: NDArray[np.int32]) -> NDArray[np.int32]:
    """Puts the number of a head's segment, if any, before sequences of segments, int32 [P, k]."""
    if not head:
        return sequences
    return np.hstack([np.full((len(sequences), 1), head[0], np.int32), sequences])


def _distinct(sequences: NDArray[np.int32], sizes: NDArray[np.int64]) -> int:
    """Counts the tokens of sequences of segments, int32 [P, k], of which those with the same beginning share it."""
    tokens, prefixes = 0, np.zeros(len(sequences), np.int64)
    for segments in sequences.T:
        _, first, prefixes = np.unique(prefixes * len(sizes) + segments, return_index=True, return_inverse=True)
        tokens += int(sizes[segments[first]].sum())
    return tokens


def _distinct_factored(sequences: NDArray[np.int32], sizes: NDArray[np.int64]) -> int:
    """Counts the tokens of verdicts and of the paths that they read, int32 [P, k], each path once."""
    shared, first, second, tails = np.split(sequences, [-3, -2, -1], axis=1)
    paths = sum(_distinct(np.hstack([shared, end]), sizes) for end in (first, second))
    return paths - _distinct(shared, sizes) + int(sizes[tails].sum())


def shares(total: int, weights: NDArray[np.int64]) -> list[int]:
    """Divides a count by weights, at least one of them above 0, into whole numbers that sum to it."""
    ends = np.cumsum(weights) * total // weights.sum()
    return [int(share) for share in np.diff(ends, prepend=0)]
