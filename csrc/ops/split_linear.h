#pragma once

#include <cstdint>

namespace gram_fast {

// Computes x @ weight.T + bias in float32 on AMX tiles. Each number is taken as the sum of two bfloat16 numbers, and a
// product as three: high by high, high by low, low by high. The bits of a row depend on that row alone, not on its
// place or on the threads.
struct SplitLinear {
  const float* x;  // [T, D]; row stride in elements, D contiguous
  int64_t x_stride;
  const float* weight;                   // [O, D] contiguous
  const float* bias;                     // [O] or null
  float* out;                            // [T, O] contiguous
  int64_t num_tokens, width, out_width;  // T, D, O
};

// To be called only where `has_amx()`.
void split_linear_cpu(const SplitLinear& args);

}  // namespace gram_fast
