"""How exact a result must be. Bounds come from the rounding errors of plain computations, never from trying."""

import torch
from torch import Tensor


def rounding(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Half of what lies between two neighbours there."""
    info = torch.finfo(dtype)
    return info.eps / 2 * exact.abs().clamp(min=info.smallest_normal)


def assert_no_further(actual: Tensor, exact: Tensor, plain: Tensor, factor: float) -> None:
    """Not much further from float64 than the plain one in the same dtype is, with one rounding of the output."""
    assert actual.dtype == plain.dtype
    assert actual.shape == exact.shape
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
