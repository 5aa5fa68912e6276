"""What the tests of both attention ops share: devices, layouts of inputs, and how exact a result must be."""

import pytest
import torch
from torch import Tensor

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])


def transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


def offset_in_a_wider_buffer(tensor: Tensor) -> Tensor:
    rows, heads, width = tensor.shape
    buffer = torch.full((rows + 5, heads + 3, width), float("nan"), dtype=tensor.dtype, device=tensor.device)
    buffer[2:-3, 1:-2] = tensor
    return buffer[2:-3, 1:-2]


def every_other(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, torch.full_like(tensor, float("nan"))], dim=1).flatten(0, 1)[::2]


def strided_last(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor], dim=-1)[..., ::2]


def assert_no_further(actual: Tensor, exact: Tensor, plain: Tensor, factor: float) -> None:
    """Not much further from float64 than plain attention in the same dtype is, with one rounding of the output."""
    assert actual.dtype == plain.dtype
    assert actual.shape == exact.shape
    assert actual.is_contiguous()
    own_rounding = (plain.double() - exact).abs().max() + torch.finfo(plain.dtype).eps * exact.abs().max()
    assert (actual.cpu().double() - exact).abs().max() <= factor * own_rounding
