"""Linear recurrences over the pieces of a pass, level by level, by transformers' own functions.

What pads a piece leaves its state as it is. Shape letters: T packed tokens, N pieces of a batch, L their padded length,
H heads, K and V widths of keys and values, P and S widths of inputs and states.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gram_fast.models.linear.chosen import is_reference, takes_packed
from gram_fast.models.linear.mixing import Mixing
from gram_fast.models.linear.pieces import Batch

# Tokens of a chunk, most and fewest, where transformers' torch code runs.
_DELTA_CHUNKS = 8, 64
_MAMBA_CHUNKS = 8, 32
# A batch that is packed rather than padded holds pieces of any length.
_ANY_LENGTH = 2**62

Scan = Callable[[Sequence[Tensor], Tensor, Batch], tuple[Tensor, Tensor]]


def gated_delta_rule(
    mixing: Mixing,
    function: Callable[..., tuple[Tensor, Tensor]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    g: Tensor,
    beta: Tensor,
    use_qk_l2norm_in_kernel: bool = False,
    **options: Any,
) -> tuple[Tensor, None]:
    """Gated delta rule of packed queries and keys [1, T, H, K] and values [1, T, H, V] -> [1, T, H, V], and no state.

    `g`: logarithms of decays, [1, T, H] or, in Kimi's, [1, T, H, K]; `beta` [1, T, H], of which 0 writes nothing.
    """
    shortest, chunk = _delta_chunks(function, query.device)

    def scan(x: Sequence[Tensor], initial: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        how = {"g": x[3], "beta": x[4], "initial_state": initial, "output_final_state": True}
        if chunk == _ANY_LENGTH:
            how["cu_seqlens"] = batch.offsets
        elif is_reference(function):
            how["chunk_size"] = min(chunk, batch.padded[1])
        return function(*x[:3], **how, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel)

    state = key.shape[2], key.shape[3], value.shape[3]
    inputs = (query, key, value, g, beta)
    return _over_pieces(mixing, inputs, value, state, scan, shortest, chunk), None


def _delta_chunks(function: Callable[..., Any], device: torch.device) -> tuple[int, int]:
    """Fewest and most tokens that a piece is padded to; of any length where pieces are packed."""
    if device.type == "cuda" and takes_packed(function):
        return _ANY_LENGTH, _ANY_LENGTH
    # Kernels have chunks of 64.
    return _DELTA_CHUNKS if is_reference(function) else (64, 64)


def mamba2_scan(
    mixing: Mixing,
    function: Callable[..., tuple[Tensor, Tensor]],
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    chunk_size: int,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    **options: Any,
) -> Tensor:
    """Mamba-2's scan of packed inputs [1, T, H, P] with time steps [1, T, H] -> [1, T, H, P].

    Time steps are made in float32 before the scan, as mamba_ssm's kernels do within it: one of 0 changes no state.
    """
    steps = dt.float() if dt_bias is None else dt.float() + dt_bias.float()
    steps = (F.softplus(steps) if dt_softplus else steps).clamp(*dt_limit)
    shortest, chunk = _MAMBA_CHUNKS if is_reference(function) else (chunk_size, chunk_size)

    def scan(inputs: Sequence[Tensor], initial: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        x, steps, B, C = inputs
        how = {"chunk_size": min(chunk, batch.padded[1]), "D": D, "initial_states": initial}
        return function(x, steps, A, B, C, **how, return_final_states=True)

    state = x.shape[2], x.shape[3], B.shape[3]
    return _over_pieces(mixing, (x, steps, B, C), x, state, scan, shortest, chunk)


def _over_pieces(
    mixing: Mixing, inputs: Sequence[Tensor], like: Tensor, state: Sequence[int], scan: Scan, shortest: int, chunk: int
) -> Tensor:
    """Scans all pieces, each from the end of the one that it starts from, and keeps states -> [1, T, ...] as `like`.

    `inputs` are packed, [1, T, ...]; `scan` takes those of a batch, [N, L, ...] or packed, and the states before it.
    """
    device = like.device
    kept = mixing.buffer(state, torch.float32, device)
    ends = kept.new_empty((mixing.pieces.num_ends, *state))
    out: Tensor | None = None
    for batch in mixing.pieces.batches(shortest, chunk, device):
        is_packed = chunk == _ANY_LENGTH
        its = [x[:, batch.rows] if is_packed else batch.pad(x) for x in inputs]
        result, final = scan(its, (kept if batch.is_first else ends)[batch.starts], batch)
        out = result.new_empty(like.shape) if out is None else out
        out[0, batch.rows] = result[0] if is_packed else batch.unpad(result)
        ends[batch.ends] = final[batch.ended]
    slots, numbers = mixing.pieces.kept_ends(device)
    kept[slots] = ends[numbers]
    assert out is not None  # a pass has a token
    return out
