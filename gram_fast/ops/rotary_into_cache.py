"""`rotary_into_cache`: head norms, rotary embedding and the write into the key/value cache.

Shape letters: T packed tokens, S key/value slots, C heads of the fused projection (queries, keys, values), H query
heads, K key/value heads, E head width, F = E // 2.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gram_fast.extension import _C
from gram_fast.kernels.rotary_into_cache import rotary_into_cache_reference
from gram_fast.ops.backends import Backends, check_backend
from gram_fast.ops.checks import DTYPES, Sizes, expect, on_device_of

BACKENDS = Backends(("reference", "triton", "extension"), cpu_only=("extension",))

RotaryIntoCache = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, float, int], None]
"""(qkv_TCE, cos_TF, sin_TF, k_SKE, v_SKE, q_norm_E or None, k_norm_E or None, eps, num_heads) -> None."""


def implementation(backend: str) -> RotaryIntoCache:
    """The function that runs `rotary_into_cache` on a backend. It trusts its arguments."""
    if backend == "reference":
        return rotary_into_cache_reference
    if backend == "extension":
        return _rotary_into_cache_extension
    from gram_fast.kernels.rotary_into_cache_triton import rotary_into_cache_triton

    return rotary_into_cache_triton


def _rotary_into_cache_extension(
    qkv_TCE: Tensor,
    cos_TF: Tensor,
    sin_TF: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    q_norm_E: Tensor | None,
    k_norm_E: Tensor | None,
    eps: float,
    num_heads: int,
) -> None:
    num_tokens, _, width = qkv_TCE.shape
    _C.rotary_into_cache(
        qkv_TCE.data_ptr(),
        qkv_TCE.stride()[:2],
        cos_TF.data_ptr(),
        cos_TF.stride(0),
        sin_TF.data_ptr(),
        sin_TF.stride(0),
        k_SKE.data_ptr(),
        k_SKE.stride()[:2],
        v_SKE.data_ptr(),
        v_SKE.stride()[:2],
        0 if q_norm_E is None else q_norm_E.data_ptr(),
        0 if k_norm_E is None else k_norm_E.data_ptr(),
        eps,
        DTYPES.index(qkv_TCE.dtype),
        (num_tokens, num_heads, k_SKE.shape[1], width),
    )


@torch.library.custom_op("gram_fast::rotary_into_cache", mutates_args=("qkv_TCE", "k_SKE", "v_SKE"))
def rotary_into_cache(
    qkv_TCE: Tensor,
    cos_TF: Tensor,
    sin_TF: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    q_norm_E: Tensor | None,
    k_norm_E: Tensor | None,
    eps: float,
    num_heads: int,
    *,
    backend: str,
) -> None:
    """Normalises and rotates queries in place, and keys into slots [0, T) of the cache; copies values there.

    Each head of queries and keys is normalised (RMSNorm, arXiv 1910.07467) where a weight is given, and then rotated
    (RoPE, arXiv 2104.09864): x * cos + rotate_half(x) * sin, where rotate_half swaps the two halves of a head and
    negates the new first half, as in Llama and Qwen. Computed in float32 and rounded once. With the backend "extension"
    the bits of a token depend on its values alone.

    Args:
        qkv_TCE: fused projection [T, C, E], float32, float16 or bfloat16, E even: H query heads, K key heads, K value
            heads. The first H become the rotated queries; the others stay.
        cos_TF, sin_TF: cosines and sines of each token's position, float32 [T, F].
        k_SKE, v_SKE: keys and values [S, K, E], dtype as qkv_TCE, S >= T unless K is 0 (queries alone).
        q_norm_E, k_norm_E: weights of the head norms, dtype as qkv_TCE, or None: no norm.
        eps: epsilon of the head norms.
        num_heads: H, at least 0; 0 for keys and values alone.
        backend: one of BACKENDS["rotary_into_cache"].

    Strides may be any; the last dimension must be contiguous. Raises ValueError on a wrong shape, dtype, stride or
    device, BackendError on a backend that cannot run.
    """
    sizes, dtype = Sizes(qkv_TCE.device), qkv_TCE.dtype
    sizes.check(DTYPES, qkv_TCE=qkv_TCE)
    width = sizes["E"]
    expect(width % 2 == 0, "qkv_TCE", "an even head width", width)
    sizes.check((dtype,), k_SKE=k_SKE, v_SKE=v_SKE, q_norm_E=q_norm_E, k_norm_E=k_norm_E)
    sizes.check((torch.float32,), cos_TF=cos_TF)
    expect(sizes["F"] == width // 2, "cos_TF", f"a width of {width // 2}", sizes["F"])
    sizes.check((torch.float32,), sin_TF=sin_TF)
    num_tokens, num_kv_heads = sizes["T"], sizes["K"]
    expect(num_heads >= 0, "num_heads", "0 or more", num_heads)
    heads = f"{num_heads} + 2 * {num_kv_heads} heads"
    expect(sizes["C"] == num_heads + 2 * num_kv_heads, "qkv_TCE", heads, sizes["C"])
    expect(sizes["S"] >= num_tokens or num_kv_heads == 0, "k_SKE", f"at least T = {num_tokens} slots", sizes["S"])
    check_backend("rotary_into_cache", backend, qkv_TCE.device, dtype)
    with on_device_of(qkv_TCE):
        implementation(backend)(qkv_TCE, cos_TF, sin_TF, k_SKE, v_SKE, q_norm_E, k_norm_E, eps, num_heads)


@rotary_into_cache.register_fake
def _(*_: object, **__: object) -> None:
    pass
