"""`add_rms_norm`: what stands between two parts of a layer.

Shape letters: T packed tokens, D model width.
"""

import torch
from torch import Tensor

from gram_fast.kernels.add_rms_norm import add_rms_norm_reference
from gram_fast.ops.backends import check_backend
from gram_fast.ops.checks import DTYPES, expect, expect_like, on_device_of


@torch.library.custom_op("gram_fast::add_rms_norm", mutates_args=("residual_TD",))
def add_rms_norm(residual_TD: Tensor, x_TD: Tensor | None, weight_D: Tensor, eps: float, *, backend: str) -> Tensor:
    """Adds to the residual stream, in place, and gives its RMSNorm (arXiv 1910.07467) -> [T, D], contiguous.

    The sum is made in float32 and rounded once; the norm of the rounded sum likewise.

    Args:
        residual_TD: residual stream [T, D], float32, float16 or bfloat16; becomes residual_TD + x_TD.
        x_TD: [T, D], dtype as residual_TD, or None: nothing is added.
        weight_D: weight of the norm, dtype as residual_TD.
        eps: epsilon of the norm.
        backend: one of BACKENDS["add_rms_norm"].

    Any row strides with a contiguous D. Raises ValueError on a wrong shape, dtype, stride or device, BackendError on a
    backend that cannot run.
    """
    expect(residual_TD.dim() == 2, "residual_TD", "2 dimensions", residual_TD.dim())
    shape, device, dtype = tuple(residual_TD.shape), residual_TD.device, residual_TD.dtype
    expect_like(residual_TD, "residual_TD", shape, DTYPES, device)
    if x_TD is not None:
        expect_like(x_TD, "x_TD", shape, (dtype,), device)
    expect_like(weight_D, "weight_D", shape[1:], (dtype,), device)
    check_backend("add_rms_norm", backend, device, dtype)
    if backend == "reference":
        return add_rms_norm_reference(residual_TD, x_TD, weight_D, eps)
    from gram_fast.kernels.add_rms_norm_triton import MAX_WIDTH, add_rms_norm_triton

    expect(shape[1] <= MAX_WIDTH, "residual_TD", f"a width of at most {MAX_WIDTH} for backend 'triton'", shape[1])
    with on_device_of(residual_TD):
        return add_rms_norm_triton(residual_TD, x_TD, weight_D, eps)


@add_rms_norm.register_fake
def _(residual_TD: Tensor, x_TD: Tensor | None, weight_D: Tensor, eps: float, *, backend: str) -> Tensor:
    return residual_TD.new_empty(residual_TD.shape)
