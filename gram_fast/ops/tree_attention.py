"""`tree_attention`: attention of packed tokens, each over its path in a forest of shared prefixes.

Shape letters: T packed tokens of the pass, S key/value slots, H query heads, K key/value heads, E head width, N spans,
R key ranges, X tiles.
"""

from typing import Protocol

import torch
from torch import Tensor

from gram_fast.errors import BackendError
from gram_fast.extension import _C
from gram_fast.kernels.tree_attention import tree_attention_reference
from gram_fast.kernels.tree_attention_cascade import cascade_attention
from gram_fast.ops.backends import Backends, cascade_problem, check_backend
from gram_fast.ops.checks import as_float32, check_scores, check_states, expect, on_device_of, states_arguments
from gram_fast.ops.merge_states import implementation as merge_states_on
from gram_fast.ops.tables import MAX_SLOTS, Spans, TreeTables, Window

BACKENDS = Backends(("reference", "cascade", "triton", "extension"), cpu_only=("extension",))


class AttendTree(Protocol):
    """The bound function of `tree_attention`."""

    def __call__(
        self,
        q_THE: Tensor,
        k_SKE: Tensor,
        v_SKE: Tensor,
        tables: TreeTables,
        scale: float,
        sinks_H: Tensor | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Computes attention [T, H, E], contiguous, of what `tables` say; `sinks_H` and `softcap` as of the op."""
        ...


def implementation(backend: str) -> AttendTree:
    """The function that runs `tree_attention` on a backend. It trusts its arguments and tables made for it."""
    return {"reference": _reference, "cascade": _cascade, "triton": _triton, "extension": _extension}[backend]


def _reference(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    tables: TreeTables,
    scale: float,
    sinks_H: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    size, is_chunked = tables.window or (None, False)
    out_THE = tree_attention_reference(q_THE, k_SKE, v_SKE, *tables.spans, scale, size, is_chunked, sinks_H, softcap)
    return out_THE.contiguous()


_MERGE = merge_states_on("extension")


def _cascade(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    tables: TreeTables,
    scale: float,
    sinks_H: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    assert tables.cascade is not None
    if problem := cascade_problem(q_THE.device, False, softcap is not None):
        raise BackendError(problem)
    return cascade_attention(q_THE, k_SKE, v_SKE, tables.cascade, scale, _MERGE, sinks_H)


def _triton(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    tables: TreeTables,
    scale: float,
    sinks_H: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    from gram_fast.kernels.tree_attention_triton import tree_attention_triton

    assert tables.tiles is not None
    is_windowed = tables.window is not None
    return tree_attention_triton(
        q_THE, k_SKE, v_SKE, tables.tiles, scale, is_windowed=is_windowed, sinks_H=sinks_H, softcap=softcap
    )


def _extension(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    tables: TreeTables,
    scale: float,
    sinks_H: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    assert tables.tiles is not None
    out_THE, sinks_H = q_THE.new_empty(q_THE.shape), as_float32(sinks_H)
    _C.tree_attention(
        *states_arguments(q_THE, k_SKE, v_SKE, out_THE, scale),
        tables.tiles.data_ptr(),
        len(tables.tiles),
        is_windowed=tables.window is not None,
        sinks=None if sinks_H is None else sinks_H.data_ptr(),
        softcap=softcap,
    )
    return out_THE


def attention_and_lse(
    q_THE: Tensor, k_SKE: Tensor, v_SKE: Tensor, tables: TreeTables, scale: float
) -> tuple[Tensor, Tensor]:
    """What "extension" gives, with the logarithms that `tree_attention_backward` takes: [T, H, E], float32 [T, H].

    That knows no windows.
    """
    assert tables.tiles is not None
    assert tables.window is None
    out_THE, lse_TH = q_THE.new_empty(q_THE.shape), q_THE.new_empty(q_THE.shape[:2], dtype=torch.float32)
    states = states_arguments(q_THE, k_SKE, v_SKE, out_THE, scale)
    _C.tree_attention(*states, tables.tiles.data_ptr(), len(tables.tiles), lse_TH.data_ptr())
    return out_THE, lse_TH


@torch.library.custom_op("gram_fast::tree_attention", mutates_args=())
def tree_attention(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    spans_N2: Tensor,
    range_offsets: Tensor,
    ranges_R2: Tensor,
    scale: float,
    backend: str,
    window: int | None = None,
    is_chunked: bool = False,
    sinks_H: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Computes attention of T packed tokens over their paths -> [T, H, E], contiguous, dtype as q_THE.

    The tokens of a span read each other causally (slots [start, end)) and the slots of the span's ranges without a
    mask; softmax over both together. The ranges of a span, in their order, and the span are the path of its tokens,
    of which a window leaves the end.

    Args:
        q_THE: queries [T, H, E], float32, float16 or bfloat16.
        k_SKE, v_SKE: keys and values [S, K, E], S >= T; slots [0, T) belong to the packed tokens. H is a multiple of K.
            For "triton" every slot is finite: it loads whole blocks, and weighs what nobody reads with zero.
        spans_N2: int64 [N, 2] on the CPU: start, end; they cover [0, T) in order.
        range_offsets: int64 [N + 1] on the CPU: rows of `ranges_R2` that each span reads.
        ranges_R2: int64 [R, 2] on the CPU: slots [start, end), 0 <= start < end <= S. Ranges of one span are disjoint.
        scale: factor on the scores, above 0, usually E ** -0.5.
        backend: one of BACKENDS["tree_attention"] (see resolve_backend for "auto").
        window: tokens of its path that a token reads, itself and those before it; None: all of them.
        is_chunked: a token reads its path from the last multiple of `window` on instead.
        sinks_H: [H], float32 or as q_THE: scores of a key without a value, which take their part of the softmax.
        softcap: c, above 0: a score s, scaled, becomes c * tanh(s / c).

    Tables for the backend are made in every call; `bind` takes one `TreeTables` for all layers of a pass. Raises
    ValueError on a wrong shape, dtype, stride, device or an index out of range, BackendError on a backend that cannot
    run.
    """
    sizes = check_states("q_THE", q_THE, k_SKE, v_SKE)
    num_tokens, num_slots, group = sizes["T"], sizes["S"], sizes["H"] // sizes["K"]
    expect(num_slots >= num_tokens, "k_SKE", f"at least T = {num_tokens} slots", num_slots)
    spans = Spans(spans_N2, range_offsets, ranges_R2).check(num_slots, num_tokens)
    expect(scale > 0, "scale", "a positive number", scale)
    windows = Window.of(window, is_chunked)
    check_scores(sizes, q_THE.dtype, sinks_H, softcap)
    options = {"is_windowed": window is not None, "is_capped": softcap is not None}
    check_backend("tree_attention", backend, q_THE.device, q_THE.dtype, sizes["E"], **options)
    if q_THE.numel() == 0:
        return q_THE.new_empty(q_THE.shape)
    if backend in ("triton", "extension"):
        expect(num_slots <= MAX_SLOTS, "k_SKE", f"at most {MAX_SLOTS} slots", num_slots)
    tables = TreeTables.of(spans, backend, group, q_THE.device, window=windows)
    with on_device_of(q_THE):
        return implementation(backend)(q_THE, k_SKE, v_SKE, tables, scale, sinks_H, softcap)


@tree_attention.register_fake
def _(q_THE: Tensor, *_: object, **__: object) -> Tensor:
    return q_THE.new_empty(q_THE.shape)
