#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace gram_fast {

// Computes attention of packed tokens over their paths, tile by tile (attention_tables.h), in float32 and rounded once.
// T packed tokens, S slots, H heads, K key/value heads, E head width, X tiles. Strides are in elements; E is
// contiguous.
struct TreeAttention {
  const void* q;  // [T, H, E]
  int64_t q_stride_t, q_stride_h;
  const void* k;  // [S, K, E]
  int64_t k_stride_s, k_stride_h;
  const void* v;  // [S, K, E]
  int64_t v_stride_s, v_stride_h;
  const int32_t* tiles;  // table of attention_tiles
  void* out;             // [T, H, E] contiguous
  float scale;
  Dtype dtype;  // of q, k, v and out
  int64_t num_tiles, num_tokens, num_heads, num_kv_heads, head_dim;
};

void tree_attention_cpu(const TreeAttention& args);

}  // namespace gram_fast
