"""Layouts of a tensor: the same numbers at other places in memory, NaN around them, so that a stray read shows."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Layout = Callable[[Tensor], Tensor]


def transposed(tensor: Tensor) -> Tensor:
    """Of tokens and heads, heads come first in memory."""
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


def every_other(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, torch.full_like(tensor, float("nan"))], dim=1).flatten(0, 1)[::2]


def inside_a_buffer(tensor: Tensor) -> Tensor:
    buffer = tensor.new_full([size + 3 for size in tensor.shape], float("nan"))
    inside = buffer[tuple(slice(1, -2) for _ in tensor.shape)]
    return inside.copy_(tensor)


def rows_inside_a_buffer(tensor_TD: Tensor) -> Tensor:
    num_tokens, width = tensor_TD.shape
    buffer = tensor_TD.new_full((num_tokens + 2, width + 5), float("nan"))
    buffer[1:-1, 2:-3] = tensor_TD
    return buffer[1:-1, 2:-3]


def offset_in_a_wider_buffer(tensor: Tensor) -> Tensor:
    """More tokens and more heads around: what stands side by side are whole heads."""
    rows, heads, width = tensor.shape
    buffer = tensor.new_full((rows + 5, heads + 3, width), float("nan"))
    buffer[2:-3, 1:-2] = tensor
    return buffer[2:-3, 1:-2]


def columns_of_wider_rows(tensor: Tensor) -> Tensor:
    """Rows of an odd number of elements where theirs is even: no two of them are aligned alike."""
    return torch.nn.functional.pad(tensor, (3, 2), value=float("nan"))[..., 3:-2]


def off_its_alignment(tensor: Tensor) -> Tensor:
    buffer = tensor.new_full((tensor.numel() + 1,), float("nan"))
    buffer[1:] = tensor.flatten()
    return buffer[1:].view(tensor.shape)


def rows_far_apart(tensor: Tensor) -> Tensor:
    """Offsets beyond 32 bits, for a few rows of halves: of NumPy's zeros only the pages that are touched exist."""
    assert tensor.dtype == torch.float16
    strides = (2**30, *tensor.contiguous().stride()[1:])
    size = (len(tensor) - 1) * 2**30 + tensor[0].numel()
    buffer = tensor.new_zeros(size) if tensor.is_cuda else torch.from_numpy(np.zeros(size, np.float16))
    return buffer.as_strided(tensor.shape, strides).copy_(tensor)


def strided_last(tensor: Tensor) -> Tensor:
    """What every op refuses: columns that are not side by side."""
    return torch.stack([tensor, tensor], dim=-1).flatten(-2)[..., ::2]
