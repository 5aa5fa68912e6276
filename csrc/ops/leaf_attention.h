#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace gram_fast {

// Computes attention of the last token of each leaf. The keys and values of an item (leaf_items.h) are read once for
// all leaves that share them. Every entry gives a partial result; the partial results of a leaf are merged by
// log-sum-exp. L leaves, S slots, H heads, K key/value heads, E head width, P partial results. Strides are in elements;
// E is contiguous.
struct LeafAttention {
  const void* q;  // [L, H, E]
  int64_t q_stride_l, q_stride_h;
  const void* k;  // [S, K, E]
  int64_t k_stride_s, k_stride_h;
  const void* v;  // [S, K, E]
  int64_t v_stride_s, v_stride_h;
  const int32_t* items;  // table of leaf_items
  float* partial_out;    // [P, H, E] contiguous
  float* partial_lse;    // [P, H] contiguous, natural logarithm
  void* out;             // [L, H, E] contiguous
  float scale;
  Dtype dtype;  // of q, k, v and out
  int64_t num_items, num_leaves, num_heads, num_kv_heads, head_dim;
  const float* sinks = nullptr;  // [H]: scores of a key without a value, where there is one
  float softcap = 0;             // where it is not 0, a score s becomes softcap * tanh(s / softcap)
};

void leaf_attention_cpu(const LeafAttention& args);
void leaf_attention_cuda(const LeafAttention& args, void* stream);

}  // namespace gram_fast
