// Compiled with -ffp-contract=off: every operation below is rounded for itself, as IEEE 754 says, so a loop's vector
// body and its tail give an element the same bits, on every processor. torch's CPU silu takes another exponential for
// the tail than for the body, and threads cut its rows anywhere.
#include "ops/swiglu.h"

#include "common/exponential.h"
#include "common/parallel.h"

namespace gram_fast {
namespace {

template <typename T>
[[gnu::always_inline]] inline void activate_row(const T* gate, const T* up, T* out, int64_t width) {
#pragma omp simd
  for (int64_t f = 0; f < width; ++f) {
    const float x = to_float(gate[f]);
    out[f] = from_float<T>(x / (1.0f + exponential(-x)) * to_float(up[f]));
  }
}

// The same for processors with wider vectors than the compiler may count on: 2 and 4 times as fast, the same bits.
template <typename T>
void activate_row_plain(const T* gate, const T* up, T* out, int64_t width) {
  activate_row(gate, up, out, width);
}

#ifdef __x86_64__
template <typename T>
[[gnu::target("avx2")]] void activate_row_avx2(const T* gate, const T* up, T* out, int64_t width) {
  activate_row(gate, up, out, width);
}

template <typename T>
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl")]] void activate_row_avx512(const T* gate, const T* up, T* out,
                                                                               int64_t width) {
  activate_row(gate, up, out, width);
}
#endif

template <typename T>
auto widest() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return activate_row_avx512<T>;
  }
  if (__builtin_cpu_supports("avx2")) return activate_row_avx2<T>;
#endif
  return activate_row_plain<T>;
}

template <typename T>
void activate(const Swiglu& a) {
  const auto run = widest<T>();
#pragma omp parallel for schedule(static) num_threads(num_threads()) if (a.num_tokens * a.width >= 32768)
  for (int64_t t = 0; t < a.num_tokens; ++t) {
    const T* gate = static_cast<const T*>(a.gate_up) + t * a.gate_up_stride;
    run(gate, gate + a.width, static_cast<T*>(a.out) + t * a.width, a.width);
  }
}

}  // namespace

void swiglu_cpu(const Swiglu& args) {
  dispatch_cpu(args.dtype, [&]<typename T>() { activate<T>(args); });
}

}  // namespace gram_fast
