#include "ops/rotary_into_cache.h"

#include <algorithm>

#include "common/lane_sum.h"
#include "common/rows.h"

namespace gram_fast {
namespace {

// `out` may be `x`: every element is read before it is written.
template <bool kHasNorm, typename T>
[[gnu::always_inline]] inline void rotate(const T* x, const T* norm, float eps, const float* cos, const float* sin,
                                          T* out, int64_t half) {
  const float scale = kHasNorm ? rms_scale(x, 2 * half, eps) : 1.0f;
#pragma omp simd
  for (int64_t f = 0; f < half; ++f) {
    float first = to_float(x[f]), second = to_float(x[half + f]);
    if constexpr (kHasNorm) {
      first = first * scale * to_float(norm[f]);
      second = second * scale * to_float(norm[half + f]);
    }
    out[f] = from_float<T>(first * cos[f] - second * sin[f]);
    out[half + f] = from_float<T>(second * cos[f] + first * sin[f]);
  }
}

template <typename T>
[[gnu::always_inline]] inline void rotate_token(const RotaryIntoCache& a, int64_t t) {
  const int64_t half = a.head_dim / 2;
  const float *cos = a.cos + t * a.cos_stride, *sin = a.sin + t * a.sin_stride;
  T* heads = static_cast<T*>(a.qkv) + t * a.qkv_stride_t;
  const T *q_norm = static_cast<const T*>(a.q_norm), *k_norm = static_cast<const T*>(a.k_norm);
  for (int64_t h = 0; h < a.num_heads; ++h, heads += a.qkv_stride_c) {
    if (q_norm) {
      rotate<true>(heads, q_norm, a.eps, cos, sin, heads, half);
    } else {
      rotate<false>(heads, q_norm, a.eps, cos, sin, heads, half);
    }
  }
  T* k = static_cast<T*>(a.k) + t * a.k_stride_s;
  for (int64_t h = 0; h < a.num_kv_heads; ++h, heads += a.qkv_stride_c) {
    if (k_norm) {
      rotate<true>(heads, k_norm, a.eps, cos, sin, k + h * a.k_stride_h, half);
    } else {
      rotate<false>(heads, k_norm, a.eps, cos, sin, k + h * a.k_stride_h, half);
    }
  }
  T* v = static_cast<T*>(a.v) + t * a.v_stride_s;
  for (int64_t h = 0; h < a.num_kv_heads; ++h, heads += a.qkv_stride_c) {
    std::copy_n(heads, a.head_dim, v + h * a.v_stride_h);
  }
}

}  // namespace

void rotary_into_cache_cpu(const RotaryIntoCache& args) {
  const int64_t width = (args.num_heads + 2 * args.num_kv_heads) * args.head_dim;
  dispatch_cpu(args.dtype, [&]<typename T>() { for_each_row<rotate_token<T>>(args, args.num_tokens, width); });
}

}  // namespace gram_fast
