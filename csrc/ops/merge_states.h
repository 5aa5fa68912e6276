#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace gram_fast {

// Merges two attention results over disjoint sets of keys, in place, by log-sum-exp (arXiv 1805.02867; FlashInfer's
// cascade). T queries, H heads, E head width. Strides are in elements; E is contiguous. A set without keys has lse =
// -inf.
struct MergeStates {
  float* out;  // [T, H, E] in: first result, out: merged
  int64_t out_stride_t, out_stride_h;
  float* lse;  // [T, H]
  int64_t lse_stride_t, lse_stride_h;
  const void* other_out;  // [T, H, E] of `other_dtype`
  int64_t other_out_stride_t, other_out_stride_h;
  const float* other_lse;  // [T, H]
  int64_t other_lse_stride_t, other_lse_stride_h;
  Dtype other_dtype;
  int64_t num_queries, num_heads, head_dim;
};

void merge_states_cpu(const MergeStates& args);
void merge_states_cuda(const MergeStates& args, void* stream);

}  // namespace gram_fast
