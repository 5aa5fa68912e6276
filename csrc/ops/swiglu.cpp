// Compiled with -ffp-contract=off: every operation below is rounded for itself, as IEEE 754 says, so a loop's vector
// body and its tail give an element the same bits, on every processor. torch's CPU silu takes another exponential for
// the tail than for the body, and threads cut its rows anywhere.
#include "ops/swiglu.h"

#include <cstring>

#include "common/parallel.h"

namespace gram_fast {
namespace {

inline float from_bits(uint32_t bits) {
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

inline uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// e^x within one unit in the last place; infinity from where no float is as large, NaN for NaN. Without branches and
// library calls, so that a loop over it becomes vector code.
inline float exponential(float x) {
  // Beyond these: infinity, or too little to change the 1 that is added to it.
  x = x > 105.0f ? 105.0f : x;
  x = x < -105.0f ? -105.0f : x;
  // x = n ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 * 2^23 leaves n, rounded, in the last bits of the sum.
  constexpr float kRound = 0x1.8p23f;
  const float shifted = x * 0x1.715476p0f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;  // ln 2 in two parts: the first product is exact
  // e^r: the polynomial of expf in Cephes.
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n by two factors: n reaches from -151 to 151, the exponent of a normal float from -126 to 127.
  const uint32_t whole = to_bits(shifted) - to_bits(kRound);
  const auto half = static_cast<uint32_t>(static_cast<int32_t>(whole) >> 1);
  return p * from_bits((half + 127) << 23) * from_bits((whole - half + 127) << 23);
}

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
