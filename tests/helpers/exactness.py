"""How exact a result must be. Bounds come from the rounding errors of plain computations, never from trying."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

SAMPLES = 1024
"""Outputs of a plain computation that its rounding error is estimated from, over all orders of summation together."""

Order = Callable[[np.ndarray], np.ndarray]
"""Puts indices of equal rank, those of the terms of a sum, into another order."""


def orders_of_summation(num_outputs: int) -> Iterator[Order]:
    """The given order, and random ones until SAMPLES outputs are computed in all.

    In which order a product of matrices adds up is the choice of a library, which makes it by processor and by shape.
    The largest error of a few outputs in a single order is therefore luck: of the same scores, two close ones of an
    attention may be rounded to the same side by one library and apart by another. An order is as good as the next, so
    the largest error over several is what a plain computation may be off by. Many outputs vary enough in one order.
    """
    yield np.asarray
    for seed in range(1, -(-SAMPLES // num_outputs)):
        yield np.random.default_rng(seed).permutation


def rounding(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Half of what lies between two neighbours there."""
    info = torch.finfo(dtype)
    return info.eps / 2 * exact.abs().clamp(min=info.smallest_normal)


def assert_no_further(actual: Tensor, exact: Tensor, plain: Tensor, factor: float) -> None:
    """Not much further from float64 than the plain one in the same dtype is, with one rounding of the output.

    `plain` is one result, or several stacked: the same sums in several orders, of which the largest error counts.
    """
    assert actual.dtype == plain.dtype
    assert actual.shape == exact.shape == plain.shape[-exact.dim() :]
    own_rounding = (plain.double() - exact).abs().max() + torch.finfo(plain.dtype).eps * exact.abs().max()
    assert (actual.cpu().double() - exact).abs().max() <= factor * own_rounding


def assert_as_exact_as_float32(actual: Tensor, exact: Tensor, plain: Tensor, slack: Tensor) -> None:
    """Element by element no further from float64 than twice what plain float32 is, a slack and one rounding.

    The slack is in units in the last place of float32 and comes with the sizes of what is rounded; the last rounding is
    that of the result's dtype.
    """
    assert actual.shape == exact.shape
    bound = 2 * (plain.double() - exact).abs() + torch.finfo(torch.float32).eps * slack + rounding(exact, actual.dtype)
    assert ((actual.cpu().double() - exact).abs() <= bound).all()
