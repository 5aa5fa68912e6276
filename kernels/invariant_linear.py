"""Reference of `invariant_linear`: a linear layer where the bits of a row depend on that row alone."""

import torch
from torch import Tensor

BLOCK_ROWS = 128
"""Rows of every product. Smaller blocks read the weight more often, larger ones waste more on the last, which is filled
up. 1,024 rows on one core took longer than as one product: by 7 to 37 % with 64, 3 to 9 % with 128, 0 to 2 % with
256."""


def invariant_linear_reference(x_TD: Tensor, weight_OD: Tensor, bias_O: Tensor | None) -> Tensor:
    """`invariant_linear` in plain PyTorch: all products have one shape, so that the library always chooses the same
    code.

    No library promises that a row has the same bits at every place in a block. MKL and oneDNN did on the CPU for all
    weights tried, except in float32 with fewer than 12 rows; gram_fast.ops.row_dependence tests it.
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
    """torch.nn.functional.linear into `out_BO`."""
    if bias_O is None:
        torch.mm(x_BD, weight_OD.T, out=out_BO)
    else:
        torch.addmm(bias_O, x_BD, weight_OD.T, out=out_BO)
