#pragma once

#include "common/amx.h"

#ifdef GRAM_FAST_AMX
#include <immintrin.h>

#include <algorithm>

#include "ops/attention_instructions.h"

namespace gram_fast {

// The products of attention on AMX tiles, in bfloat16: weights are rounded to it too. Columns of tiles are rows of
// queries, as lanes are; a right operand holds its rows in pairs, two numbers that are summed side by side.
// Other dtypes gain too little: float32 as the sum of three bfloat16 numbers, whose six largest products keep its 24
// bits, took 1.1 to 1.5 times as long as Avx512Attention, and float16 as the sum of two 0.75 to 1.05 times as long.
struct AmxAttention : Avx512Attention {
  using Element = BFloat16;
  static constexpr int kMaxVectors = 2;
  static constexpr int64_t kBlockKeys = 128, kFill = 32;
  static constexpr int64_t kSpace = (kBlockKeys + kBlockKeys / 2 + 32) * kLanes * kMaxVectors;

  static void begin() { configure_tiles(); }
  static void end() { release_tiles(); }

  static void read(const BFloat16* from, int64_t stride, int64_t count, int64_t width, BFloat16* to, int64_t filled) {
    for (int64_t i = 0; i < count; ++i) std::copy_n(from + i * stride, width, to + i * filled);
  }

  // kLanes rows [kLanes, filled] to columns from `lane` on: [filled / 2, stride, 2].
  [[gnu::target(GRAM_FAST_AMX)]] static void to_columns(const BFloat16* rows, int64_t filled, BFloat16* columns,
                                                        int64_t stride, int64_t lane) {
    for (int64_t e = 0; e < filled; e += kStep) {
      transpose(pairs(rows + e), filled / 2, pairs(columns + e * stride) + lane, stride);
    }
  }

  // The values of the first `num_keys` keys as [filled, kBlockKeys], behind them in memory, with zeros up to a step.
  [[gnu::target(GRAM_FAST_AMX)]] static const BFloat16* turn(BFloat16* values, int64_t num_keys, int64_t filled) {
    BFloat16* const turned = values + kBlockKeys * filled;
    std::fill(values + num_keys * filled, values + filled_up(num_keys) * filled, BFloat16{});
    alignas(64) uint32_t square[kLanes * kLanes];
    for (int64_t n = 0; n < num_keys; n += kStep) {
      for (int64_t e = 0; e < filled; e += kLanes) {
        for (int64_t i = 0; i < kLanes; ++i) {
          const BFloat16* row = values + (n + 2 * i) * filled + e;
#pragma omp simd
          for (int64_t j = 0; j < kLanes; ++j) {
            square[i * kLanes + j] = row[j].bits | static_cast<uint32_t>(row[filled + j].bits) << 16;
          }
        }
        transpose(reinterpret_cast<float*>(square), kLanes, pairs(turned + e * kBlockKeys + n), kBlockKeys / 2);
      }
    }
    return turned;
  }

  template <int kVectors, bool kIsMasked, bool kIsCapped>
  [[gnu::target(GRAM_FAST_AMX)]] static void attend(const Panel<BFloat16>& panel, const KeyBlock<BFloat16>& block) {
    constexpr int kRows = kLanes * kVectors;
    const int64_t filled = block.filled_width, first = block.first / kStep * kStep, end = filled_up(block.end);
    float* const scores = block.space;
    float* const sums = scores + kBlockKeys * kRows;
    float* const weights = sums + kStep * kRows;
    for (int64_t n = first; n < end; n += kStep) {
      multiply<kVectors>(block.keys + n * filled, filled, panel.queries, filled, scores + n * kRows);
    }
    alignas(64) float factors[kRows];
    for (int v = 0; v < kVectors; ++v) {
      weigh<kIsMasked, kIsCapped>(panel, block, kRows, v * kLanes, factors + v * kLanes);
    }
    std::fill(scores + first * kRows, scores + block.first * kRows, 0.0f);
    std::fill(scores + block.end * kRows, scores + end * kRows, 0.0f);
    to_pairs(scores + first * kRows, end - first, kRows, weights + first / 2 * kRows);
    const auto* pairs_of_weights = reinterpret_cast<const BFloat16*>(weights + first / 2 * kRows);
    for (int64_t e = 0; e < filled; e += kStep) {
      multiply<kVectors>(block.values + e * kBlockKeys + first, kBlockKeys, pairs_of_weights, end - first, sums);
      for (int64_t i = 0; i < kStep * kRows; i += kLanes) {
        auto* const sum = vector(panel.sum + e * kRows + i);
        *sum = *sum * *vector(factors + i % kRows) + *vector(sums + i);
      }
    }
  }

  // The backward, as in attention_loops.h.
  static constexpr int kPanel = 2 * kLanes;

  [[gnu::target(GRAM_FAST_AMX)]] static void product(const BFloat16* left, int64_t stride, const BFloat16* right,
                                                     int64_t depth, float* c) {
    multiply<2>(left, stride, right, depth, c);
  }

  [[gnu::target(GRAM_FAST_AMX)]] static void product_with_turned(const BFloat16* turned, int64_t e, int64_t first,
                                                                 int64_t, const BFloat16* right, int64_t depth,
                                                                 float* c) {
    multiply<2>(turned + e * kBlockKeys + first, kBlockKeys, right, depth, c);
  }

  [[gnu::target(GRAM_FAST_AMX)]] static void to_right(const BFloat16* rows, int64_t count, int64_t filled,
                                                      BFloat16* right) {
    for (int64_t e = 0; e < filled; e += kPanel) {
      for (int64_t row = 0; row < count; row += 2) {
        const BFloat16 *upper = rows + row * filled + e, *lower = upper + filled;
        auto* to = reinterpret_cast<uint32_t*>(right + e * count + row * kPanel);
#pragma omp simd
        for (int j = 0; j < kPanel; ++j) to[j] = upper[j].bits | static_cast<uint32_t>(lower[j].bits) << 16;
      }
    }
  }

  [[gnu::target(GRAM_FAST_AMX)]] static void to_left(const float* rows, int64_t count, BFloat16* left, int64_t stride) {
    for (int64_t n = 0; n < count; ++n) {
#pragma omp simd
      for (int r = 0; r < kPanel; ++r) left[n * stride + r] = from_float<BFloat16>(rows[n * kPanel + r]);
    }
  }

  [[gnu::target(GRAM_FAST_AMX)]] static const BFloat16* to_right_panel(const float* rows, int64_t count,
                                                                       BFloat16* space) {
    to_pairs(rows, count, kPanel, pairs(space));
    return space;
  }

  static constexpr int kStep = 32;  // terms of a sum that one product of tiles takes; two tiles of rows

 private:
  static int64_t filled_up(int64_t size) { return (size + kStep - 1) / kStep * kStep; }

  // Two numbers as one of 32 bits, which is only moved.
  static float* pairs(BFloat16* at) { return reinterpret_cast<float*>(at); }
  static const float* pairs(const BFloat16* at) { return reinterpret_cast<const float*>(at); }

  // c[32, kRows] = a b, with `depth` terms: a [32, depth], b [depth / 2, kRows, 2].
  template <int kVectors>
  [[gnu::target(GRAM_FAST_AMX)]] static void multiply(const BFloat16* a, int64_t a_stride, const BFloat16* b,
                                                      int64_t depth, float* c) {
    constexpr int kRows = kLanes * kVectors, kRowBytes = 4 * kRows;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t d = 0; d < depth; d += kStep) {
      const BFloat16 *left = a + d, *right = b + d * kRows;
      _tile_loadd(4, left, 2 * a_stride);
      _tile_loadd(6, right, kRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, left + kLanes * a_stride, 2 * a_stride);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kVectors == 2) {
        _tile_loadd(7, right + 2 * kLanes, kRowBytes);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, c, kRowBytes);
    _tile_stored(2, c + kLanes * kRows, kRowBytes);
    if constexpr (kVectors == 2) {
      _tile_stored(1, c + kLanes, kRowBytes);
      _tile_stored(3, c + kLanes * kRows + kLanes, kRowBytes);
    }
  }

  // Rows [count, width] as a right operand of depth `count`: [count / 2, width, 2].
  [[gnu::target(GRAM_FAST_AMX), gnu::always_inline]] static inline void to_pairs(const float* rows, int64_t count,
                                                                                 int64_t width, float* to) {
    for (int64_t n = 0; n < count; n += 2) {
      for (int64_t r = 0; r < width; r += kLanes) {
        const float* row = rows + n * width + r;
        *vector(to + n / 2 * width + r) = rounded_pairs(*vector(row), *vector(row + width));
      }
    }
  }

  // Each number of the first, rounded, beside its partner of the second.
  [[gnu::target(GRAM_FAST_AMX), gnu::always_inline]] static inline Lanes rounded_pairs(const Lanes& first,
                                                                                       const Lanes& second) {
    using Bits [[gnu::vector_size(4 * kLanes)]] = uint32_t;
    const Bits low = (reinterpret_cast<const Bits&>(first) + 0x8000) >> 16;
    const Bits high = (reinterpret_cast<const Bits&>(second) + 0x8000) & 0xffff0000;
    return reinterpret_cast<Lanes>(low | high);
  }
};

}  // namespace gram_fast
#endif
