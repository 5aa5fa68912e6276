#pragma once

#include <cstdint>
#include <cstring>

namespace gram_fast {

// Element types of tensors that come in by raw pointer. The order is the one of gram_fast/ops.py.
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

}  // namespace gram_fast
