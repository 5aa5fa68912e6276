#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace gram_fast {

// What attention of packed tokens reads and writes. T packed tokens, S slots, H heads, K key/value heads, E head width.
// Strides are in elements; E is contiguous.
struct AttentionStates {
  const void* q;  // [T, H, E]
  int64_t q_stride_t, q_stride_h;
  const void* k;  // [S, K, E]
  int64_t k_stride_s, k_stride_h;
  const void* v;  // [S, K, E]
  int64_t v_stride_s, v_stride_h;
  void* out;  // [T, H, E] contiguous
  float scale;
  Dtype dtype;  // of q, k, v and out
  int64_t num_tokens, num_heads, num_kv_heads, head_dim;
  float* lse =
      nullptr;  // [T, H] contiguous: logarithms of the sums of e^score, where they are asked for; without sinks
  const float* sinks = nullptr;  // [H]: scores of a key without a value, where there is one
  float softcap = 0;             // where it is not 0, a score s becomes softcap * tanh(s / softcap)
};

}  // namespace gram_fast
