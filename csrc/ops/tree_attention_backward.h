#pragma once

#include <cstdint>

#include "ops/tree_attention.h"

namespace gram_fast {

// Slopes of a sum with respect to queries, keys and values, given those with respect to the result of tree attention.
// The slots are the packed tokens. Weights are computed anew from the queries and keys, tile by tile; slopes are summed
// up in float32 and rounded once.
struct TreeAttentionBackward {
  TreeAttention forward;  // with its results, out and lse
  const void* grad_out;   // [T, H, E]; strides in elements, E contiguous
  int64_t grad_out_stride_t, grad_out_stride_h;
  void* grad_q;  // [T, H, E] contiguous
  void* grad_k;  // [T, K, E] contiguous
  void* grad_v;  // the same
};

void tree_attention_backward_cpu(const TreeAttentionBackward& args);

}  // namespace gram_fast
