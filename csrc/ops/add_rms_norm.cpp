#include "ops/add_rms_norm.h"

#include "common/lane_sum.h"
#include "common/rows.h"

namespace gram_fast {
namespace {

template <typename T>
[[gnu::always_inline]] inline void norm_row(const AddRmsNorm& a, int64_t t) {
  T* residual = static_cast<T*>(a.residual) + t * a.residual_stride;
  if (a.x) {
    const T* x = static_cast<const T*>(a.x) + t * a.x_stride;
#pragma omp simd
    for (int64_t d = 0; d < a.width; ++d) residual[d] = from_float<T>(to_float(residual[d]) + to_float(x[d]));
  }
  const float scale = rms_scale(residual, a.width, a.eps);
  const T* weight = static_cast<const T*>(a.weight);
  T* out = static_cast<T*>(a.out) + t * a.width;
#pragma omp simd
  for (int64_t d = 0; d < a.width; ++d) out[d] = from_float<T>(to_float(residual[d]) * scale * to_float(weight[d]));
}

}  // namespace

void add_rms_norm_cpu(const AddRmsNorm& args) {
  dispatch_cpu(args.dtype, [&]<typename T>() { for_each_row<norm_row<T>>(args, args.num_tokens, args.width); });
}

}  // namespace gram_fast
