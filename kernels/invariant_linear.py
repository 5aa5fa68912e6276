"""A linear layer of which a row's bits depend on that row alone."""

import torch
from torch import Tensor

BLOCK_ROWS = 128
"""Rows of every product. With 64 the weight is read more often, with 256 more is wasted on the last block, which is
filled up: 1,024 rows on one core took 7 to 37 % longer than as one product with 64, 3 to 9 % with 128, 0 to 2 % with
256."""


def invariant_linear_reference(x_TD: Tensor, weight_OD: Tensor, bias_O: Tensor | None) -> Tensor:
    """`invariant_linear` in plain PyTorch: products of one shape, so that a library has nothing to choose by.

    That the library gives a row the same bits wherever it stands in a block is not promised, only found: with MKL and
    oneDNN on the CPU for all weights tried but those of float32 with fewer than 12 rows. gram_fast.ops.row_dependence
    looks.
    """
    num_tokens = len(x_TD)
    out_TO = x_TD.new_empty((num_tokens, len(weight_OD)))
    whole = num_tokens // BLOCK_ROWS * BLOCK_ROWS
    for start in range(0, whole, BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        _linear(x_TD[block], weight_OD, bias_O, out_TO[block])
    if whole < num_tokens:
        last_BD = x_TD.new_zeros((BLOCK_ROWS, x_TD.shape[1]))
        last_BD[: num_tokens - whole] = x_TD[whole:]
        last_BO = x_TD.new_empty((BLOCK_ROWS, len(weight_OD)))
        _linear(last_BD, weight_OD, bias_O, last_BO)
        out_TO[whole:] = last_BO[: num_tokens - whole]
    return out_TO


def _linear(x_BD: Tensor, weight_OD: Tensor, bias_O: Tensor | None, out_BO: Tensor) -> None:
    """torch.nn.functional.linear, without its copy of the result."""
    if bias_O is None:
        torch.mm(x_BD, weight_OD.T, out=out_BO)
    else:
        torch.addmm(bias_O, x_BD, weight_OD.T, out=out_BO)
