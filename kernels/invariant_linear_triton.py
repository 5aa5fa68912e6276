"""Triton kernel of `invariant_linear`: a linear layer where the bits of a row depend on that row alone, in one launch.

Libraries choose the tile and the order of summation by the number of rows. Here the tile depends on the weight alone,
and one program sums over all of D in order.

Shape letters: T packed tokens, D width of the input, O width of the output, M rows of a tile, N columns of a tile, K
columns of the input in one step.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from gram_fast.kernels.compilation import TYPES, Compilation
from gram_fast.kernels.tree_attention_triton import PRECISION

# Rows of tiles that are computed together, so that they find the weight in the L2 cache.
_GROUP = 8


# One variant for all numbers of rows: specialised on 1 or on multiples of 16 there would be more.
@triton.jit(do_not_specialize=["num_tokens"])
def _invariant_linear_kernel(
    x, weight, bias, out, num_tokens,
    WIDTH: tl.constexpr, OUT_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per tile, in groups of tile rows and column by column within a group."""
    COLUMNS: tl.constexpr = (OUT_WIDTH + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    first_of_group = program // (GROUP * COLUMNS) * GROUP
    group = tl.minimum(tl.cdiv(num_tokens, BLOCK_M) - first_of_group, GROUP)
    first_row = (first_of_group + program % (GROUP * COLUMNS) % group) * BLOCK_M
    first_column = program % (GROUP * COLUMNS) // group * BLOCK_N

    # Rows and columns past the end repeat the last one and are not stored, so loads need no mask for them.
    row_M = tl.minimum(first_row + tl.arange(0, BLOCK_M), num_tokens - 1).to(tl.int64)
    column_N = tl.minimum(first_column + tl.arange(0, BLOCK_N), OUT_WIDTH - 1).to(tl.int64)
    step_K = tl.arange(0, BLOCK_K)
    x_MK = x + row_M[:, None] * WIDTH + step_K[None, :]
    weight_NK = weight + column_N[:, None] * WIDTH + step_K[None, :]
    acc_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, WIDTH, BLOCK_K):
        if WIDTH % BLOCK_K == 0:
            acc_MN = tl.dot(tl.load(x_MK), tl.trans(tl.load(weight_NK)), acc_MN, input_precision=PRECISION)
        else:
            is_step_1K = (start + step_K < WIDTH)[None, :]
            x_block_MK = tl.load(x_MK, mask=is_step_1K, other=0.0)
            weight_block_NK = tl.load(weight_NK, mask=is_step_1K, other=0.0)
            acc_MN = tl.dot(x_block_MK, tl.trans(weight_block_NK), acc_MN, input_precision=PRECISION)
        x_MK += BLOCK_K
        weight_NK += BLOCK_K
    if bias is not None:
        acc_MN += tl.load(bias + column_N).to(tl.float32)[None, :]

    stored_row_M = first_row.to(tl.int64) + tl.arange(0, BLOCK_M)
    stored_column_N = first_column + tl.arange(0, BLOCK_N)
    tl.store(
        out + stored_row_M[:, None] * OUT_WIDTH + stored_column_N[None, :],
        acc_MN.to(out.dtype.element_ty),
        mask=(stored_row_M < num_tokens)[:, None] & (stored_column_N < OUT_WIDTH)[None, :],
    )


@dataclass(frozen=True)
class LaunchShape:
    """Tile and warps of all launches with one weight."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def launch_shape(out_width: int, itemsize: int) -> LaunchShape:
    """Tile and warps by the weight alone, never by the number of rows. Not yet timed on a GPU.

    A tile of 128 x 256 reads the least input per product, and gives 1,024 rows x 4,096 columns 128 programs; with a
    narrower weight most of the chip would be idle.
    """
    if itemsize == 4:
        return LaunchShape(64, 64, 32, 4, 3)
    return LaunchShape(128, 256, 64, 8, 3) if out_width >= 4096 else LaunchShape(128, 128, 64, 8, 3)


def invariant_linear_triton(x_TD: Tensor, weight_OD: Tensor, bias_O: Tensor | None) -> Tensor:
    """`invariant_linear` in one launch. Tensors are contiguous; x_TD starts at a multiple of 16 bytes."""
    num_tokens, width = x_TD.shape
    out_width = len(weight_OD)
    out_TO = torch.empty((num_tokens, out_width), dtype=x_TD.dtype, device=x_TD.device)
    if not out_TO.numel():
        return out_TO
    shape = launch_shape(out_width, x_TD.element_size())
    grid = (triton.cdiv(num_tokens, shape.block_m) * triton.cdiv(out_width, shape.block_n),)
    _invariant_linear_kernel[grid](
        x_TD, weight_OD, bias_O, out_TO, num_tokens,
        WIDTH=width, OUT_WIDTH=out_width, BLOCK_M=shape.block_m, BLOCK_N=shape.block_n, BLOCK_K=shape.block_k,
        GROUP=_GROUP, PRECISION=PRECISION, num_warps=shape.num_warps, num_stages=shape.num_stages,
    )  # fmt: skip
    return out_TO


def compilations() -> list[Compilation]:
    """Launches of both tiles of 16-bit types, with and without a bias and a masked end of D, and of float32."""
    cases = [("bfloat16", 4096, 6144, False), ("bfloat16", 3584, 4608, True), ("bfloat16", 2048, 2048, False)]
    cases += [("bfloat16", 1000, 4096, False), ("float16", 4096, 6144, False), ("float32", 1024, 3072, True)]
    return [_compilation(*case) for case in cases]


def _compilation(dtype: str, width: int, out_width: int, has_bias: bool) -> Compilation:
    shape = launch_shape(out_width, 4 if dtype == "float32" else 2)
    pointers = ("x", "weight", "bias", "out") if has_bias else ("x", "weight", "out")
    constants: dict[str, int | str | None] = {
        "WIDTH": width, "OUT_WIDTH": out_width, "BLOCK_M": shape.block_m, "BLOCK_N": shape.block_n,
        "BLOCK_K": shape.block_k, "GROUP": _GROUP, "PRECISION": PRECISION,
    }  # fmt: skip
    return Compilation(
        name=f"invariant_linear {TYPES[dtype]} D={width} O={out_width}{' bias' if has_bias else ''}",
        kernel=_invariant_linear_kernel,
        signature=dict.fromkeys(pointers, f"*{TYPES[dtype]}") | {"num_tokens": "i32"},
        constants=constants | ({} if has_bias else {"bias": None}),
        num_warps=shape.num_warps,
        num_stages=shape.num_stages,
    )
