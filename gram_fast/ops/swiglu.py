"""`swiglu`: the gated activation of a feed-forward layer.

Shape letters: T packed tokens, G = 2F fused gate and up projections, F feed-forward width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gram_fast.extension import _C
from gram_fast.kernels.swiglu import swiglu_reference
from gram_fast.ops.backends import Backends, check_backend
from gram_fast.ops.checks import DTYPES, Sizes, expect, on_device_of

BACKENDS = Backends(("reference", "triton", "extension"), cpu_only=("extension",))

Swiglu = Callable[[Tensor], Tensor]
"""gate_up_TG -> gated [T, F]."""


def implementation(backend: str) -> Swiglu:
    """The function that runs `swiglu` on a backend. It trusts its arguments."""
    if backend == "reference":
        return swiglu_reference
    if backend == "extension":
        return _swiglu_extension
    from gram_fast.kernels.swiglu_triton import swiglu_triton

    return swiglu_triton


def _swiglu_extension(gate_up_TG: Tensor) -> Tensor:
    num_tokens, width = gate_up_TG.shape[0], gate_up_TG.shape[1] // 2
    out_TF = gate_up_TG.new_empty((num_tokens, width))
    _C.swiglu(
        gate_up_TG.data_ptr(),
        gate_up_TG.stride(0),
        out_TF.data_ptr(),
        DTYPES.index(gate_up_TG.dtype),
        (num_tokens, width),
    )
    return out_TF


@torch.library.custom_op("gram_fast::swiglu", mutates_args=())
def swiglu(gate_up_TG: Tensor, *, backend: str) -> Tensor:
    """Computes SwiGLU (arXiv 2002.05202), silu(gate) * up -> [T, F], contiguous, dtype as gate_up_TG.

    Computed in float32 and rounded once. With the backends "extension" (CPU) and "triton" the bits of an element depend
    on its gate and up values alone; torch's CPU silu, in "reference", uses one of two exponentials by the element's
    place.

    Args:
        gate_up_TG: gate projection, then up projection, [T, G] with an even G, float32, float16 or bfloat16, any row
            stride with a contiguous G.
        backend: one of BACKENDS["swiglu"].

    Raises ValueError on a wrong shape, dtype or stride, BackendError on a backend that cannot run.
    """
    sizes = Sizes(gate_up_TG.device)
    sizes.check(DTYPES, gate_up_TG=gate_up_TG)
    expect(sizes["G"] % 2 == 0, "gate_up_TG", "an even width", sizes["G"])
    check_backend("swiglu", backend, gate_up_TG.device, gate_up_TG.dtype)
    with on_device_of(gate_up_TG):
        return implementation(backend)(gate_up_TG)


@swiglu.register_fake
def _(gate_up_TG: Tensor, **_: object) -> Tensor:
    return gate_up_TG.new_empty((gate_up_TG.shape[0], gate_up_TG.shape[1] // 2))
