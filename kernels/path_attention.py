"""Reference of `path_attention`: tree attention where the bits of a token do not depend on what else is packed.

Shape letters: T packed tokens, S key/value slots, H query heads, K key/value heads, E head width, X tiles, P slots of
all paths, M tokens of a tile, N keys of a tile's longest path.
"""

import torch
from torch import Tensor


def path_attention_reference(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    tiles_X4: Tensor,
    slots_P: Tensor,
    tile_tokens: int,
    scale: float,
) -> Tensor:
    """`path_attention` in plain PyTorch.

    A token at position p is row p % M of products whose shapes depend on p // M alone. So its result comes from the
    same instructions in the same order wherever its tile is packed and whatever the other rows of the tile hold.
    """
    num_heads, width = q_THE.shape[1:]
    num_kv_heads = k_SKE.shape[1]
    # float64 inputs stay float64, for tests that need an exact result.
    compute = torch.promote_types(q_THE.dtype, torch.float32)
    out_THE = torch.empty_like(q_THE, memory_format=torch.contiguous_format)
    is_hidden_MM = torch.ones(tile_tokens, tile_tokens, dtype=torch.bool, device=q_THE.device).triu(1)
    for first, count, position, path in tiles_X4.tolist():
        row = position % tile_tokens
        before, known = position - row, position + count
        slots_N = slots_P[path : path + known]
        k_NKE = torch.zeros(before + tile_tokens, num_kv_heads, width, dtype=compute, device=q_THE.device)
        v_NKE = torch.zeros_like(k_NKE)
        k_NKE[:known], v_NKE[:known] = k_SKE[slots_N].to(compute), v_SKE[slots_N].to(compute)
        q_MHE = torch.zeros(tile_tokens, num_heads, width, dtype=compute, device=q_THE.device)
        q_MHE[row : row + count] = q_THE[first : first + count].to(compute)
        # Rows of a key/value head: tokens times the query heads that share it.
        q_KRE = q_MHE.view(tile_tokens, num_kv_heads, -1, width).transpose(0, 1).flatten(1, 2)
        scores_KRN = (q_KRE @ k_NKE.permute(1, 2, 0)) * scale
        scores_KMGN = scores_KRN.view(num_kv_heads, tile_tokens, -1, before + tile_tokens)
        scores_KMGN[..., before:].masked_fill_(is_hidden_MM[:, None], float("-inf"))
        out_KRE = scores_KRN.softmax(dim=-1) @ v_NKE.transpose(0, 1)
        out_MHE = out_KRE.view(num_kv_heads, tile_tokens, -1, width).transpose(0, 1).flatten(1, 2)
        out_THE[first : first + count] = out_MHE[row : row + count].to(q_THE.dtype)
    return out_THE
