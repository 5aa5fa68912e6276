"""`add_rms_norm_fp8`: `add_rms_norm` whose result is quantized, for FP8 products.

Shape letters: T packed tokens, D model width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gram_fast.kernels.add_rms_norm_fp8 import add_rms_norm_fp8_reference
from gram_fast.kernels.quantize_rows import empty_quantized
from gram_fast.ops.backends import Backends, check_backend
from gram_fast.ops.checks import DTYPES, Sizes, expect, on_device_of

BACKENDS = Backends(("reference", "triton"), capability=(8, 9))

AddRmsNormFp8 = Callable[[Tensor, Tensor | None, Tensor, float], tuple[Tensor, Tensor]]
"""(residual_TD, x_TD or None, weight_D, eps) -> values float8_e4m3fn [T, D], scales float32 [T, 1]."""


def implementation(backend: str) -> AddRmsNormFp8:
    """The function that runs `add_rms_norm_fp8` on a backend. It trusts its arguments."""
    if backend == "reference":
        return add_rms_norm_fp8_reference
    from gram_fast.kernels.add_rms_norm_fp8_triton import add_rms_norm_fp8_triton

    return add_rms_norm_fp8_triton


@torch.library.custom_op("gram_fast::add_rms_norm_fp8", mutates_args=("residual_TD",))
def add_rms_norm_fp8(
    residual_TD: Tensor, x_TD: Tensor | None, weight_D: Tensor, eps: float, *, backend: str
) -> tuple[Tensor, Tensor]:
    """Computes `quantize_rows(add_rms_norm(...))` -> values float8_e4m3fn [T, D], scales float32 [T, 1].

    The norm is rounded to the dtype of `residual_TD` before it is quantized, as if it had been stored.

    Args:
        residual_TD, x_TD, weight_D, eps: as for `add_rms_norm`; D is at least 1.
        backend: one of BACKENDS["add_rms_norm_fp8"]; "triton" needs compute capability 8.9.

    Raises ValueError and BackendError as `add_rms_norm` does.
    """
    sizes = Sizes(residual_TD.device)
    sizes.check(DTYPES, residual_TD=residual_TD)
    sizes.check((residual_TD.dtype,), x_TD=x_TD, weight_D=weight_D)
    expect(sizes["D"] > 0, "residual_TD", "at least one column", 0)
    check_backend("add_rms_norm_fp8", backend, residual_TD.device, residual_TD.dtype)
    if backend == "triton":
        from gram_fast.kernels.add_rms_norm_triton import MAX_WIDTH

        widest = f"a width of at most {MAX_WIDTH} for backend 'triton'"
        expect(sizes["D"] <= MAX_WIDTH, "residual_TD", widest, sizes["D"])
    with on_device_of(residual_TD):
        return implementation(backend)(residual_TD, x_TD, weight_D, eps)


@add_rms_norm_fp8.register_fake
def _(residual_TD: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
    return empty_quantized(residual_TD.shape[0], residual_TD.shape[1], residual_TD.device)
