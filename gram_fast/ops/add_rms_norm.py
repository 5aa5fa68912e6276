"""`add_rms_norm`: addition to the residual stream, then RMSNorm.

Shape letters: T packed tokens, D model width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gram_fast.extension import _C
from gram_fast.kernels.add_rms_norm import add_rms_norm_reference
from gram_fast.ops.backends import Backends, check_backend
from gram_fast.ops.checks import DTYPES, Sizes, expect, on_device_of

BACKENDS = Backends(("reference", "triton", "extension"), cpu_only=("extension",))

AddRmsNorm = Callable[[Tensor, Tensor | None, Tensor, float], Tensor]
"""(residual_TD, x_TD or None, weight_D, eps) -> normed [T, D]."""


def implementation(backend: str) -> AddRmsNorm:
    """The function that runs `add_rms_norm` on a backend. It trusts its arguments."""
    if backend == "reference":
        return add_rms_norm_reference
    if backend == "extension":
        return _add_rms_norm_extension
    from gram_fast.kernels.add_rms_norm_triton import add_rms_norm_triton

    return add_rms_norm_triton


def _add_rms_norm_extension(residual_TD: Tensor, x_TD: Tensor | None, weight_D: Tensor, eps: float) -> Tensor:
    normed_TD = torch.empty_like(residual_TD, memory_format=torch.contiguous_format)
    _C.add_rms_norm(
        residual_TD.data_ptr(),
        residual_TD.stride(0),
        0 if x_TD is None else x_TD.data_ptr(),
        0 if x_TD is None else x_TD.stride(0),
        weight_D.data_ptr(),
        eps,
        normed_TD.data_ptr(),
        DTYPES.index(residual_TD.dtype),
        residual_TD.shape,
    )
    return normed_TD


@torch.library.custom_op("gram_fast::add_rms_norm", mutates_args=("residual_TD",))
def add_rms_norm(residual_TD: Tensor, x_TD: Tensor | None, weight_D: Tensor, eps: float, *, backend: str) -> Tensor:
    """Adds to the residual stream in place and returns its RMSNorm (arXiv 1910.07467) -> [T, D], contiguous.

    The sum is computed in float32 and rounded once; so is the norm of the rounded sum. With the backend "extension" the
    bits of a row depend on its values alone.

    Args:
        residual_TD: residual stream [T, D], float32, float16 or bfloat16; becomes residual_TD + x_TD.
        x_TD: [T, D], dtype as residual_TD, or None: nothing is added.
        weight_D: weight of the norm, dtype as residual_TD.
        eps: epsilon of the norm.
        backend: one of BACKENDS["add_rms_norm"].

    Rows may have any stride; D must be contiguous. Raises ValueError on a wrong shape, dtype, stride or device,
    BackendError on a backend that cannot run.
    """
    sizes = Sizes(residual_TD.device)
    sizes.check(DTYPES, residual_TD=residual_TD)
    sizes.check((residual_TD.dtype,), x_TD=x_TD, weight_D=weight_D)
    check_backend("add_rms_norm", backend, residual_TD.device, residual_TD.dtype)
    if backend == "triton":
        from gram_fast.kernels.add_rms_norm_triton import MAX_WIDTH

        widest = f"a width of at most {MAX_WIDTH} for backend 'triton'"
        expect(sizes["D"] <= MAX_WIDTH, "residual_TD", widest, sizes["D"])
    with on_device_of(residual_TD):
        return implementation(backend)(residual_TD, x_TD, weight_D, eps)


@add_rms_norm.register_fake
def _(residual_TD: Tensor, *_: object, **__: object) -> Tensor:
    return residual_TD.new_empty(residual_TD.shape)
