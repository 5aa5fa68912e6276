#pragma once

#include <cmath>
#include <cstdint>

#include "common/dtype.h"

namespace gram_fast {

// A sum whose order depends on the number of terms alone, and of which the lanes are vectors: term i is added to lane i
// modulo kCount, and in the end the upper half of the lanes to the lower until one is left.
struct LaneSum {
  static constexpr int64_t kCount = 32;
  float lanes[kCount] = {};

  [[gnu::always_inline]] float total() {
    for (int64_t half = kCount / 2; half > 0; half /= 2) {
      for (int64_t j = 0; j < half; ++j) lanes[j] += lanes[half + j];
    }
    return lanes[0];
  }
};

template <typename T>
[[gnu::always_inline]] inline void add_squares(LaneSum& sum, const T* x, int64_t count) {
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) sum.lanes[j] += to_float(x[j]) * to_float(x[j]);
}

// The factor of RMSNorm (arXiv 1910.07467): 1 / sqrt(mean of squares + eps).
template <typename T>
[[gnu::always_inline]] inline float rms_scale(const T* x, int64_t width, float eps) {
  LaneSum squares;
  int64_t first = 0;
  for (; first + LaneSum::kCount <= width; first += LaneSum::kCount) add_squares(squares, x + first, LaneSum::kCount);
  add_squares(squares, x + first, width - first);
  return 1.0f / std::sqrt(squares.total() / static_cast<float>(width) + eps);
}

}  // namespace gram_fast
