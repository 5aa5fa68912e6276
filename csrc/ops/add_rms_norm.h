#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace gram_fast {

// Adds to the residual stream in place and computes the RMSNorm (arXiv 1910.07467) of the rounded sum, both in float32
// and rounded once. The bits of a row depend on its values alone, not on its place or on the threads.
struct AddRmsNorm {
  void* residual;  // [T, D], row stride in elements, D contiguous; becomes residual + x
  int64_t residual_stride;
  const void* x;  // [T, D] as residual, or null: nothing is added
  int64_t x_stride;
  const void* weight;  // [D] contiguous
  float eps;
  void* out;    // [T, D] contiguous
  Dtype dtype;  // of all tensors
  int64_t num_tokens, width;
};

void add_rms_norm_cpu(const AddRmsNorm& args);

}  // namespace gram_fast
