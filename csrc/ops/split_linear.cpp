// Products on AMX tiles: a weight's rows are the left operand as they lie in memory, tokens the right one, transposed
// to pairs, so that what is packed anew for every product is small: a panel of weight rows that stays in a core's
// second cache, and the tokens once for all threads. So the weights of a model need no copy in another layout.
#include "ops/split_linear.h"

#include "common/amx.h"

#ifdef GRAM_FAST_AMX
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <new>

#include "common/parallel.h"
#endif

namespace gram_fast {

#ifdef GRAM_FAST_AMX
namespace {

#define AMX [[gnu::target(GRAM_FAST_AMX)]]
#define AMX_INLINE [[gnu::target(GRAM_FAST_AMX), gnu::always_inline]] inline

constexpr int64_t kTile = 16;  // rows of a tile
constexpr int64_t kRowBytes = 64, kTileBytes = kTile * kRowBytes;
constexpr int64_t kBlock = 32;       // weight rows, and tokens, of a block of 2 x 2 tiles of sums
constexpr int64_t kStep = 32;        // columns of x and weight that one tile product sums over
constexpr int64_t kChunkSteps = 64;  // steps whose tiles of a block of tokens stay in the second cache
constexpr int64_t kPanelBytes = 1 << 20;
constexpr int64_t kMostBlocks = 8;  // of a panel
// Multiplications, in blocks of 16 tokens, below which one thread is faster than waking another.
constexpr int64_t kFewProducts = 4 << 20;

// Bytes of the tiles of a block for one step: two of high parts, two of low ones.
constexpr int64_t kStepBytes = 4 * kTileBytes;

struct Free {
  void operator()(char* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<char[], Free>;

Buffer allocate(int64_t bytes) {
  char* memory = static_cast<char*>(std::aligned_alloc(4096, static_cast<size_t>((bytes + 4095) / 4096 * 4096)));
  if (memory == nullptr) throw std::bad_alloc();
  return Buffer(memory);
}

int64_t blocks_of(int64_t size) { return (size + kBlock - 1) / kBlock; }

// The first `count` of 32 numbers, 0 to 32: a mask of two vectors of 16.
AMX_INLINE std::array<__mmask16, 2> masks_of(int64_t count) {
  const auto bits = count >= 32 ? ~0u : (1u << count) - 1;
  return {static_cast<__mmask16>(bits), static_cast<__mmask16>(bits >> 16)};
}

// The parts of 32 numbers.
struct Parts {
  __m512i high, low;
};

AMX_INLINE __m512 widened(__m256i bfloat16s) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloat16s), 16));
}

// Reads 32 numbers; those beyond the masks are zeros.
AMX_INLINE Parts read_parts(const float* p, std::array<__mmask16, 2> masks) {
  const __m512 first = _mm512_maskz_loadu_ps(masks[0], p), second = _mm512_maskz_loadu_ps(masks[1], p + 16);
  const auto high = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
  const __m512 rest_of_first = _mm512_sub_ps(first, widened(_mm512_castsi512_si256(high)));
  const __m512 rest_of_second = _mm512_sub_ps(second, widened(_mm512_extracti64x4_epi64(high, 1)));
  return {high, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(rest_of_second, rest_of_first))};
}

// Transposes 16 rows of 16 numbers of 32 bits.
AMX_INLINE void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// Packs up to 32 rows of a weight: for each step two tiles of high and two of low parts, a row of a tile being 32
// columns of a row.
AMX void pack_weight(const float* rows, int64_t count, int64_t width, char* packed) {
  const int64_t steps = (width + kStep - 1) / kStep;
  for (int64_t row = 0; row < kBlock; ++row) {
    char* to = packed + row * kRowBytes;
    // A row at a time: the processor fetches ahead what is read in order.
    for (int64_t step = 0; step < steps; ++step, to += kStepBytes) {
      const int64_t column = step * kStep;
      const auto masks = masks_of(row < count ? width - column : 0);
      const Parts parts = read_parts(rows + (row < count ? row : 0) * width + column, masks);
      _mm512_store_si512(to, parts.high);
      _mm512_store_si512(to + 2 * kTileBytes, parts.low);
    }
  }
}

// Packs up to 32 tokens: as the weight, but a row of a tile is a pair of columns of 16 tokens.
AMX void pack_tokens(const float* tokens, int64_t count, int64_t stride, int64_t width, char* packed) {
  for (int64_t column = 0; column < width; column += kStep, packed += kStepBytes) {
    for (int64_t half = 0; half < 2; ++half) {
      __m512i high[kTile], low[kTile];
      for (int64_t i = 0; i < kTile; ++i) {
        const int64_t row = half * kTile + i;
        const auto masks = masks_of(row < count ? width - column : 0);
        const Parts parts = read_parts(tokens + (row < count ? row : 0) * stride + column, masks);
        high[i] = parts.high;
        low[i] = parts.low;
      }
      transpose(high);
      transpose(low);
      char* to = packed + half * kTileBytes;
      for (int64_t i = 0; i < kTile; ++i, to += kRowBytes) {
        _mm512_store_si512(to, high[i]);
        _mm512_store_si512(to + 2 * kTileBytes, low[i]);
      }
    }
  }
}

// Adds the products of a block of weight rows and a block of tokens, over some steps, to its 32 x 32 sums. kNarrow: of
// the tokens the first 16 alone, in the first 16 columns of the sums.
template <bool kNarrow>
AMX void multiply(const char* w, const char* x, int64_t steps, bool is_first, float* sums) {
  constexpr int kRow = kBlock * sizeof(float);
  constexpr int64_t kHalf = kTile * kBlock;
  if (is_first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, kRow);
    _tile_loadd(1, sums + kTile, kRow);
    _tile_loadd(2, sums + kHalf, kRow);
    _tile_loadd(3, sums + kHalf + kTile, kRow);
  }
  // Tiles 4 and 5: weight rows; 6 and 7: tokens. Ten loads for twelve products, in an order that gives 95 % of the rate
  // of products alone.
  for (int64_t step = 0; step < steps; ++step, w += kStepBytes, x += kStepBytes) {
    // Low parts of the weight by high ones of the tokens.
    _tile_loadd(4, w + 2 * kTileBytes, kRowBytes);
    _tile_loadd(6, x, kRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (!kNarrow) _tile_loadd(7, x + kTileBytes, kRowBytes);
    if constexpr (!kNarrow) _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, w + 3 * kTileBytes, kRowBytes);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (!kNarrow) _tile_dpbf16ps(3, 5, 7);
    // High by high.
    _tile_loadd(4, w, kRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (!kNarrow) _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, w + kTileBytes, kRowBytes);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (!kNarrow) _tile_dpbf16ps(3, 5, 7);
    // High by low.
    _tile_loadd(6, x + 2 * kTileBytes, kRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (!kNarrow) _tile_loadd(7, x + 3 * kTileBytes, kRowBytes);
    if constexpr (!kNarrow) _tile_dpbf16ps(1, 4, 7);
    if constexpr (!kNarrow) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, kRow);
  _tile_stored(1, sums + kTile, kRow);
  _tile_stored(2, sums + kHalf, kRow);
  _tile_stored(3, sums + kHalf + kTile, kRow);
}

// Adds the bias to 32 x 32 sums [weight row, token] and writes them as rows of `out`.
AMX void finish(const SplitLinear& a, const float* sums, int64_t first_token, int64_t first_out) {
  for (int64_t out = first_out; out < std::min(first_out + kBlock, a.out_width); out += kTile) {
    const __mmask16 mask = masks_of(std::min(kTile, a.out_width - out))[0];
    const __m512 bias = a.bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, a.bias + out);
    for (int64_t token = first_token; token < std::min(first_token + kBlock, a.num_tokens); token += kTile) {
      __m512i rows[kTile];
      const float* from = sums + (out - first_out) * kBlock + (token - first_token);
      for (int64_t i = 0; i < kTile; ++i) rows[i] = _mm512_loadu_si512(from + i * kBlock);
      transpose(rows);
      const int64_t count = std::min(kTile, a.num_tokens - token);
      for (int64_t i = 0; i < count; ++i) {
        const __m512 row = _mm512_add_ps(_mm512_castsi512_ps(rows[i]), bias);
        _mm512_mask_storeu_ps(a.out + (token + i) * a.out_width + out, mask, row);
      }
    }
  }
}

// Blocks [first, end) of weight rows by blocks [first, end) of tokens.
struct Part {
  int64_t first_out, end_out, first_token, end_token;
};

// The part of a thread. Threads divide the weight rows, and the tokens too where that is more even: a block of weight
// rows that several threads read is packed by each of them, at the price of about two products.
Part part_of(int64_t thread, int64_t threads, int64_t out_blocks, int64_t token_blocks) {
  int64_t best_rows = 1, least = INT64_MAX;
  for (int64_t rows = 1; rows <= threads; ++rows) {
    if (threads % rows != 0) continue;
    const int64_t out_share = (out_blocks + threads / rows - 1) / (threads / rows);
    const int64_t cost = out_share * ((token_blocks + rows - 1) / rows + 2);
    if (cost < least) best_rows = rows, least = cost;
  }
  const int64_t columns = threads / best_rows, row = thread / columns, column = thread % columns;
  return {out_blocks * column / columns, out_blocks * (column + 1) / columns, token_blocks * row / best_rows,
          token_blocks * (row + 1) / best_rows};
}

AMX void run_part(const SplitLinear& a, const Part& part, const char* tokens, char* panel, float* sums) {
  const int64_t steps = (a.width + kStep - 1) / kStep, block_bytes = steps * kStepBytes;
  const int64_t panel_blocks = std::clamp<int64_t>(kPanelBytes / std::max<int64_t>(block_bytes, 1), 1, kMostBlocks);
  configure_tiles();
  for (int64_t first = part.first_out; first < part.end_out; first += panel_blocks) {
    const int64_t blocks = std::min(panel_blocks, part.end_out - first);
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t row = (first + i) * kBlock;
      pack_weight(a.weight + row * a.width, std::min(kBlock, a.out_width - row), a.width, panel + i * block_bytes);
    }
    for (int64_t block = part.first_token; block < part.end_token; ++block) {
      const char* x = tokens + block * block_bytes;
      const bool is_narrow = a.num_tokens - block * kBlock <= kTile;
      for (int64_t step = 0; step < std::max<int64_t>(steps, 1); step += kChunkSteps) {
        const int64_t count = std::min(kChunkSteps, steps - step);
        for (int64_t i = 0; i < blocks; ++i) {
          const auto run = is_narrow ? multiply<true> : multiply<false>;
          run(panel + i * block_bytes + step * kStepBytes, x + step * kStepBytes, count, step == 0,
              sums + i * kBlock * kBlock);
        }
      }
      for (int64_t i = 0; i < blocks; ++i) {
        finish(a, sums + i * kBlock * kBlock, block * kBlock, (first + i) * kBlock);
      }
    }
  }
  release_tiles();
}

}  // namespace

void split_linear_cpu(const SplitLinear& a) {
  const int64_t steps = (a.width + kStep - 1) / kStep, block_bytes = steps * kStepBytes;
  const int64_t token_blocks = blocks_of(a.num_tokens), out_blocks = blocks_of(a.out_width);
  const int64_t products = (a.num_tokens + kTile - 1) / kTile * kTile * a.width * a.out_width;
  const int64_t threads = products < kFewProducts ? 1 : num_threads();
  const int64_t sums_bytes = kMostBlocks * kBlock * kBlock * static_cast<int64_t>(sizeof(float));
  const int64_t panel_bytes = std::max(kPanelBytes, block_bytes);
  const Buffer tokens = allocate(token_blocks * block_bytes + 1);
  const Buffer own = allocate(threads * (panel_bytes + sums_bytes));
#pragma omp parallel num_threads(static_cast<int>(threads))
  {
#pragma omp for schedule(static)
    for (int64_t block = 0; block < token_blocks; ++block) {
      const int64_t token = block * kBlock;
      pack_tokens(a.x + token * a.x_stride, std::min(kBlock, a.num_tokens - token), a.x_stride, a.width,
                  tokens.get() + block * block_bytes);
    }
    // As many parts as threads were asked for, whether they are there or not.
#pragma omp for schedule(static)
    for (int64_t thread = 0; thread < threads; ++thread) {
      char* mine = own.get() + thread * (panel_bytes + sums_bytes);
      run_part(a, part_of(thread, threads, out_blocks, token_blocks), tokens.get(), mine,
               reinterpret_cast<float*>(mine + panel_bytes));
    }
  }
}

#else
void split_linear_cpu(const SplitLinear&) {}
#endif

}  // namespace gram_fast
