"""`swiglu_fp8`: the gated activation of a feed-forward layer, quantized for an FP8 product.

Shape letters: T packed tokens, G = 2F fused gate and up projections, F feed-forward width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gram_fast.kernels.quantize_rows import empty_quantized
from gram_fast.kernels.swiglu_fp8 import swiglu_fp8_reference
from gram_fast.ops.backends import Backends, check_backend
from gram_fast.ops.checks import DTYPES, Sizes, expect, on_device_of

BACKENDS = Backends(("reference", "triton"), capability=(8, 9))

SwigluFp8 = Callable[[Tensor], tuple[Tensor, Tensor]]
"""gate_up_TG -> values float8_e4m3fn [T, F], scales float32 [T, 1]."""


def implementation(backend: str) -> SwigluFp8:
    """The function that runs `swiglu_fp8` on a backend. It trusts its arguments."""
    if backend == "reference":
        return swiglu_fp8_reference
    from gram_fast.kernels.swiglu_fp8_triton import swiglu_fp8_triton

    return swiglu_fp8_triton


@torch.library.custom_op("gram_fast::swiglu_fp8", mutates_args=())
def swiglu_fp8(gate_up_TG: Tensor, *, backend: str) -> tuple[Tensor, Tensor]:
    """Computes `quantize_rows(swiglu(...))` -> values float8_e4m3fn [T, F], scales float32 [T, 1].

    The activation is rounded to the dtype of `gate_up_TG` before it is quantized, as if it had been stored.

    Args:
        gate_up_TG: as for `swiglu`, of at least two columns.
        backend: one of BACKENDS["swiglu_fp8"]; "triton" needs compute capability 8.9.

    Raises ValueError on a wrong shape, dtype or stride, BackendError on a backend that cannot run.
    """
    sizes = Sizes(gate_up_TG.device)
    sizes.check(DTYPES, gate_up_TG=gate_up_TG)
    expect(sizes["G"] % 2 == 0 and sizes["G"] > 0, "gate_up_TG", "an even width above 0", sizes["G"])
    check_backend("swiglu_fp8", backend, gate_up_TG.device, gate_up_TG.dtype)
    if backend == "triton":
        from gram_fast.kernels.add_rms_norm_triton import MAX_WIDTH

        widest = f"a width of at most {2 * MAX_WIDTH} for backend 'triton'"
        expect(sizes["G"] <= 2 * MAX_WIDTH, "gate_up_TG", widest, sizes["G"])
    with on_device_of(gate_up_TG):
        return implementation(backend)(gate_up_TG)


@swiglu_fp8.register_fake
def _(gate_up_TG: Tensor, **_: object) -> tuple[Tensor, Tensor]:
    return empty_quantized(gate_up_TG.shape[0], gate_up_TG.shape[1] // 2, gate_up_TG.device)
