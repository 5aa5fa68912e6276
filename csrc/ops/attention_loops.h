// No include guard: attention_instructions.h includes this once for each kind of instructions, with their name
// GRAM_FAST_NAME, the attribute GRAM_FAST_TARGET that lets the compiler use them, GRAM_FAST_LANES floats a vector,
// GRAM_FAST_VECTORS vectors a panel at most, and GRAM_FAST_HEIGHT rows of these that the registers sum up at a time.
// Templates cannot do it: the compiler takes vectors apart before it inlines a function into one with other
// instructions.

struct GRAM_FAST_NAME {
  static constexpr int kLanes = GRAM_FAST_LANES, kMaxVectors = GRAM_FAST_VECTORS, kHeight = GRAM_FAST_HEIGHT;
  static constexpr int64_t kBlockKeys = 64;  // most keys of a block
  static constexpr int64_t kFill = 16;       // rows in memory are filled up with zeros to a multiple of so many columns
  static_assert(kBlockKeys % kHeight == 0 && kFill % kHeight == 0 && kFill % kLanes == 0);

  using Element = float;                                                // of queries, keys and values on their way
  static constexpr int64_t kSpace = kBlockKeys * kLanes * kMaxVectors;  // floats

  // Around the work of a thread.
  static void begin() {}
  static void end() {}

  // Values are read as they were collected.
  static const float* turn(float* values, int64_t, int64_t) { return values; }

  // Takes a block of keys into the sums of a panel of kVectors vectors.
  template <int kVectors, bool kIsMasked, bool kIsCapped>
  GRAM_FAST_TARGET static void attend(const Panel<float>& panel, const KeyBlock<float>& block) {
    constexpr int kRows = kLanes * kVectors;
    const int64_t width = block.width, filled = block.filled_width;
    for (int64_t n = block.first / kHeight * kHeight; n < block.end; n += kHeight) {
      multiply<kVectors>(block.keys + n * filled, filled, 1, panel.queries, width, block.space + n * kRows, nullptr);
    }
    float factors[kRows];
    for (int v = 0; v < kVectors; ++v) {
      weigh<kIsMasked, kIsCapped>(panel, block, kRows, v * kLanes, factors + v * kLanes);
    }
    const float* values = block.values + block.first * filled;
    for (int64_t e = 0; e < filled; e += kHeight) {
      multiply<kVectors>(values + e, 1, filled, block.space + block.first * kRows, block.end - block.first,
                         panel.sum + e * kRows, factors);
    }
  }

  // Rows [count, width] of any dtype to rows [count, filled] in float32.
  template <typename T>
  GRAM_FAST_TARGET static void read(const T* from, int64_t stride, int64_t count, int64_t width, float* to,
                                    int64_t filled) {
    for (int64_t i = 0; i < count; ++i) {
#pragma omp simd
      for (int64_t e = 0; e < width; ++e) to[i * filled + e] = to_float(from[i * stride + e]);
    }
  }

  // One row back, times a factor.
  template <typename T>
  GRAM_FAST_TARGET static void write(const float* from, float factor, int64_t width, T* to) {
#pragma omp simd
    for (int64_t e = 0; e < width; ++e) to[e] = from_float<T>(from[e] * factor);
  }

  // kLanes rows [kLanes, filled] to columns [filled, stride] from `lane` on, and columns back to rows.
  GRAM_FAST_TARGET static void to_columns(const float* rows, int64_t filled, float* columns, int64_t stride,
                                          int64_t lane) {
    for (int64_t e = 0; e < filled; e += kLanes) transpose(rows + e, filled, columns + e * stride + lane, stride);
  }
  GRAM_FAST_TARGET static void to_rows(const float* columns, int64_t stride, int64_t filled, float* rows) {
    for (int64_t e = 0; e < filled; e += kLanes) transpose(columns + e * stride, stride, rows + e, filled);
  }

  // The backward. A panel has two vectors of rows, and a product gives kStep rows of c. Right operands lie in panels:
  // [depth, kPanel].
  static constexpr int kPanel = 2 * kLanes, kStep = 32;
  static_assert(kStep % kHeight == 0 && kBlockKeys % kStep == 0);

  // c [kStep, kPanel] = left [kStep, depth] right.
  GRAM_FAST_TARGET static void product(const float* left, int64_t stride, const float* right, int64_t depth, float* c) {
    for (int64_t i = 0; i < kStep; i += kHeight) {
      multiply<2>(left + i * stride, stride, 1, right, depth, c + i * kPanel, nullptr);
    }
  }

  // The same with a left operand of what `turn` gave: columns [e, e + kStep) of the keys from `first` on, turned.
  GRAM_FAST_TARGET static void product_with_turned(const float* keys, int64_t e, int64_t first, int64_t filled,
                                                   const float* right, int64_t depth, float* c) {
    for (int64_t i = 0; i < kStep; i += kHeight) {
      multiply<2>(keys + first * filled + e + i, 1, filled, right, depth, c + i * kPanel, nullptr);
    }
  }

  // Rows [count, filled] as right operands of depth `count`, one panel of columns behind the other.
  GRAM_FAST_TARGET static void to_right(const float* rows, int64_t count, int64_t filled, float* right) {
    for (int64_t e = 0; e < filled; e += kPanel) {
      for (int64_t row = 0; row < count; ++row) {
        std::copy_n(rows + row * filled + e, kPanel, right + e * count + row * kPanel);
      }
    }
  }

  // Rows [count, kPanel] as part of a left operand, and as a right one, in `space` where it has to be made.
  GRAM_FAST_TARGET static void to_left(const float* rows, int64_t count, float* left, int64_t stride) {
    for (int64_t n = 0; n < count; ++n) std::copy_n(rows + n * kPanel, kPanel, left + n * stride);
  }
  static const float* to_right_panel(const float* rows, int64_t, float*) { return rows; }

  // Of keys [from, to) and one panel of rows: scores become weights, and slopes with respect to weights those with
  // respect to scores before the scale. Keys that a row does not read get zeros.
  template <typename AnyPanel, typename AnyBlock>
  GRAM_FAST_TARGET static void differentiate(const AnyPanel& panel, const AnyBlock& block, int64_t from, int64_t to,
                                             float* scores, float* slopes) {
    const float scale = panel.scale;
    for (int64_t n = from; n < to; ++n) {
      float *x = scores + n * kPanel, *dx = slopes + n * kPanel;
      if (n < block.first || n >= block.end) {
        std::fill_n(x, kPanel, 0.0f);
        std::fill_n(dx, kPanel, 0.0f);
        continue;
      }
#pragma omp simd
      for (int r = 0; r < kPanel; ++r) {
        const float weight = exponential_of_loss(x[r] * scale - panel.lse[r]);
        x[r] = weight;
        dx[r] = weight * (dx[r] - panel.offset[r]) * scale;
      }
      if (n < block.num_shared) continue;
      const auto token = static_cast<int32_t>(block.own_token + n - block.num_shared);
#pragma omp simd
      for (int r = 0; r < kPanel; ++r) {
        const bool is_read = (panel.low[r] <= token) & (token <= panel.high[r]);
        x[r] = is_read ? x[r] : 0.0f;
        dx[r] = is_read ? dx[r] : 0.0f;
      }
    }
  }

 protected:
  using Lanes [[gnu::vector_size(4 * kLanes)]] = float;
  using LanesInMemory [[gnu::vector_size(4 * kLanes), gnu::aligned(4), gnu::may_alias]] = float;

  // c[i] = c[i] * factors + sum over d of a[i * row_stride + d * stride] * b[d], for kHeight rows of kVectors vectors.
  template <int kVectors>
  GRAM_FAST_TARGET [[gnu::always_inline]] static inline void multiply(const float* a, int64_t row_stride,
                                                                      int64_t stride, const float* b, int64_t depth,
                                                                      float* c, const float* factors) {
    constexpr int kRows = kLanes * kVectors;
    Lanes sum[kHeight][kVectors];
    for (int i = 0; i < kHeight; ++i) {
      for (int v = 0; v < kVectors; ++v) {
        const int at = i * kRows + v * kLanes;
        sum[i][v] = factors == nullptr ? Lanes{} : *vector(c + at) * *vector(factors + v * kLanes);
      }
    }
    for (int64_t d = 0; d < depth; ++d) {
      Lanes row[kVectors];
      for (int v = 0; v < kVectors; ++v) row[v] = *vector(b + d * kRows + v * kLanes);
      for (int i = 0; i < kHeight; ++i) {
        const float x = a[i * row_stride + d * stride];
        for (int v = 0; v < kVectors; ++v) sum[i][v] += x * row[v];
      }
    }
    for (int i = 0; i < kHeight; ++i) {
      for (int v = 0; v < kVectors; ++v) *vector(c + i * kRows + v * kLanes) = sum[i][v];
    }
  }

  // Makes weights of the scores, the first part of the space, in one vector of rows, and finds the factors by which the
  // sums before shrink.
  template <bool kIsMasked, bool kIsCapped, typename AnyPanel, typename AnyBlock>
  GRAM_FAST_TARGET [[gnu::always_inline]] static inline void weigh(const AnyPanel& panel, const AnyBlock& block,
                                                                   int num_rows, int row, float* factors) {
    const int32_t *low = panel.low + row, *high = panel.high + row;
    [[maybe_unused]] const int32_t* skip = panel.skip + row;
    const float scale = kIsCapped ? 1.0f : panel.scale;  // capped scores are scaled before
    float largest[kLanes], total[kLanes];
    for (int r = 0; r < kLanes; ++r) largest[r] = -std::numeric_limits<float>::infinity();
    for (int64_t n = block.first; n < block.end; ++n) {
      float* x = block.space + n * num_rows + row;
      if constexpr (kIsCapped) {
        const float cap = panel.softcap, factor = panel.scale / cap;
#pragma omp simd
        for (int r = 0; r < kLanes; ++r) x[r] = cap * hyperbolic_tangent(x[r] * factor);
      }
      if (kIsMasked && n < block.num_masked) {
        const auto place = static_cast<int32_t>(block.num_before + n);
#pragma omp simd
        for (int r = 0; r < kLanes; ++r) x[r] = skip[r] <= place ? x[r] : -std::numeric_limits<float>::infinity();
      }
      if (n >= block.num_shared) {
        const auto token = static_cast<int32_t>(block.own_token + n - block.num_shared);
#pragma omp simd
        for (int r = 0; r < kLanes; ++r) {
          const bool is_read = (low[r] <= token) & (token <= high[r]);
          x[r] = is_read ? x[r] : -std::numeric_limits<float>::infinity();
        }
      }
#pragma omp simd
      for (int r = 0; r < kLanes; ++r) largest[r] = x[r] > largest[r] ? x[r] : largest[r];
    }
#pragma omp simd
    for (int r = 0; r < kLanes; ++r) {
      const float before = panel.largest[row + r], scaled = largest[r] * scale;
      largest[r] = scaled > before ? scaled : before;
      factors[r] = exponential_of_loss(before - largest[r]);
      panel.largest[row + r] = largest[r];
      total[r] = 0;
    }
    for (int64_t n = block.first; n < block.end; ++n) {
      float* x = block.space + n * num_rows + row;
#pragma omp simd
      for (int r = 0; r < kLanes; ++r) {
        const float weight = exponential_of_loss(x[r] * scale - largest[r]);
        x[r] = weight;
        total[r] += weight;
      }
    }
#pragma omp simd
    for (int r = 0; r < kLanes; ++r) panel.total[row + r] = panel.total[row + r] * factors[r] + total[r];
  }

  GRAM_FAST_TARGET [[gnu::always_inline]] static inline LanesInMemory* vector(float* at) {
    return reinterpret_cast<LanesInMemory*>(at);
  }
  GRAM_FAST_TARGET [[gnu::always_inline]] static inline const LanesInMemory* vector(const float* at) {
    return reinterpret_cast<const LanesInMemory*>(at);
  }

  GRAM_FAST_TARGET [[gnu::always_inline]] static inline void transpose(const float* from, int64_t from_stride,
                                                                       float* to, int64_t to_stride) {
    Lanes rows[kLanes];
    for (int i = 0; i < kLanes; ++i) rows[i] = *vector(from + i * from_stride);
    exchange_all<1>(rows);
    for (int i = 0; i < kLanes; ++i) *vector(to + i * to_stride) = rows[i];
  }

  // Steps of a transposition, for each bit of a lane's number: of two rows whose numbers differ in that bit alone, the
  // lanes of the first that have it change places with those of the second that do not.
  template <int kBit>
  GRAM_FAST_TARGET [[gnu::always_inline]] static inline void exchange_all(Lanes (&rows)[kLanes]) {
    if constexpr (kBit < kLanes) {
      for (int i = 0; i < kLanes; ++i) {
        if (!(i & kBit)) exchange<kBit>(rows[i], rows[i + kBit], std::make_integer_sequence<int, kLanes>());
      }
      exchange_all<2 * kBit>(rows);
    }
  }
  using Places [[gnu::vector_size(4 * kLanes)]] = int32_t;
  template <int kBit, int... kLane>
  GRAM_FAST_TARGET [[gnu::always_inline]] static inline void exchange(Lanes& a, Lanes& b,
                                                                      std::integer_sequence<int, kLane...>) {
    const Lanes first = GRAM_FAST_PICK(a, b, (kLane & kBit ? kLanes + kLane - kBit : kLane)...);
    b = GRAM_FAST_PICK(a, b, (kLane & kBit ? kLanes + kLane : kLane + kBit)...);
    a = first;
  }
};
