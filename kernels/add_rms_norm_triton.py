"""Triton kernel of `add_rms_norm`: one launch; each row is read once and stays in registers.

Shape letters: T packed tokens, D model width.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
import torch
import triton
import triton.language as tl
from torch import Tensor

from gram_fast.kernels.compilation import TYPES, Compilation
from gram_fast.kernels.float8 import store_quantized

MAX_WIDTH = 65536
"""Widest row that one block takes: 64 elements for each of the 1024 threads of a program."""


@triton.jit
def add_rms_norm_kernel(
    residual, x, weight, out, scales, residual_stride, x_stride, eps, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """One program per row. With `scales`, `out` is float8."""
    row = tl.program_id(0).to(tl.int64)
    column_D = tl.arange(0, BLOCK_D)
    is_column_D = column_D < WIDTH
    residual += row * residual_stride
    sum_D = tl.load(residual + column_D, mask=is_column_D, other=0.0).to(tl.float32)
    weight_D = tl.load(weight + column_D, mask=is_column_D, other=0.0).to(tl.float32)
    if x is not None:
        x_D = tl.load(x + row * x_stride + column_D, mask=is_column_D, other=0.0).to(tl.float32)
        new_D = (sum_D + x_D).to(residual.dtype.element_ty)
        tl.store(residual + column_D, new_D, mask=is_column_D)
        sum_D = new_D.to(tl.float32)
    scale = tl.rsqrt(tl.sum(sum_D * sum_D) / WIDTH + eps)
    normed_D = sum_D * scale * weight_D
    rounded_D = normed_D.to(residual.dtype.element_ty)
    if scales is None:
        tl.store(out + row * WIDTH + column_D, rounded_D, mask=is_column_D)
    else:
        store_quantized(rounded_D.to(tl.float32), out + row * WIDTH, scales + row, column_D, is_column_D)


def launch_shape(width: int) -> tuple[int, int]:
    """Block width and number of warps: the row is one block, with 16 elements per thread up to 1024 threads."""
    block = triton.next_power_of_2(width)
    return block, min(max(block // 512, 1), 32)


def add_rms_norm_triton(residual_TD: Tensor, x_TD: Tensor | None, weight_D: Tensor, eps: float) -> Tensor:
    """`add_rms_norm` in one launch."""
    num_tokens, width = residual_TD.shape
    normed_TD = torch.empty((num_tokens, width), dtype=residual_TD.dtype, device=residual_TD.device)
    if not normed_TD.numel():
        return normed_TD
    block, num_warps = launch_shape(width)
    add_rms_norm_kernel[(num_tokens,)](
        residual_TD, x_TD, weight_D, normed_TD, None,
        residual_TD.stride(0), 0 if x_TD is None else x_TD.stride(0), eps,
        WIDTH=width, BLOCK_D=block, num_warps=num_warps, num_stages=1,
    )  # fmt: skip
    return normed_TD


def compilations(is_fp8: bool = False) -> list[Compilation]:
    """Launches by dtype and model width; with `is_fp8` those of `add_rms_norm_fp8`.

    Those without an addend follow products that add to the residual.
    """
    cases = [("bfloat16", width, True) for width in (1024, 2048, 4096, 5120)]
    cases += [("bfloat16", width, False) for width in (1024, 2048, 4096, 5120)]
    cases += [("float16", 4096, True), ("float32", 4096, True)]
    found = []
    for dtype, width, has_x in cases:
        block, num_warps = launch_shape(width)
        pointers = ("residual", "x", "weight", "out") if has_x else ("residual", "weight", "out")
        signature = dict.fromkeys(pointers, f"*{TYPES[dtype]}")
        signature |= {"out": "*fp8e4nv", "scales": "*fp32"} if is_fp8 else {}
        signature |= {"residual_stride": "i32", "x_stride": "i32", "eps": "fp32"}
        constants: dict[str, int | None] = {"WIDTH": width, "BLOCK_D": block}
        constants |= ({} if has_x else {"x": None}) | ({} if is_fp8 else {"scales": None})
        name = f"add_rms_norm{'_fp8' if is_fp8 else ''} {TYPES[dtype]} D={width}{'' if has_x else ' no addend'}"
        # Compute capability 8.0 has no conversion to float8.
        chips = (90, 100) if is_fp8 else (80, 90, 100)
        found.append(Compilation(name, add_rms_norm_kernel, signature, constants, num_warps, 1, chips))
    return found
