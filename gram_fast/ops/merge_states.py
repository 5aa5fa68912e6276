"""`merge_states`: merge of two attention results over disjoint sets of keys.

Shape letters: T queries, H query heads, E head width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gram_fast.extension import _C
from gram_fast.kernels.merge_states import merge_states_reference
from gram_fast.ops.backends import Backends, check_backend
from gram_fast.ops.checks import DTYPES, Sizes, on_device_of, stream_of

BACKENDS = Backends(("reference", "triton", "extension"))

MergeStates = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""(out_THE, lse_TH, other_out_THE, other_lse_TH) -> None; writes the first two."""


def implementation(backend: str) -> MergeStates:
    """The function that runs `merge_states` on a backend. It trusts its arguments."""
    if backend == "reference":
        return merge_states_reference
    if backend == "extension":
        return _merge_states_extension
    from gram_fast.kernels.merge_states_triton import merge_states_triton

    return merge_states_triton


def _merge_states_extension(out_THE: Tensor, lse_TH: Tensor, other_out_THE: Tensor, other_lse_TH: Tensor) -> None:
    _C.merge_states(
        out_THE.data_ptr(),
        out_THE.stride()[:2],
        lse_TH.data_ptr(),
        lse_TH.stride(),
        other_out_THE.data_ptr(),
        other_out_THE.stride()[:2],
        other_lse_TH.data_ptr(),
        other_lse_TH.stride(),
        DTYPES.index(other_out_THE.dtype),
        out_THE.shape,
        stream_of(out_THE),
    )


@torch.library.custom_op("gram_fast::merge_states", mutates_args=("out_THE", "lse_TH"))
def merge_states(out_THE: Tensor, lse_TH: Tensor, other_out_THE: Tensor, other_lse_TH: Tensor, *, backend: str) -> None:
    """Merges attention results over two disjoint sets of keys, in place, by log-sum-exp (arXiv 1805.02867).

    Args:
        out_THE: float32 [T, H, E], result over the first set; becomes the result over both.
        lse_TH: float32 [T, H], natural log-sum-exp of its scores, -inf where there is no key; becomes that of both.
        other_out_THE: result over the second set, [T, H, E], float32, float16 or bfloat16.
        other_lse_TH: float32 [T, H], its log-sum-exp.
        backend: one of BACKENDS["merge_states"].

    Strides may be any; E must be contiguous. Raises ValueError on a wrong shape, dtype, stride or device, BackendError
    on a backend that cannot run.
    """
    sizes = Sizes(out_THE.device)
    sizes.check((torch.float32,), out_THE=out_THE)
    sizes.check(DTYPES, other_out_THE=other_out_THE)
    sizes.check((torch.float32,), any_strides=True, lse_TH=lse_TH, other_lse_TH=other_lse_TH)
    check_backend("merge_states", backend, out_THE.device, other_out_THE.dtype)
    with on_device_of(out_THE):
        implementation(backend)(out_THE, lse_TH, other_out_THE, other_lse_TH)


@merge_states.register_fake
def _(*_: object, **__: object) -> None:
    pass
