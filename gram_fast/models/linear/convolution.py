"""Short causal convolutions over the pieces of a pass, by transformers' own function.

Shape letters: T packed tokens, C channels, K width of the kernel.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gram_fast.models.linear.mixing import Mixing


def causal_conv1d(
    mixing: Mixing, function: Callable[..., Tensor], x: Tensor, weight: Tensor, *more: Any, **options: Any
) -> Tensor:
    """Convolves packed inputs [1, C, T] along their paths with kernels [C, K] -> [1, C, T].

    One call, with the K - 1 inputs of its path put before each piece, whose results are dropped.
    """
    width = weight.shape[-1] - 1
    x_TC = x[0].transpose(0, 1)
    kept = mixing.buffer((width, x_TC.shape[1]), x.dtype, x.device)
    windows = mixing.pieces.windows(width, x.device)
    bank = torch.cat([x_TC, kept[windows.read].flatten(0, 1)])
    out = function(bank.index_select(0, windows.inputs).transpose(0, 1)[None], weight, *more, **options)
    kept[windows.written] = bank[windows.kept]
    return out.index_select(2, windows.own)
