#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace gram_fast {

// Normalises each head of queries and keys (RMSNorm, arXiv 1910.07467) where a weight is given and rotates it (RoPE,
// arXiv 2104.09864), in float32 and rounded once: queries in place, keys into slots [0, T) of the cache. Values are
// copied there. The bits of a token depend on its values alone, not on its place or on the threads.
struct RotaryIntoCache {
  void* qkv;  // [T, H + 2K, E]: queries, keys, values; E contiguous, strides in elements here and below
  int64_t qkv_stride_t, qkv_stride_c;
  const float* cos;  // [T, E / 2]
  int64_t cos_stride;
  const float* sin;  // [T, E / 2]
  int64_t sin_stride;
  void* k;  // [S, K, E]
  int64_t k_stride_s, k_stride_h;
  void* v;  // [S, K, E]
  int64_t v_stride_s, v_stride_h;
  const void* q_norm;  // [E] contiguous, or null: no norm
  const void* k_norm;  // [E] contiguous, or null: no norm
  float eps;
  Dtype dtype;  // of qkv, k, v and norms
  int64_t num_tokens, num_heads, num_kv_heads, head_dim;
};

void rotary_into_cache_cpu(const RotaryIntoCache& args);

}  // namespace gram_fast
