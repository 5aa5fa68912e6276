#pragma once

#include <cstdint>
#include <cstring>

namespace gram_fast {

// Element type of a tensor that is passed by its address. The values are positions in DTYPES of
// gram_fast/ops/checks.py.
enum class Dtype : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }

inline float to_float(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

inline float to_float(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  const uint32_t rest = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  const bool is_finite = (x.bits & 0x7c00) != 0x7c00;
  // Exponent bias 15 -> 127 by one exact multiplication, which also makes half subnormals normal floats.
  float magnitude;
  std::memcpy(&magnitude, &rest, sizeof magnitude);
  magnitude *= 0x1p112f;
  uint32_t bits;
  std::memcpy(&bits, &magnitude, sizeof bits);
  if (!is_finite) bits = 0x7f800000u | rest;
  bits |= sign;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

// Rounds to the nearest, ties to even; NaN stays NaN. Without branches, so that a loop becomes vector code.
template <typename T>
T from_float(float x);

template <>
inline float from_float<float>(float x) {
  return x;
}

template <>
inline BFloat16 from_float<BFloat16>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
  return {static_cast<uint16_t>((x != x ? 0x7fc00000 : rounded) >> 16)};
}

template <>
inline Float16 from_float<Float16>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  // Below 2^-14: adding 0.5 leaves multiples of 2^-24 in the last bits of the sum, rounded by the adder.
  float sum;
  std::memcpy(&sum, &bits, sizeof sum);
  sum += 0.5f;
  uint32_t small;
  std::memcpy(&small, &sum, sizeof small);
  small -= 0x3f000000;
  const uint32_t normal = (bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13;
  uint32_t half = bits < 0x38800000 ? small : normal;
  half = bits >= 0x47800000 ? 0x7c00 : half;  // 2^16 and more
  half = x != x ? 0x7e00 : half;
  return {static_cast<uint16_t>(sign | half)};
}

// Calls `function`, a lambda with one type parameter, with the one of three types that `dtype` stands for.
template <typename Single, typename Half, typename Brain, typename Function>
void dispatch(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::kFloat32:
      return function.template operator()<Single>();
    case Dtype::kFloat16:
      return function.template operator()<Half>();
    case Dtype::kBFloat16:
      return function.template operator()<Brain>();
  }
}

// `dispatch` with the element types of CPU code.
template <typename Function>
void dispatch_cpu(Dtype dtype, const Function& function) {
  dispatch<float, Float16, BFloat16>(dtype, function);
}

}  // namespace gram_fast
