"""Reference of `swiglu`: the gated activation of a feed-forward layer."""

import torch
from torch import Tensor


def swiglu_reference(gate_up_TG: Tensor) -> Tensor:
    """`swiglu` in plain PyTorch: SwiGLU (arXiv 2002.05202) of the fused gate and up projections."""
    gate_TF, up_TF = gate_up_TG.to(torch.promote_types(gate_up_TG.dtype, torch.float32)).tensor_split(2, dim=-1)
    return (torch.nn.functional.silu(gate_TF) * up_TF).to(gate_up_TG.dtype)
