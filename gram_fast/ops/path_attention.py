"""`path_attention`: tree attention where the bits of a token do not depend on what else is packed.

Shape letters: T packed tokens of the pass, S key/value slots, H query heads, K key/value heads, E head width, N spans,
R key ranges, X tiles, P slots of all paths.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gram_fast.extension import _C
from gram_fast.kernels.path_attention import path_attention_reference
from gram_fast.ops.backends import MAX_HEAD_DIM, Backends, check_backend
from gram_fast.ops.checks import check_states, expect, on_device_of, states_arguments
from gram_fast.ops.tables import MAX_SLOTS, PathTables, Spans

BACKENDS = Backends(("reference", "triton", "extension"), cpu_only=("extension",))

AttendPath = Callable[[Tensor, Tensor, Tensor, PathTables, float], Tensor]
"""(q_THE, k_SKE, v_SKE, tables, scale) -> attention [T, H, E], contiguous."""


def implementation(backend: str) -> AttendPath:
    """The function that runs `path_attention` on a backend. It trusts its arguments."""
    if backend == "extension":
        return _extension
    if backend == "reference":
        attend = path_attention_reference
    else:
        from gram_fast.kernels.path_attention_triton import path_attention_triton as attend

    return lambda q_THE, k_SKE, v_SKE, tables, scale: attend(
        q_THE, k_SKE, v_SKE, tables.tiles_X4, tables.slots_P, tables.tile_tokens, scale
    )


def _extension(q_THE: Tensor, k_SKE: Tensor, v_SKE: Tensor, tables: PathTables, scale: float) -> Tensor:
    out_THE = q_THE.new_empty(q_THE.shape)
    states = states_arguments(q_THE, k_SKE, v_SKE, out_THE, scale)
    tiles_X4, slots_P = tables.tiles_X4, tables.slots_P
    _C.path_attention(*states, tiles_X4.data_ptr(), len(tiles_X4), slots_P.data_ptr(), tables.tile_tokens)
    return out_THE


@torch.library.custom_op("gram_fast::path_attention", mutates_args=())
def path_attention(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    spans_N2: Tensor,
    range_offsets: Tensor,
    ranges_R2: Tensor,
    scale: float,
    backend: str,
) -> Tensor:
    """Computes `tree_attention` such that the bits of a token depend on the queries, keys and values of its path alone.

    `tree_attention` sums in the order of spans and ranges, which change with the other sequences of a request. Here
    keys are read in blocks counted from the root of the path, and a token's row in its tile follows from its position.

    Args:
        q_THE: queries [T, H, E], float32, float16 or bfloat16, E at most 256.
        k_SKE, v_SKE: keys and values [S, K, E], S >= T; slots [0, T) belong to the packed tokens. H is a multiple of K.
        spans_N2: int64 [N, 2] on the CPU: start, end; they cover [0, T) in order.
        range_offsets: int64 [N + 1] on the CPU: rows of `ranges_R2` that each span reads.
        ranges_R2: int64 [R, 2] on the CPU: slots [start, end), 0 <= start < end <= S. Ranges of one span are disjoint
            and in the order of its path, from the root down.
        scale: factor on the scores, above 0, usually E ** -0.5.
        backend: one of BACKENDS["path_attention"].

    Returns [T, H, E], contiguous, dtype as q_THE. Tables are made in every call; `bind` takes one `PathTables` for all
    layers of a pass. Raises ValueError on a wrong shape, dtype, stride, device or an index out of range, BackendError
    on a backend that cannot run.
    """
    sizes = check_states("q_THE", q_THE, k_SKE, v_SKE)
    num_tokens, num_slots, width = sizes["T"], sizes["S"], sizes["E"]
    expect(width <= MAX_HEAD_DIM, "q_THE", f"a head width of at most {MAX_HEAD_DIM}", width)
    expect(num_tokens <= num_slots <= MAX_SLOTS, "k_SKE", f"{num_tokens} to {MAX_SLOTS} slots", num_slots)
    expect(scale > 0, "scale", "a positive number", scale)
    spans = Spans(spans_N2, range_offsets, ranges_R2).check(num_slots, num_tokens)
    check_backend("path_attention", backend, q_THE.device, q_THE.dtype, width)
    if q_THE.numel() == 0:
        return q_THE.new_empty(q_THE.shape)
    tables = PathTables.of(spans, sizes["H"] // sizes["K"], q_THE.device)
    with on_device_of(q_THE):
        return implementation(backend)(q_THE, k_SKE, v_SKE, tables, scale)


@path_attention.register_fake
def _(q_THE: Tensor, *_: object, **__: object) -> Tensor:
    return q_THE.new_empty(q_THE.shape)
