"""`rotary_into_cache`: what stands between a layer's fused projection and its attention.

Shape letters: T packed tokens, S key/value slots, C heads of the fused projection (queries, keys, values), H query
heads, K key/value heads, E head width, F = E // 2.
"""

import torch
from torch import Tensor

from gram_fast.kernels.rotary_into_cache import rotary_into_cache_reference
from gram_fast.ops.backends import check_backend
from gram_fast.ops.checks import DTYPES, expect, expect_like, on_device_of


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
    """Finishes queries in place and writes finished keys, and values, into slots [0, T) of the cache.

    Queries and keys are normalised a head (RMSNorm, arXiv 1910.07467), where a weight is given, and then rotated (RoPE,
    arXiv 2104.09864): x * cos + rotate_half(x) * sin, where rotate_half swaps the two halves of a head and negates the
    new first, as Llama and Qwen do. In float32, rounded once.

    Args:
        qkv_TCE: fused projection [T, C, E], float32, float16 or bfloat16, E even: H query heads, K key heads, K value
            heads. The first H become the finished queries, the others stay.
        cos_TF, sin_TF: float32 [T, F] of each token's position.
        k_SKE, v_SKE: keys and values [S, K, E], dtype as qkv_TCE, S >= T unless K is 0 (queries alone).
        q_norm_E, k_norm_E: weights of the head norms, dtype as qkv_TCE, or None: no norm.
        eps: epsilon of the head norms.
        num_heads: H; 0 for keys and values alone.
        backend: one of BACKENDS["rotary_into_cache"].

    Any strides with a contiguous last dimension. Raises ValueError on a wrong shape, dtype, stride or device,
    BackendError on a backend that cannot run.
    """
    for argument, tensor in (("qkv_TCE", qkv_TCE), ("k_SKE", k_SKE)):
        expect(tensor.dim() == 3, argument, "3 dimensions", tensor.dim())
    (num_tokens, num_channels, width), device, dtype = qkv_TCE.shape, qkv_TCE.device, qkv_TCE.dtype
    num_slots, num_kv_heads = k_SKE.shape[:2]
    expect_like(qkv_TCE, "qkv_TCE", tuple(qkv_TCE.shape), DTYPES, device)
    expect(width % 2 == 0, "qkv_TCE", "an even head width", width)
    expect(num_heads >= 0, "num_heads", "0 or more", num_heads)
    heads = f"{num_heads} + 2 * {num_kv_heads} heads"
    expect(num_channels == num_heads + 2 * num_kv_heads, "qkv_TCE", heads, num_channels)
    expect_like(k_SKE, "k_SKE", (num_slots, num_kv_heads, width), (dtype,), device)
    expect_like(v_SKE, "v_SKE", (num_slots, num_kv_heads, width), (dtype,), device)
    expect(num_slots >= num_tokens or num_kv_heads == 0, "k_SKE", f"at least T = {num_tokens} slots", num_slots)
    for argument, tensor in (("cos_TF", cos_TF), ("sin_TF", sin_TF)):
        expect_like(tensor, argument, (num_tokens, width // 2), (torch.float32,), device)
    for argument, norm_E in (("q_norm_E", q_norm_E), ("k_norm_E", k_norm_E)):
        if norm_E is not None:
            expect_like(norm_E, argument, (width,), (dtype,), device)
    check_backend("rotary_into_cache", backend, device, dtype)
    if backend == "reference":
        return rotary_into_cache_reference(qkv_TCE, cos_TF, sin_TF, k_SKE, v_SKE, q_norm_E, k_norm_E, eps, num_heads)
    from gram_fast.kernels.rotary_into_cache_triton import rotary_into_cache_triton

    with on_device_of(qkv_TCE):
        rotary_into_cache_triton(qkv_TCE, cos_TF, sin_TF, k_SKE, v_SKE, q_norm_E, k_norm_E, eps, num_heads)


@rotary_into_cache.register_fake
def _(
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
    pass
