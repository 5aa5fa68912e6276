"""`label_logits`: logits of the two label tokens, from which a judge's answer is read.

Shape letters: T packed tokens, D model width, L leaves.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gram_fast.extension import _C
from gram_fast.kernels.label_logits import label_logits_reference
from gram_fast.ops.backends import Backends, check_backend
from gram_fast.ops.checks import DTYPES, Sizes, expect, on_device_of, stream_of

BACKENDS = Backends(("reference", "triton", "extension"))

LabelLogits = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
"""(hidden_TD, rows_L, label_weight_2D, norm_weight_D or None, eps) -> logits, float32 [L, 2]."""


def implementation(backend: str) -> LabelLogits:
    """The function that runs `label_logits` on a backend. It trusts its arguments."""
    if backend == "reference":
        return label_logits_reference
    if backend == "extension":
        return _label_logits_extension
    from gram_fast.kernels.label_logits_triton import label_logits_triton

    return label_logits_triton


def _label_logits_extension(
    hidden_TD: Tensor, rows_L: Tensor, label_weight_2D: Tensor, norm_weight_D: Tensor | None, eps: float
) -> Tensor:
    logits_L2 = torch.empty((len(rows_L), 2), dtype=torch.float32, device=hidden_TD.device)
    _C.label_logits(
        hidden_TD.data_ptr(),
        hidden_TD.stride(0),
        rows_L.data_ptr(),
        label_weight_2D.data_ptr(),
        0 if norm_weight_D is None else norm_weight_D.data_ptr(),
        eps,
        logits_L2.data_ptr(),
        DTYPES.index(hidden_TD.dtype),
        (len(rows_L), hidden_TD.shape[1]),
        stream_of(hidden_TD),
    )
    return logits_L2


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
    """Computes the logits of the two label tokens -> float32 [L, 2], in float32 throughout.

    Args:
        hidden_TD: hidden states [T, D], float32, float16 or bfloat16, D contiguous.
        rows_L: int64 [L], row of each leaf's last token, 0 <= row < T.
        label_weight_2D: rows of the output embedding for "A" and "B", dtype as hidden_TD, contiguous.
        norm_weight_D: weight of the final RMSNorm (arXiv 1910.07467), dtype as hidden_TD, or None where the hidden
            states are normalised already.
        eps: epsilon of the norm.
        backend: one of BACKENDS["label_logits"].

    Raises ValueError on a wrong shape, dtype, stride or device and, on the CPU, on a row out of range; BackendError on
    a backend that cannot run. On CUDA rows are trusted: to check them the host would wait for the device.
    """
    sizes = Sizes(hidden_TD.device)
    sizes.check(DTYPES, hidden_TD=hidden_TD)
    sizes.check((torch.int64,), rows_L=rows_L)
    sizes.check((hidden_TD.dtype,), label_weight_2D=label_weight_2D, norm_weight_D=norm_weight_D)
    expect(label_weight_2D.is_contiguous(), "label_weight_2D", "a contiguous tensor", label_weight_2D.stride())
    if not rows_L.is_cuda and len(rows_L):
        low, high, last = int(rows_L.min()), int(rows_L.max()), sizes["T"] - 1
        expect(low >= 0 and high <= last, "rows_L", f"rows from 0 to {last}", f"{low} to {high}")
    check_backend("label_logits", backend, hidden_TD.device, hidden_TD.dtype)
    with on_device_of(hidden_TD):
        return implementation(backend)(hidden_TD, rows_L, label_weight_2D, norm_weight_D, eps)


@label_logits.register_fake
def _(hidden_TD: Tensor, rows_L: Tensor, *_: object, **__: object) -> Tensor:
    return hidden_TD.new_empty((rows_L.shape[0], 2), dtype=torch.float32)
