"""The order of an epoch in which pairs of one prompt come together."""

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class PromptSampler(Sampler[int]):
    """Shuffles an epoch such that up to `together` pairs of a prompt, drawn anew in every epoch, share a batch.

    Every pair comes once. A batch is `batch_size` consecutive ones. The order depends on the seed and the number of
    the epoch alone.
    """

    def __init__(
        self, prompts: Sequence[Hashable], together: int, batch_size: int, seed: int, epoch: Callable[[], int]
    ) -> None:
        """`prompts`: what tells the prompts of the pairs apart. `epoch`: asked whenever an order is begun."""
        self._together, self._batch_size, self._seed, self._epoch = together, batch_size, seed, epoch
        rows: dict[Hashable, list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows.setdefault(prompt, []).append(row)
        self._rows_of_prompts = list(rows.values())
        self._count = len(prompts)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self._seed, self._epoch()))
        chunks = []
        for rows in self._rows_of_prompts:
            shuffled = rng.permutation(rows).tolist()
            chunks += [shuffled[first : first + self._together] for first in range(0, len(rows), self._together)]
        return fill_batches([chunks[k] for k in rng.permutation(len(chunks))], self._batch_size)


def fill_batches(chunks: Sequence[list[int]], batch_size: int) -> Iterator[int]:
    """Yields all elements of the chunks in their order, as far as whole chunks fit into batches.

    A chunk waits while it does not fit what is left of a batch and another does; where none fits, it is divided.
    """
    waiting: dict[int, deque[tuple[int, list[int]]]] = {}  # by length: place in the order, chunk
    for place, chunk in enumerate(chunks):
        waiting.setdefault(len(chunk), deque()).append((place, chunk))
    room = batch_size
    while any(waiting.values()):
        heads = {queue[0][0]: length for length, queue in waiting.items() if queue}
        length = heads[min((place for place, n in heads.items() if n <= room), default=min(heads))]
        place, chunk = waiting[length].popleft()
        if length > room:
            waiting.setdefault(length - room, deque()).appendleft((place, chunk[room:]))
        yield from chunk[:room]
        room = (room - len(chunk[:room])) or batch_size
