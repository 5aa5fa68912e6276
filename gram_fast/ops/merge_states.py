"""`merge_states`: log-sum-exp merge of partial attention results.

Shape letters: T queries, H query heads, E head width.
"""

import torch
from torch import Tensor

from gram_fast.extension import _C
from gram_fast.kernels.merge_states import merge_states_reference
from gram_fast.ops.backends import check_backend
from gram_fast.ops.checks import DTYPES, expect, expect_like, on_device_of, stream_of


@torch.library.custom_op("gram_fast::merge_states", mutates_args=("out_THE", "lse_TH"))
def merge_states(out_THE: Tensor, lse_TH: Tensor, other_out_THE: Tensor, other_lse_TH: Tensor, *, backend: str) -> None:
    """Merges attention results over two disjoint key sets, in place, by log-sum-exp (arXiv 1805.02867).

    Args:
        out_THE: float32 [T, H, E], result over the first key set; becomes the result over both.
        lse_TH: float32 [T, H], natural log-sum-exp of its scores, -inf where there was no key; becomes that of both.
        other_out_THE: [T, H, E], float32, float16 or bfloat16.
        other_lse_TH: float32 [T, H].
        backend: one of BACKENDS["merge_states"].

    Any strides with a contiguous E. Raises ValueError on a wrong shape, dtype, stride or device, BackendError on a
    backend that cannot run.
    """
    expect(out_THE.dim() == 3, "out_THE", "3 dimensions", out_THE.dim())
    shape, device = tuple(out_THE.shape), out_THE.device
    expect_like(out_THE, "out_THE", shape, (torch.float32,), device)
    expect_like(other_out_THE, "other_out_THE", shape, DTYPES, device)
    for argument, lse in (("lse_TH", lse_TH), ("other_lse_TH", other_lse_TH)):
        expect(tuple(lse.shape) == shape[:2], argument, f"shape {shape[:2]}", tuple(lse.shape))
        expect(
            lse.dtype == torch.float32 and lse.device == device,
            argument,
            f"float32 on {device}",
            f"{lse.dtype} on {lse.device}",
        )
    check_backend("merge_states", backend, device, other_out_THE.dtype)
    if backend == "reference":
        return merge_states_reference(out_THE, lse_TH, other_out_THE, other_lse_TH)
    with on_device_of(out_THE):
        if backend == "triton":
            from gram_fast.kernels.merge_states_triton import merge_states_triton

            return merge_states_triton(out_THE, lse_TH, other_out_THE, other_lse_TH)
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
            shape,
            stream_of(out_THE),
        )


@merge_states.register_fake
def _(out_THE: Tensor, lse_TH: Tensor, other_out_THE: Tensor, other_lse_TH: Tensor, *, backend: str) -> None:
    pass
