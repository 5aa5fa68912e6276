#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace gram_fast {

// Computes the logits of the two label tokens for L of the T hidden states of width D, in float32:
// logits[l, c] = sum_d norm(hidden[rows[l]])_d * label_weight[c, d], where norm is RMSNorm (arXiv 1910.07467) or
// nothing.
struct LabelLogits {
  const void* hidden;  // [T, D], row stride in elements, D contiguous
  int64_t hidden_stride;
  const int64_t* rows;       // [L]
  const void* label_weight;  // [2, D] contiguous
  const void* norm_weight;   // [D] contiguous, or null: hidden states are already normalised
  float eps;
  float* logits;  // [L, 2] contiguous
  Dtype dtype;    // of hidden, label_weight and norm_weight
  int64_t num_leaves, width;
};

void label_logits_cpu(const LabelLogits& args);
void label_logits_cuda(const LabelLogits& args, void* stream);

}  // namespace gram_fast
