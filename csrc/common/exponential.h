#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

namespace gram_fast {

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

// Without branches and library calls, so that loops over these become vector code. Static, and inlined always: files
// with and without contraction include them, and each keeps its own.

// e^r - 1 - r for |r| <= ln 2 / 2: the polynomial of expf in Cephes.
[[gnu::always_inline]] static inline float small_rest(float r) {
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * (r * r);
}

// e^r for |r| <= ln 2 / 2.
[[gnu::always_inline]] static inline float small_exponential(float r) { return small_rest(r) + r + 1.0f; }

// x - n ln 2, with ln 2 in two parts: the first product is exact.
[[gnu::always_inline]] static inline float less_logarithms(float x, float n) {
  return (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
}

// e^x within one unit in the last place, for a sum with 1: e^-87 for all below, which changes no such sum. Infinity
// from where no float is as large; anything for NaN.
[[gnu::always_inline]] static inline float exponential(float x) {
  const float small = x < -87.0f ? -87.0f : x;
  // x = n ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 * 2^23 leaves n, rounded, in the last bits of the sum.
  constexpr float kRound = 0x1.8p23f;
  const float shifted = small * 0x1.715476p0f + kRound;
  const float p = small_exponential(less_logarithms(small, shifted - kRound));
  // Times 2^n by an addition to the exponent. n is 128 just below the limit, where p is at most 1.
  const float power = from_bits(to_bits(p) + (to_bits(shifted) << 23));
  return x > 88.72283f ? std::numeric_limits<float>::infinity() : power;
}

// The same for x of at most 0, such as a score less the largest: 0 below e^-87, where floats become subnormal, and 1
// for 0. Fewer operations than `exponential`.
[[gnu::always_inline]] static inline float exponential_of_loss(float x) {
  // As above, with the bias of an exponent in the last bits: shifted to their place they are 2^n.
  constexpr float kRound = 0x1.8p23f + 127.0f;
  const float shifted = x * 0x1.715476p0f + kRound;
  const float p = small_exponential(less_logarithms(x, shifted - kRound));
  return x < -87.0f ? 0.0f : p * from_bits(to_bits(shifted) << 23);
}

// tanh(x) within a few units in the last place, however small x is: m / (m + 2) with m = e^2|x| - 1.
[[gnu::always_inline]] static inline float hyperbolic_tangent(float x) {
  constexpr float kRound = 0x1.8p23f + 127.0f;
  const float twice = 2 * from_bits(to_bits(x) & 0x7fffffffu);
  const float y = twice > 20.0f ? 20.0f : twice;  // from 18.1 on the result is 1
  const float shifted = y * 0x1.715476p0f + kRound, r = less_logarithms(y, shifted - kRound);
  const float power = from_bits(to_bits(shifted) << 23);
  const float m = power * (small_rest(r) + r) + (power - 1.0f);
  return from_bits(to_bits(m / (m + 2.0f)) | (to_bits(x) & 0x80000000u));
}

}  // namespace gram_fast
