"""`tree_attention_backward`: gradients of tree attention whose key/value slots are the packed tokens themselves.

Shape letters: T packed tokens, H query heads, K key/value heads, E head width, N spans, R key ranges.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gram_fast.extension import _C
from gram_fast.kernels.tree_attention_backward import tree_attention_backward_reference
from gram_fast.ops.backends import Backends, check_backend
from gram_fast.ops.checks import DTYPES, Sizes, expect, states_arguments
from gram_fast.ops.tables import Spans, TreeTables

BACKENDS = Backends(("reference", "extension"), cpu_only=("extension",))

Gradients = tuple[Tensor, Tensor, Tensor]
Differentiate = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, TreeTables, float], Gradients]
"""(grad_out_THE, q_THE, k_TKE, v_TKE, out_THE, lse_TH, tables, scale) -> gradients of q, k and v, contiguous."""


def implementation(backend: str) -> Differentiate:
    """The function that runs the op on a backend. It trusts its arguments; tables are those of "extension"."""
    return {"reference": _reference, "extension": _extension}[backend]


def _reference(
    grad_out_THE: Tensor,
    q_THE: Tensor,
    k_TKE: Tensor,
    v_TKE: Tensor,
    out_THE: Tensor,
    lse_TH: Tensor,
    tables: TreeTables,
    scale: float,
) -> Gradients:
    return tree_attention_backward_reference(grad_out_THE, q_THE, k_TKE, v_TKE, out_THE, lse_TH, *tables.spans, scale)


def _extension(
    grad_out_THE: Tensor,
    q_THE: Tensor,
    k_TKE: Tensor,
    v_TKE: Tensor,
    out_THE: Tensor,
    lse_TH: Tensor,
    tables: TreeTables,
    scale: float,
) -> Gradients:
    assert tables.tiles is not None
    gradients = q_THE.new_empty(q_THE.shape), k_TKE.new_empty(k_TKE.shape), v_TKE.new_empty(v_TKE.shape)
    _C.tree_attention_backward(
        *states_arguments(q_THE, k_TKE, v_TKE, out_THE, scale),
        tables.tiles.data_ptr(),
        len(tables.tiles),
        lse_TH.data_ptr(),
        grad_out_THE.data_ptr(),
        grad_out_THE.stride()[:2],
        *(gradient.data_ptr() for gradient in gradients),
    )
    return gradients


@torch.library.custom_op("gram_fast::tree_attention_backward", mutates_args=())
def tree_attention_backward(
    grad_out_THE: Tensor,
    q_THE: Tensor,
    k_TKE: Tensor,
    v_TKE: Tensor,
    out_THE: Tensor,
    lse_TH: Tensor,
    spans_N2: Tensor,
    range_offsets: Tensor,
    ranges_R2: Tensor,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the gradients of `tree_attention`, given those of its result -> gradients of q, k and v, contiguous.

    Weights are computed anew, in float32, from queries, keys and `lse_TH`, as in FlashAttention (arXiv 2205.14135).

    Args:
        grad_out_THE: gradient of the result, dtype as q_THE.
        q_THE, k_TKE, v_TKE, spans_N2, range_offsets, ranges_R2, scale: as for `tree_attention`, with S = T slots.
        out_THE: its result, contiguous.
        lse_TH: float32, contiguous: the logarithm of the sum of e^score over the slots that a query reads.
        backend: one of BACKENDS["tree_attention_backward"].

    Raises ValueError on a wrong shape, dtype, stride, device or an index out of range, BackendError on a backend that
    cannot run.
    """
    sizes = Sizes(q_THE.device)
    sizes.check(DTYPES, q_THE=q_THE)
    sizes.check((q_THE.dtype,), k_TKE=k_TKE, v_TKE=v_TKE, grad_out_THE=grad_out_THE, out_THE=out_THE)
    sizes.check((torch.float32,), lse_TH=lse_TH)
    num_heads, num_kv_heads = sizes["H"], sizes["K"]
    expect(
        num_kv_heads > 0 and num_heads % num_kv_heads == 0, "q_THE", f"a multiple of {num_kv_heads} heads", num_heads
    )
    for name, tensor in (("out_THE", out_THE), ("lse_TH", lse_TH)):
        expect(tensor.is_contiguous(), name, "a contiguous tensor", f"stride {tensor.stride()}")
    expect(scale > 0, "scale", "a positive number", scale)
    spans = Spans(spans_N2, range_offsets, ranges_R2).check(sizes["T"], sizes["T"])
    check_backend("tree_attention_backward", backend, q_THE.device, q_THE.dtype, sizes["E"])
    if q_THE.numel() == 0:
        return q_THE.new_empty(q_THE.shape), k_TKE.new_zeros(k_TKE.shape), v_TKE.new_zeros(v_TKE.shape)
    tables = TreeTables.of(spans, backend, num_heads // num_kv_heads, q_THE.device)
    return implementation(backend)(grad_out_THE, q_THE, k_TKE, v_TKE, out_THE, lse_TH, tables, scale)


@tree_attention_backward.register_fake
def _(grad_out_THE: Tensor, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, *_: object, **__: object) -> Gradients:
    return q_THE.new_empty(q_THE.shape), k_TKE.new_empty(k_TKE.shape), v_TKE.new_empty(v_TKE.shape)
