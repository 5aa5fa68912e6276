"""`path_attention`: attention of packed tokens whose bits do not depend on what else is packed.

Shape letters: T packed tokens of the pass, S key/value slots, H query heads, K key/value heads, E head width, N spans,
R key ranges, X tiles, P slots of all paths.
"""

import numpy as np
import torch
from torch import Tensor

from gram_fast.kernels.path_attention import path_attention_reference
from gram_fast.kernels.tables import PATH_TILE_COLUMNS, TILE_ROWS
from gram_fast.ops.backends import check_backend
from gram_fast.ops.checks import expect, expect_like, expect_states, on_device_of, uploaded
from gram_fast.ops.tree_attention import check_tables


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
    """`tree_attention` of which a token's result follows, bit by bit, from the keys and values of its path.

    `tree_attention` adds up in the order of spans and ranges, which change with the other sequences of a request. Here
    keys are read in blocks counted from the root of the path, and a token's row in its tile is its position's.

    Args:
        q_THE: queries [T, H, E], float32, float16 or bfloat16, E at most 256.
        k_SKE, v_SKE: keys and values [S, K, E], S >= T; slots [0, T) belong to the packed tokens. H is a multiple of K.
        tiles_X4, slots_P: `path_tiles` of the pass for H // K heads a group. Their content is trusted.
        scale: factor on the scores, above 0, usually E ** -0.5.
        backend: one of BACKENDS["path_attention"].

    Returns [T, H, E], contiguous, dtype as q_THE. Raises ValueError on a wrong shape, dtype, stride or device,
    BackendError on a backend that cannot run.
    """
    expect_states("q_THE", q_THE, k_SKE, v_SKE)
    (num_tokens, num_heads, width), device = q_THE.shape, q_THE.device
    num_slots, num_kv_heads = k_SKE.shape[:2]
    expect(width <= 256, "q_THE", "a head width of at most 256", width)
    expect(num_tokens <= num_slots < 2**31, "k_SKE", f"{num_tokens} to 2**31 - 1 slots", num_slots)
    expect(scale > 0, "scale", "a positive number", scale)
    expect_like(tiles_X4, "tiles_X4", (len(tiles_X4), PATH_TILE_COLUMNS), (torch.int32,), device)
    expect_like(slots_P, "slots_P", (len(slots_P),), (torch.int32,), device)
    check_backend("path_attention", backend, device, q_THE.dtype, width)
    if q_THE.numel() == 0:
        return q_THE.new_empty(q_THE.shape)
    tile_tokens = path_tile_tokens(num_heads // num_kv_heads)
    if backend == "reference":
        return path_attention_reference(q_THE, k_SKE, v_SKE, tiles_X4, slots_P, tile_tokens, scale)
    from gram_fast.kernels.path_attention_triton import path_attention_triton

    with on_device_of(q_THE):
        return path_attention_triton(q_THE, k_SKE, v_SKE, tiles_X4, slots_P, tile_tokens, scale)


@path_attention.register_fake
def _(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    tiles_X4: Tensor,
    slots_P: Tensor,
    scale: float,
    *,
    backend: str,
) -> Tensor:
    return q_THE.new_empty(q_THE.shape)


def path_tile_tokens(group: int) -> int:
    """Tokens of a tile, a power of two: with the `group` query heads of a key/value head, at most 128 rows."""
    expect(1 <= group <= TILE_ROWS, "group", f"1 to {TILE_ROWS} query heads a key/value head", group)
    return 1 << (TILE_ROWS // group).bit_length() - 1


def path_tiles(
    spans_N2: Tensor, range_offsets: Tensor, ranges_R2: Tensor, group: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Tiles int32 [X, 4] and slots int32 [P] on `device`: what `path_attention` walks.

    A tile is tokens of one span whose positions lie between two multiples of `path_tile_tokens(group)`: first packed
    row, number of tokens, position of the first, and where in `slots_P` its path begins. A path is the slots of a
    span's ranges, from the root down, and of the span itself.

    Args:
        spans_N2, range_offsets, ranges_R2: the tables of a pass, as `tree_attention` takes them; the ranges of a span
            stand in the order of its path.
        group: query heads of a key/value head.
        device: where the kernel runs. The copy does not wait for it.
    """
    num_tokens = int(spans_N2[-1, 1]) if len(spans_N2) else 0
    check_tables(spans_N2, range_offsets, ranges_R2, num_tokens, 2**31 - 1)
    size = path_tile_tokens(group)
    spans, offsets, ranges = spans_N2.numpy(), range_offsets.numpy(), ranges_R2.numpy()
    tiles: list[tuple[int, int, int, int]] = []
    paths: list[np.ndarray[tuple[int], np.dtype[np.int32]]] = []
    path = 0
    for (start, end), low, high in zip(spans.tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        parts = [*ranges[low:high].tolist(), (start, end)]
        paths += [np.arange(*part, dtype=np.int32) for part in parts]
        length = sum(stop - begin for begin, stop in parts)
        position = length - (end - start)
        while position < length:
            count = min(size - position % size, length - position)
            tiles.append((end - (length - position), count, position, path))
            position += count
        path += length
    flat = np.concatenate(paths) if paths else np.empty(0, np.int32)
    # Longest walks first, so that the last programs of a launch are short ones.
    tiles.sort(key=lambda tile: -tile[2])
    tiles_X4 = torch.tensor(tiles, dtype=torch.int32).reshape(len(tiles), PATH_TILE_COLUMNS)
    return uploaded(tiles_X4, device), uploaded(torch.from_numpy(flat), device)
