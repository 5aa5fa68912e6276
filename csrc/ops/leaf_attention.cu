#include "common/cuda_util.cuh"
#include "ops/leaf_attention.h"
#include "tables/layout.h"

namespace gram_fast {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kKeys = kWarpSize;  // of a tile: in the scores each lane has one

__device__ float warp_max(float x) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}

__device__ void store(float* p, float x) { *p = x; }
__device__ void store(__half* p, float x) { *p = __float2half(x); }
__device__ void store(__nv_bfloat16* p, float x) { *p = __float2bfloat16(x); }

template <bool kIsCapped>
__device__ float capped(float score, float softcap) {
  return kIsCapped ? softcap * tanhf(score / softcap) : score;
}

// kKeys rows of keys or values on their way from memory to the block's shared tile: a thread holds its packs of the
// next tile in registers while the block computes on this one.
template <typename T, int kWidth>
struct Rows {
  static constexpr int kPack = 16 / sizeof(T);
  static constexpr int kThreadsPerRow = kWidth / kPack;
  static constexpr int kStep = kThreads / kThreadsPerRow;
  // 16 bytes more a row: lanes that read the same columns of different rows meet in no bank.
  static constexpr int kPitch = kWidth + kPack;

  Pack<T, kPack> packs[kKeys / kStep];

  // Slots [first, end) from `base`; what lies beyond `end` or `width` becomes 0.
  __device__ void fetch(const T* base, int64_t stride, int first, int end, int width, bool is_aligned) {
    const int column = static_cast<int>(threadIdx.x) % kThreadsPerRow * kPack;
    int slot = first + static_cast<int>(threadIdx.x) / kThreadsPerRow;
    const T* p = base + slot * stride + column;
#pragma unroll
    for (int i = 0; i < kKeys / kStep; ++i, slot += kStep, p += kStep * stride) {
      const int count = slot < end ? width - column : 0;
      if (is_aligned && count > 0) {
        packs[i] = *reinterpret_cast<const Pack<T, kPack>*>(p);
      } else {
        for (int e = 0; e < kPack; ++e) packs[i].values[e] = e < count ? p[e] : T(0.0f);
      }
    }
  }

  __device__ void put(T* tile) const {
    T* p = tile + threadIdx.x / kThreadsPerRow * kPitch + threadIdx.x % kThreadsPerRow * kPack;
    __syncthreads();  // the tile before is used up
#pragma unroll
    for (int i = 0; i < kKeys / kStep; ++i) *reinterpret_cast<Pack<T, kPack>*>(p + i * kStep * kPitch) = packs[i];
    __syncthreads();
  }
};

// One block an item and key/value head. Its rows, query heads of leaves, are dealt out to the warps; for each tile of
// keys a lane computes the scores of one key, and then sums two columns in every 64 of the values. Online softmax as in
// FlashAttention (arXiv 2205.14135).
template <typename T, int kWidth, bool kIsCapped>
__global__ void __launch_bounds__(kThreads, kWidth * sizeof(T) < 1024 ? 2 : 1)
    attend_kernel(LeafAttention a, LeafTable table, bool is_aligned) {
  using Tile = Rows<T, kWidth>;
  constexpr int kPack = Tile::kPack, kPairs = kWidth / (2 * kWarpSize);
  // Rows of a warp: with more, queries and tile would not fit into 48 KiB. The keys are fetched again for further rows.
  constexpr int kRowBytes = kWidth * sizeof(T);
  constexpr int kRows = kRowBytes <= 256 ? 8 : kRowBytes <= 512 ? 4 : 1;
  constexpr int kAtOnce = kWidth <= 128 ? 4 : 2;  // keys whose values a lane holds in registers
  __shared__ __align__(16) T tile[kKeys * Tile::kPitch];
  __shared__ __align__(16) T queries[kWarps * kRows * kWidth];
  __shared__ __align__(16) float weights[kWarps * kRows * kKeys];
  __shared__ int2 reads[kWarps * kRows];

  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int num_heads = static_cast<int>(a.num_heads), group = static_cast<int>(a.num_heads / a.num_kv_heads);
  const int width = static_cast<int>(a.head_dim), kv_head = static_cast<int>(blockIdx.x % a.num_kv_heads);
  const LeafItem item = table.items[blockIdx.x / a.num_kv_heads];
  const T* k = static_cast<const T*>(a.k) + kv_head * a.k_stride_h;
  const T* v = static_cast<const T*>(a.v) + kv_head * a.v_stride_h;
  T* my_queries = queries + warp * kRows * kWidth;
  float* my_weights = weights + warp * kRows * kKeys;
  int2* my_reads = reads + warp * kRows;
  const int num_rows = (item.end_entry - item.first_entry) * group;

  for (int first_row = 0; first_row < num_rows; first_row += kWarps * kRows) {
    // Row r of this warp is row first_row + r * kWarps + warp of the item, so that few rows still keep all warps busy.
    const auto entry_of = [&](int r) {
      return table.entries[item.first_entry + (first_row + r * kWarps + warp) / group];
    };
    const auto head_of = [&](int r) { return kv_head * group + (first_row + r * kWarps + warp) % group; };
    const int my_rows = min(kRows, max(0, (num_rows - first_row - warp + kWarps - 1) / kWarps));
    float peak[kRows], total[kRows], sum[kRows][2 * kPairs];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      peak[r] = -INFINITY;
      total[r] = 0;
      for (int c = 0; c < 2 * kPairs; ++c) sum[r][c] = 0;
      if (r >= my_rows) continue;
      const LeafEntry entry = entry_of(r);
      if (lane == 0) my_reads[r] = make_int2(entry.start, entry.end);
      const T* q = static_cast<const T*>(a.q) + entry.leaf * a.q_stride_l + head_of(r) * a.q_stride_h;
      for (int e = lane; e < kWidth; e += kWarpSize) my_queries[r * kWidth + e] = e < width ? q[e] : T(0.0f);
    }

    Tile next;
    next.fetch(k, a.k_stride_s, item.start, item.end, width, is_aligned);
    for (int first = item.start; first < item.end; first += kKeys) {
      next.put(tile);
      next.fetch(v, a.v_stride_s, first, item.end, width, is_aligned);
      float score[kRows] = {};
      for (int column = 0; column < kWidth; column += kPack) {
        const Pack<float, kPack> key = load_pack<kPack>(tile + lane * Tile::kPitch + column);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (r >= my_rows) continue;
          const Pack<float, kPack> query = load_pack<kPack>(my_queries + r * kWidth + column);
          for (int e = 0; e < kPack; ++e) score[r] += query.values[e] * key.values[e];
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r >= my_rows) continue;
        const bool is_read = first + lane >= my_reads[r].x && first + lane < my_reads[r].y;
        const float scaled = is_read ? capped<kIsCapped>(score[r] * a.scale, a.softcap) : -INFINITY;
        const float new_peak = fmaxf(peak[r], warp_max(scaled));
        // Where the row has read no key yet, -INFINITY less itself would be NaN.
        const float weight = is_read ? expf(scaled - new_peak) : 0.0f;
        const float shrink = peak[r] == -INFINITY ? 0.0f : expf(peak[r] - new_peak);
        peak[r] = new_peak;
        total[r] = total[r] * shrink + weight;
        for (int c = 0; c < 2 * kPairs; ++c) sum[r][c] *= shrink;
        my_weights[r * kKeys + lane] = weight;
      }

      next.put(tile);
      if (first + kKeys < item.end) next.fetch(k, a.k_stride_s, first + kKeys, item.end, width, is_aligned);
      for (int key = 0; key < kKeys; key += kAtOnce) {
        Pack<float, 2> value[kAtOnce][kPairs];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          for (int c = 0; c < kPairs; ++c) {
            value[i][c] = load_pack<2>(tile + (key + i) * Tile::kPitch + 2 * (c * kWarpSize + lane));
          }
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (r >= my_rows) continue;
          const Pack<float, kAtOnce> weight = load_pack<kAtOnce>(my_weights + r * kKeys + key);
          for (int i = 0; i < kAtOnce; ++i) {
            for (int c = 0; c < 2 * kPairs; ++c) sum[r][c] += weight.values[i] * value[i][c / 2].values[c % 2];
          }
        }
      }
    }

#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= my_rows) continue;
      const float all = warp_sum(total[r]);
      const int64_t partial = static_cast<int64_t>(entry_of(r).partial) * num_heads + head_of(r);
      for (int c = 0; c < 2 * kPairs; ++c) {
        const int column = 2 * (c / 2 * kWarpSize + lane) + c % 2;
        if (column < width) a.partial_out[partial * width + column] = sum[r][c] / all;
      }
      if (lane == 0) a.partial_lse[partial] = peak[r] + logf(all);
    }
  }
}

// One warp a leaf and head: lanes stride over the head width.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads) merge_kernel(LeafAttention a, LeafTable table) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  if (row >= a.num_leaves * a.num_heads) return;
  const int64_t leaf = row / a.num_heads, head = row % a.num_heads;
  const int64_t first = table.leaf_offsets[leaf], end = table.leaf_offsets[leaf + 1];
  const float sink = a.sinks == nullptr ? -INFINITY : a.sinks[head];
  float peak = sink, sum[kWidth / kWarpSize] = {};
  for (int64_t p = first + lane; p < end; p += kWarpSize) peak = fmaxf(peak, a.partial_lse[p * a.num_heads + head]);
  peak = warp_max(peak);
  float total = a.sinks == nullptr ? 0.0f : expf(sink - peak);
  for (int64_t p = first; p < end; ++p) {
    const float weight = expf(a.partial_lse[p * a.num_heads + head] - peak);
    const float* out = a.partial_out + (p * a.num_heads + head) * a.head_dim;
    total += weight;
    for (int i = 0; i < kWidth / kWarpSize; ++i) {
      const int column = i * kWarpSize + lane;
      if (column < a.head_dim) sum[i] += weight * out[column];
    }
  }
  T* out = static_cast<T*>(a.out) + row * a.head_dim;
  for (int i = 0; i < kWidth / kWarpSize; ++i) {
    const int column = i * kWarpSize + lane;
    if (column < a.head_dim) store(out + column, sum[i] / total);
  }
}

template <typename T, int kWidth>
void run(const LeafAttention& a, void* stream) {
  constexpr int kPack = Rows<T, kWidth>::kPack;
  const bool is_aligned = a.head_dim % kPack == 0 && rows_start_packs<T, kPack>(a.k, {a.k_stride_s, a.k_stride_h}) &&
                          rows_start_packs<T, kPack>(a.v, {a.v_stride_s, a.v_stride_h});
  const LeafTable table = leaf_table(a.items, a.num_items, a.num_leaves);
  const auto items = static_cast<unsigned>(a.num_items * a.num_kv_heads);
  const auto merges = static_cast<unsigned>((a.num_leaves * a.num_heads + kWarps - 1) / kWarps);
  const auto attend = a.softcap > 0 ? attend_kernel<T, kWidth, true> : attend_kernel<T, kWidth, false>;
  launch_kernel(attend, items, kThreads, stream, a, table, is_aligned);
  launch_kernel(merge_kernel<T, kWidth>, merges, kThreads, stream, a, table);
  check_launch("leaf_attention");
}

template <typename T>
void run(const LeafAttention& args, void* stream) {
  if (args.head_dim <= 64) return run<T, 64>(args, stream);
  if (args.head_dim <= 128) return run<T, 128>(args, stream);
  return run<T, 256>(args, stream);
}

}  // namespace

void leaf_attention_cuda(const LeafAttention& args, void* stream) {
  if (args.num_leaves == 0) return;
  dispatch_cuda(args.dtype, [&]<typename T>() { run<T>(args, stream); });
}

}  // namespace gram_fast
