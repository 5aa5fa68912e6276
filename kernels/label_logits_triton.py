"""Triton kernel of `label_logits`, in one launch.

Shape letters: T packed tokens, D model width, L leaves of the call or of a block.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
import torch
import triton
import triton.language as tl
from torch import Tensor

from gram_fast.kernels.compilation import TYPES, Compilation


@triton.jit(do_not_specialize=["num_leaves"])
def _label_logits_kernel(
    hidden, rows, label_weight, norm_weight, logits, hidden_stride, num_leaves, eps,
    WIDTH: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program per block of leaves: reads each row once for the sum of squares and both products, then scales."""
    leaf_L = tl.program_id(0).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    is_leaf_L = leaf_L < num_leaves
    hidden += (tl.load(rows + leaf_L, mask=is_leaf_L, other=0) * hidden_stride)[:, None]
    squares_LD = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
    a_LD = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
    b_LD = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
    for start in range(0, WIDTH, BLOCK_D):
        column_1D = start + tl.arange(0, BLOCK_D)[None, :]
        is_column_1D = column_1D < WIDTH
        hidden_LD = tl.load(hidden + column_1D, mask=is_leaf_L[:, None] & is_column_1D, other=0.0).to(tl.float32)
        weight_a_1D = tl.load(label_weight + column_1D, mask=is_column_1D, other=0.0).to(tl.float32)
        weight_b_1D = tl.load(label_weight + WIDTH + column_1D, mask=is_column_1D, other=0.0).to(tl.float32)
        if norm_weight is not None:
            norm_1D = tl.load(norm_weight + column_1D, mask=is_column_1D, other=0.0).to(tl.float32)
            weight_a_1D *= norm_1D
            weight_b_1D *= norm_1D
            squares_LD += hidden_LD * hidden_LD
        a_LD += hidden_LD * weight_a_1D
        b_LD += hidden_LD * weight_b_1D
    a_L, b_L = tl.sum(a_LD, axis=1), tl.sum(b_LD, axis=1)
    if norm_weight is not None:
        scale_L = tl.rsqrt(tl.sum(squares_LD, axis=1) / WIDTH + eps)
        a_L *= scale_L
        b_L *= scale_L
    tl.store(logits + 2 * leaf_L, a_L, mask=is_leaf_L)
    tl.store(logits + 2 * leaf_L + 1, b_L, mask=is_leaf_L)


def launch_shape(num_leaves: int, width: int) -> tuple[int, int, int]:
    """Leaves and columns of a block, and number of warps, with 8 columns per thread.

    One leaf per program spreads few leaves over the chip. Many leaves fill it anyway, and four or more in a block share
    the reads of the weights.
    """
    block_d = triton.next_power_of_2(max(width, 1))
    if num_leaves < 1024:
        return 1, min(block_d, 2048), min(max(block_d // 256, 1), 8)
    block_d = min(block_d, 1024)
    return 4096 // block_d, block_d, 4


def label_logits_triton(
    hidden_TD: Tensor,
    rows_L: Tensor,
    label_weight_2D: Tensor,
    norm_weight_D: Tensor | None,
    eps: float,
) -> Tensor:
    """`label_logits` in one launch."""
    num_leaves, width = len(rows_L), hidden_TD.shape[1]
    logits_L2 = torch.empty((num_leaves, 2), dtype=torch.float32, device=hidden_TD.device)
    if not num_leaves:
        return logits_L2
    block_l, block_d, num_warps = launch_shape(num_leaves, width)
    _label_logits_kernel[(triton.cdiv(num_leaves, block_l),)](
        hidden_TD, rows_L, label_weight_2D, norm_weight_D, logits_L2, hidden_TD.stride(0), num_leaves, eps,
        WIDTH=width, BLOCK_L=block_l, BLOCK_D=block_d, num_warps=num_warps, num_stages=1,
    )  # fmt: skip
    return logits_L2


def compilations() -> list[Compilation]:
    """Launches for few leaves and for many, by dtype, and one without a norm."""
    cases = [("bfloat16", num_leaves, width, True) for num_leaves in (63, 4032) for width in (2048, 5120)]
    cases += [("bfloat16", 63, 4096, False), ("float16", 4032, 4096, True), ("float32", 4032, 4096, True)]
    found = []
    for dtype, num_leaves, width, has_norm in cases:
        block_l, block_d, num_warps = launch_shape(num_leaves, width)
        pointers = ("hidden", "label_weight", "norm_weight") if has_norm else ("hidden", "label_weight")
        signature = dict.fromkeys(pointers, f"*{TYPES[dtype]}") | {"rows": "*i64", "logits": "*fp32"}
        signature |= {"hidden_stride": "i32", "num_leaves": "i32", "eps": "fp32"}
        constants: dict[str, int | None] = {"WIDTH": width, "BLOCK_L": block_l, "BLOCK_D": block_d}
        constants |= {} if has_norm else {"norm_weight": None}
        name = f"label_logits {TYPES[dtype]} D={width} L={block_l}{'' if has_norm else ' no norm'}"
        found.append(Compilation(name, _label_logits_kernel, signature, constants, num_warps, 1))
    return found
