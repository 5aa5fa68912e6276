"""Reference of `invariant_linear`: a linear layer where the bits of a row depend on that row alone."""

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import linear

BLOCK_ROWS = 128
"""Rows of every product. Smaller blocks read the weight more often, larger ones waste more on the last, which is filled
up. 1,024 rows on one core took longer than as one product: by 7 to 37 % with 64, 3 to 9 % with 128, 0 to 2 % with
256."""


def invariant_linear_reference(x_TD: Tensor, weight_OD: Tensor, bias_O: Tensor | None) -> Tensor:
    """`invariant_linear` in plain PyTorch."""
    return in_blocks(x_TD, len(weight_OD), lambda x_BD: linear(x_BD, weight_OD, bias_O))


def in_blocks(x_TD: Tensor, out_width: int, multiply: Callable[[Tensor], Tensor]) -> Tensor:
    """Multiplies rows in blocks of BLOCK_ROWS, the last one filled up -> [T, out_width].

    All products have one shape, so that a library always chooses the same code. No library promises that a row has the
    same bits at every place in a block. MKL and oneDNN did on the CPU for all weights tried, except in float32 with
    fewer than 12 rows; gram_fast.ops.row_dependence tests it.
    """
    num_tokens = len(x_TD)
    out_TO = x_TD.new_empty((num_tokens, out_width))
    for start in range(0, num_tokens, BLOCK_ROWS):
        x_BD = x_TD[start : start + BLOCK_ROWS]
        count = len(x_BD)
        if count < BLOCK_ROWS:
            rows_BD = x_TD.new_zeros((BLOCK_ROWS, x_TD.shape[1]))
            rows_BD[:count] = x_BD
            x_BD = rows_BD
        out_TO[start : start + count] = multiply(x_BD)[:count]
    return out_TO
