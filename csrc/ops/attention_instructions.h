#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "common/amx.h"
#include "common/dtype.h"
#include "common/exponential.h"

namespace gram_fast {

// A panel of queries on its way through the blocks of keys that it reads: online softmax as in FlashAttention (arXiv
// 2205.14135). Everything is transposed, a row of queries to a lane: the largest score, the sums and the factors of a
// row need nothing of another lane, and keys and values are read as they lie, an element at a time for all lanes.
// R rows of the panel, a multiple of the lanes; E head width, F the same filled up.
template <typename Element>
struct Panel {
  const Element* queries;  // [F, R], as `to_columns` makes them
  float* sum;              // [F, R]: weighted values so far
  float* largest;          // [R]: score so far, scaled
  float* total;            // [R]: of weights so far
  const int32_t* low;      // [R]: first own token that a row reads
  const int32_t* high;     // [R]: and last
  const int32_t* skip;     // [R]: how many of the first keys of the tile's walk a row does not read
  float scale;             // factor on the scores
  float softcap;           // of scores, or 0
};

// Keys and values of which the rows of a panel read [first, end): those before `num_shared` all, without a mask but for
// the first `num_masked`, before which `num_before` keys were walked: of these what `skip` of the row says. And of the
// own tokens that follow, from `own_token` on, what `low` and `high` of the row say.
template <typename Element>
struct KeyBlock {
  const Element* keys;    // [kBlockKeys, F]
  const Element* values;  // [kBlockKeys, F], or what `turn` makes of them
  float* space;           // scores [kBlockKeys, R], and what else `attend` needs
  int64_t width, filled_width;
  int64_t first, end, num_shared, own_token;
  int64_t num_masked = 0, num_before = 0;
};

// What the backward reads of the rows of a panel.
struct BackwardPanel {
  const float* lse;     // [R]
  const float* offset;  // [R]: what slopes with respect to weights are counted from
  const int32_t* low;   // as above
  const int32_t* high;
  float scale;
};

// Lanes of two vectors by their places in both, one after the other. GCC has the first since 12, clang lacks the
// second.
#if __has_builtin(__builtin_shufflevector)
#define GRAM_FAST_PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define GRAM_FAST_PICK(a, b, ...) __builtin_shuffle(a, b, Places{__VA_ARGS__})
#endif

#define GRAM_FAST_NAME PlainAttention
#define GRAM_FAST_TARGET
#define GRAM_FAST_LANES 4
#define GRAM_FAST_VECTORS 2
#define GRAM_FAST_HEIGHT 4
#include "ops/attention_loops.h"
#undef GRAM_FAST_NAME
#undef GRAM_FAST_TARGET
#undef GRAM_FAST_LANES
#undef GRAM_FAST_VECTORS
#undef GRAM_FAST_HEIGHT

#ifdef __x86_64__
#define GRAM_FAST_NAME Avx2Attention
#define GRAM_FAST_TARGET [[gnu::target("avx2,fma")]]
#define GRAM_FAST_LANES 8
#define GRAM_FAST_VECTORS 3
#define GRAM_FAST_HEIGHT 4
#include "ops/attention_loops.h"
#undef GRAM_FAST_NAME
#undef GRAM_FAST_TARGET
#undef GRAM_FAST_LANES
#undef GRAM_FAST_VECTORS
#undef GRAM_FAST_HEIGHT

#define GRAM_FAST_NAME Avx512Attention
#define GRAM_FAST_TARGET [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl")]]
#define GRAM_FAST_LANES 16
#define GRAM_FAST_VECTORS 3
#define GRAM_FAST_HEIGHT 8
#include "ops/attention_loops.h"
#undef GRAM_FAST_NAME
#undef GRAM_FAST_TARGET
#undef GRAM_FAST_LANES
#undef GRAM_FAST_VECTORS
#undef GRAM_FAST_HEIGHT
#endif

}  // namespace gram_fast

#include "ops/attention_amx.h"

namespace gram_fast {

// Calls `function`, a lambda with one type parameter, with the fastest of these that the processor has.
template <typename T, typename Function>
void with_attention_instructions(const Function& function) {
#ifdef GRAM_FAST_AMX
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (has_amx()) return function.template operator()<AmxAttention>();
  }
#endif
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return function.template operator()<Avx512Attention>();
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return function.template operator()<Avx2Attention>();
  }
#endif
  function.template operator()<PlainAttention>();
}

}  // namespace gram_fast
