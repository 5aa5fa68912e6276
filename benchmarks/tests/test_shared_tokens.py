"""What benchmarks/pairs_together.py counts, on pairs whose beginnings are known."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.pairs_together import batch_of, count_tokens
from gram_fast.training.data.sequences import TokenizedPair

# Two prompts of six pairs. The two sequences of a pair share three tokens, those of other pairs of the prompt two.
PAIRS = [
    replace(TokenizedPair.labelled_at_the_ends(np.split(ids, 2), (0, 1)), prompt=prompt)
    for prompt in (1, 2)
    for n in range(10, 16)
    for ids in [np.array([prompt, 9, n, 7, prompt, 9, n, 8], np.int32)]
]


@pytest.mark.parametrize(("together", "tokens"), [(6, 2 * (2 + 6 * 3)), (2, 6 * (2 + 2 * 3)), (3, 4 * (2 + 3 * 3))])
def test_beginnings_count_once_a_batch(together: int, tokens: int) -> None:
    assert count_tokens(PAIRS, together, together) == tokens


def test_a_batch_is_of_one_prompt() -> None:
    assert len({pair.prompt for pair in batch_of(PAIRS, 6)}) == 1
