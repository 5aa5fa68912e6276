"""Triton kernel of `swiglu`, in one launch.

Shape letters: T packed tokens, G = 2F fused gate and up projections, F feed-forward width.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
import torch
import triton
import triton.language as tl
from torch import Tensor

from gram_fast.kernels.compilation import TYPES, Compilation


@triton.jit
def gated(gate_up, column_F, is_column_F, WIDTH: tl.constexpr):
    """Columns of the row at `gate_up`, in float32: zero where they are masked."""
    gate_F = tl.load(gate_up + column_F, mask=is_column_F, other=0.0).to(tl.float32)
    up_F = tl.load(gate_up + WIDTH + column_F, mask=is_column_F, other=0.0).to(tl.float32)
    return gate_F / (1.0 + tl.exp(-gate_F)) * up_F


@triton.jit
def _swiglu_kernel(gate_up, out, gate_up_stride, WIDTH: tl.constexpr, BLOCK_F: tl.constexpr):
    """One program per block of columns of a row. The grid has one dimension: the others are limited to 65,535."""
    blocks = tl.cdiv(WIDTH, BLOCK_F)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column_F = tl.program_id(0) % blocks * BLOCK_F + tl.arange(0, BLOCK_F)
    is_column_F = column_F < WIDTH
    gated_F = gated(gate_up + row * gate_up_stride, column_F, is_column_F, WIDTH)
    tl.store(out + row * WIDTH + column_F, gated_F.to(out.dtype.element_ty), mask=is_column_F)


def launch_shape(width: int) -> tuple[int, int]:
    """Block width, a divisor of the usual feed-forward widths, and number of warps, with 8 elements per thread."""
    block = min(triton.next_power_of_2(width), 1024)
    return block, max(block // 256, 1)


def swiglu_triton(gate_up_TG: Tensor) -> Tensor:
    """`swiglu` in one launch."""
    num_tokens, width = gate_up_TG.shape[0], gate_up_TG.shape[1] // 2
    out_TF = torch.empty((num_tokens, width), dtype=gate_up_TG.dtype, device=gate_up_TG.device)
    if not out_TF.numel():
        return out_TF
    block, num_warps = launch_shape(width)
    _swiglu_kernel[(num_tokens * triton.cdiv(width, block),)](
        gate_up_TG, out_TF, gate_up_TG.stride(0), WIDTH=width, BLOCK_F=block, num_warps=num_warps, num_stages=1
    )  # fmt: skip
    return out_TF


def compilations() -> list[Compilation]:
    """Launches by dtype; every width from 1024 on has the same block."""
    found = []
    for dtype, kind in TYPES.items():
        width = 12288 if dtype == "bfloat16" else 6144
        block, num_warps = launch_shape(width)
        signature = {"gate_up": f"*{kind}", "out": f"*{kind}", "gate_up_stride": "i32"}
        constants = {"WIDTH": width, "BLOCK_F": block}
        found.append(Compilation(f"swiglu {kind} F={width}", _swiglu_kernel, signature, constants, num_warps, 1))
    return found
