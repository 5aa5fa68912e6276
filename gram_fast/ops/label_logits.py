"""`label_logits`: the two numbers that a judge's answer is read from.

Shape letters: T packed tokens, D model width, L leaves.
"""

import torch
from torch import Tensor

from gram_fast.extension import _C
from gram_fast.kernels.label_logits import label_logits_reference
from gram_fast.ops.backends import check_backend
from gram_fast.ops.checks import DTYPES, expect, expect_like, on_device_of, stream_of


@torch.library.custom_op("gram_fast::label_logits", mutates_args=())
def label_logits(
    hidden_TD: Tensor,
    rows_L: Tensor,
    label_weight_2D: Tensor,
    norm_weight_D: Tensor | None = None,
    eps: float = 0.0,
    *,
    backend: str,
) -> Tensor:
    """Logits of the two label tokens -> float32 [L, 2], computed in float32.

    Args:
        hidden_TD: hidden states [T, D], float32, float16 or bfloat16, D contiguous.
        rows_L: int64 [L], the row of each leaf's last token, 0 <= row < T.
        label_weight_2D: the rows of the output embedding for "A" and "B", dtype as hidden_TD, contiguous.
        norm_weight_D: weight of the final RMSNorm, dtype as hidden_TD, or None when hidden states are normalised.
        eps: epsilon of that norm.
        backend: one of BACKENDS["label_logits"].

    Raises ValueError on a wrong shape, dtype, stride or device, and on the CPU on a row out of range (on CUDA the rows
    are not read back: the plan that makes them is trusted); BackendError on a backend that cannot run.
    """
    expect(hidden_TD.dim() == 2, "hidden_TD", "2 dimensions", hidden_TD.dim())
    (num_tokens, width), device, dtype = hidden_TD.shape, hidden_TD.device, hidden_TD.dtype
    expect_like(hidden_TD, "hidden_TD", (num_tokens, width), DTYPES, device)
    expect(rows_L.dim() == 1, "rows_L", "1 dimension", rows_L.dim())
    expect_like(rows_L, "rows_L", (len(rows_L),), (torch.int64,), device)
    expect_like(label_weight_2D, "label_weight_2D", (2, width), (dtype,), device)
    expect(label_weight_2D.is_contiguous(), "label_weight_2D", "a contiguous tensor", label_weight_2D.stride())
    if norm_weight_D is not None:
        expect_like(norm_weight_D, "norm_weight_D", (width,), (dtype,), device)
    if not rows_L.is_cuda and len(rows_L):
        low, high = int(rows_L.min()), int(rows_L.max())
        expect(low >= 0 and high < num_tokens, "rows_L", f"rows from 0 to {num_tokens - 1}", f"{low} to {high}")
    check_backend("label_logits", backend, device, dtype)
    if backend == "reference":
        return label_logits_reference(hidden_TD, rows_L, label_weight_2D, norm_weight_D, eps)
    with on_device_of(hidden_TD):
        if backend == "triton":
            from gram_fast.kernels.label_logits_triton import label_logits_triton

            return label_logits_triton(hidden_TD, rows_L, label_weight_2D, norm_weight_D, eps)
        logits_L2 = torch.empty((len(rows_L), 2), dtype=torch.float32, device=device)
        _C.label_logits(
            hidden_TD.data_ptr(),
            hidden_TD.stride(0),
            rows_L.data_ptr(),
            label_weight_2D.data_ptr(),
            0 if norm_weight_D is None else norm_weight_D.data_ptr(),
            eps,
            logits_L2.data_ptr(),
            DTYPES.index(dtype),
            (len(rows_L), width),
            stream_of(hidden_TD),
        )
    return logits_L2


@label_logits.register_fake
def _(
    hidden_TD: Tensor,
    rows_L: Tensor,
    label_weight_2D: Tensor,
    norm_weight_D: Tensor | None = None,
    eps: float = 0.0,
    *,
    backend: str,
) -> Tensor:
    return hidden_TD.new_empty((rows_L.shape[0], 2), dtype=torch.float32)
