"""What a judge's model would say next behind any sequences of tokens: log probabilities over the whole vocabulary."""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gram_fast.comparing.label_comparer import LabelComparer
from gram_fast.devices import on_device
from gram_fast.errors import InputError, NumericalError
from gram_fast.results import ForwardStats
from gram_fast.scoring.surroundings import sheltered
from gram_fast.text.encoded import EncodedRound
from gram_fast.text.tokens import Ids


@sheltered
def next_token_logprobs(
    comparer: LabelComparer, sequences: Sequence[Sequence[Ids]], token_ids: Sequence[int]
) -> tuple[NDArray[np.float32], ForwardStats]:
    """Computes the log probabilities of tokens behind sequences -> float32 [S, K], and the cost.

    Args:
        comparer: whose model and engine are used.
        sequences: each a list of as many segments of token ids as the others, of which those that are equal are shared;
            one token or more in all.
        token_ids: whose probabilities are wanted; of the vocabulary.

    Raises InputError, which names the sequence, on one without tokens, over `max_length` or with a token that the model
    has no embedding of, and on tokens that are none of the vocabulary; NumericalError on what is not finite.
    """
    started, rows, outputs = time.perf_counter(), comparer.runner.num_embeddings, comparer.runner.num_outputs
    if wrong := [token for token in token_ids if not 0 <= token < outputs]:
        raise InputError(f"token {wrong[0]}: expected one of the model's vocabulary, 0 to {outputs - 1}")
    if not sequences:
        raise InputError("sequences: expected one or more, got none")
    numbers: dict[bytes, int] = {}
    segments: list[Ids] = []
    for place, sequence in enumerate(sequences):
        length = sum(map(len, sequence))
        if not 0 < length <= comparer.max_length:
            limit = f"1 to {comparer.max_length} ({comparer.max_length_reason})"
            raise InputError(f"sequence {place}: expected {limit} tokens, got {length}")
        for ids in sequence:
            if len(ids) and not 0 <= ids.min() <= ids.max() < rows:
                raise InputError(f"sequence {place}: expected token ids from 0 to {rows - 1}")
            if numbers.setdefault(ids.tobytes(), len(segments)) == len(segments):
                segments.append(ids)
    table = np.array([[numbers[ids.tobytes()] for ids in sequence] for sequence in sequences], np.int32)
    with comparer.engine.request(np.empty(0, np.int32), tuple(token_ids)) as request:
        # The last segments too: nobody but the caller knows where texts begin to differ, and later calls may have
        # the beginnings of these, as the pairs of a ranking have the response that stands first.
        request.add(EncodedRound(segments, table, reusable=table.shape[1]))
        with on_device(comparer.runner.device):
            found = request.score(more_rounds=False)
        stats = request.stats(time.perf_counter() - started)
    if not np.isfinite(found).all():
        raise NumericalError("the model returned log probabilities that are not finite")
    return found, stats
