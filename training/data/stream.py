"""A stream of tokenized pairs, for training on data larger than memory."""

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

# Pairs that wait in memory to be drawn from.
_SHUFFLE_BUFFER = 4096


class PairStream(IterableDataset[dict[str, Any]]):
    """Pass after pass over the pairs that `read` yields, without end, each pass in an order of its own.

    Every pass has every pair once. The order depends on `seed` alone, so that a position in the stream is a number of
    pairs: a run that goes on after k pairs, in whichever pass that is, skips k. The stream ends only where there are no
    pairs. Of several workers of a DataLoader the first one reads, so that their number does not change the order
    either, as it does for the shuffle of the datasets library.
    """

    def __init__(self, read: Callable[[int], Iterable[dict[str, Any]]], seed: int) -> None:
        """`read` is called with the number of the pass, from 0."""
        self._read, self._seed = read, seed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        if worker is not None and worker.id > 0:
            return
        for number in count():
            pair = None
            for pair in _shuffled(self._read(number), np.random.default_rng((self._seed, number))):
                yield pair
            if pair is None:
                return


def _shuffled(pairs: Iterable[dict[str, Any]], rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    waiting: list[dict[str, Any]] = []
    for pair in pairs:
        if len(waiting) < _SHUFFLE_BUFFER:
            waiting.append(pair)
        else:
            drawn = int(rng.integers(_SHUFFLE_BUFFER))
            yield waiting[drawn]
            waiting[drawn] = pair
    yield from (waiting[k] for k in rng.permutation(len(waiting)))
