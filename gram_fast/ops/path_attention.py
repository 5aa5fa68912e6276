"""`path_attention`: tree attention where the bits of a token do not depend on what else is packed.

Shape letters: T packed tokens of the pass, S key/value slots, H query heads, K key/value heads, E head width, N spans,
R key ranges, X tiles, P slots of all paths.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gram_fast.kernels.path_attention import path_attention_reference
from gram_fast.kernels.tables import path_tile_tokens
from gram_fast.ops.backends import MAX_HEAD_DIM, Backends, check_backend
from gram_fast.ops.checks import Sizes, check_states, expect, on_device_of
from gram_fast.ops.tables import MAX_SLOTS, PathTables, Spans, check_group

BACKENDS = Backends(("reference", "triton"))

AttendPath = Callable[[Tensor, Tensor, Tensor, PathTables, float], Tensor]
"""(q_THE, k_SKE, v_SKE, tables, scale) -> attention [T, H, E], contiguous."""


def implementation(backend: str) -> AttendPath:
    """The function that runs `path_attention` on a backend. It trusts its arguments."""
    if backend == "reference":
        attend = path_attention_reference
    else:
        from gram_fast.kernels.path_attention_triton import path_attention_triton as attend

    return lambda q_THE, k_SKE, v_SKE, tables, scale: attend(
        q_THE, k_SKE, v_SKE, tables.tiles_X4, tables.slots_P, tables.tile_tokens, scale
    )


@torch.library.custom_op("gram_fast::path_attention", mutates_args=())
def path_attention(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    tiles_X4: Tensor,
    slots_P: Tensor,
    scale: float,
    *,
    backend: str,
) -> Tensor:
    """Computes `tree_attention` such that the bits of a token depend on the queries, keys and values of its path alone.

    `tree_attention` sums in the order of spans and ranges, which change with the other sequences of a request. Here
    keys are read in blocks counted from the root of the path, and a token's row in its tile follows from its position.

    Args:
        q_THE: queries [T, H, E], float32, float16 or bfloat16, E at most 256.
        k_SKE, v_SKE: keys and values [S, K, E], S >= T; slots [0, T) belong to the packed tokens. H is a multiple of K.
        tiles_X4, slots_P: result of `path_tiles` for the pass and H // K query heads per key/value head, contiguous.
            Their content is trusted.
        scale: factor on the scores, above 0, usually E ** -0.5.
        backend: one of BACKENDS["path_attention"].

    Returns [T, H, E], contiguous, dtype as q_THE. Raises ValueError on a wrong shape, dtype, stride or device,
    BackendError on a backend that cannot run.
    """
    sizes = check_states("q_THE", q_THE, k_SKE, v_SKE)
    num_tokens, num_slots, width = sizes["T"], sizes["S"], sizes["E"]
    expect(width <= MAX_HEAD_DIM, "q_THE", f"a head width of at most {MAX_HEAD_DIM}", width)
    expect(num_tokens <= num_slots <= MAX_SLOTS, "k_SKE", f"{num_tokens} to {MAX_SLOTS} slots", num_slots)
    expect(scale > 0, "scale", "a positive number", scale)
    Sizes(q_THE.device).check((torch.int32,), tiles_X4=tiles_X4, slots_P=slots_P)
    expect(tiles_X4.is_contiguous(), "tiles_X4", "a contiguous tensor", f"stride {tiles_X4.stride()}")
    check_backend("path_attention", backend, q_THE.device, q_THE.dtype, width)
    if q_THE.numel() == 0:
        return q_THE.new_empty(q_THE.shape)
    group = sizes["H"] // sizes["K"]
    check_group(group)
    tables = PathTables(tiles_X4, slots_P, path_tile_tokens(group))
    with on_device_of(q_THE):
        return implementation(backend)(q_THE, k_SKE, v_SKE, tables, scale)


@path_attention.register_fake
def _(q_THE: Tensor, *_: object, **__: object) -> Tensor:
    return q_THE.new_empty(q_THE.shape)


def path_tiles(
    spans_N2: Tensor, range_offsets: Tensor, ranges_R2: Tensor, group: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Makes the tables of `path_attention`: tiles int32 [X, 4] and slots int32 [P] on `device`.

    A tile holds tokens of one span whose positions lie between two multiples of the tile size: first packed row, number
    of tokens, position of the first, start of the path in the slots. A path is the slots of a span's ranges, from the
    root down, and of the span itself.

    Args:
        spans_N2, range_offsets, ranges_R2: the tables of a pass, as `tree_attention` takes them; the ranges of a span
            are in the order of its path.
        group: query heads per key/value head, 1 to 128.
        device: device of the kernel. The host does not wait for the copy.

    Raises ValueError on a wrong table or group.
    """
    tables = PathTables.of(Spans(spans_N2, range_offsets, ranges_R2).check(MAX_SLOTS), group, device)
    return tables.tiles_X4, tables.slots_P
