#include "ops/merge_states.h"

#include <cmath>
#include <limits>

#include "common/parallel.h"

namespace gram_fast {
namespace {

template <typename T>
void merge(const MergeStates& a) {
  const T* other_base = static_cast<const T*>(a.other_out);
  const int64_t rows = a.num_queries * a.num_heads;
  // Below about 32K elements a region costs more than it saves (measured: 4 us for waking two threads).
  const bool is_large = rows * a.head_dim >= 32768;
#pragma omp parallel for schedule(static) num_threads(num_threads()) if (is_large)
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t t = row / a.num_heads, h = row % a.num_heads;
    float& lse = a.lse[t * a.lse_stride_t + h * a.lse_stride_h];
    const float other_lse = a.other_lse[t * a.other_lse_stride_t + h * a.other_lse_stride_h];
    const float largest = std::fmax(lse, other_lse);
    if (largest == -std::numeric_limits<float>::infinity()) continue;  // no key on either side: out stays as it is
    const float weight = std::exp(lse - largest), other_weight = std::exp(other_lse - largest);
    const float total = weight + other_weight;
    lse = largest + std::log(total);
    const float scale = weight / total, other_scale = other_weight / total;
    float* out = a.out + t * a.out_stride_t + h * a.out_stride_h;
    const T* other = other_base + t * a.other_out_stride_t + h * a.other_out_stride_h;
    for (int64_t e = 0; e < a.head_dim; ++e) out[e] = scale * out[e] + other_scale * to_float(other[e]);
  }
}

}  // namespace

void merge_states_cpu(const MergeStates& args) {
  dispatch_cpu(args.other_dtype, [&]<typename T>() { merge<T>(args); });
}

}  // namespace gram_fast
