#include "ops/leaf_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/parallel.h"
#include "tables/layout.h"

namespace gram_fast {
namespace {

// Rows [start, end) of one head, in float.
template <typename T>
std::vector<float> read_rows(const void* base, int64_t stride, int64_t start, int64_t end, int64_t width) {
  std::vector<float> rows(static_cast<size_t>((end - start) * width));
  for (int64_t s = start; s < end; ++s) {
    const T* row = static_cast<const T*>(base) + s * stride;
    for (int64_t e = 0; e < width; ++e) rows[static_cast<size_t>((s - start) * width + e)] = to_float(row[e]);
  }
  return rows;
}

template <typename T, bool kIsCapped>
void attend(const LeafAttention& a) {
  const LeafTable table = leaf_table(a.items, a.num_items, a.num_leaves);
  const int64_t width = a.head_dim, group = a.num_heads / a.num_kv_heads;
#pragma omp parallel for schedule(dynamic) num_threads(num_threads())
  for (int64_t task = 0; task < a.num_items * a.num_kv_heads; ++task) {
    const LeafItem item = table.items[task / a.num_kv_heads];
    const int64_t kv_head = task % a.num_kv_heads;
    const T* k = static_cast<const T*>(a.k) + kv_head * a.k_stride_h;
    const T* v = static_cast<const T*>(a.v) + kv_head * a.v_stride_h;
    const std::vector<float> keys = read_rows<T>(k, a.k_stride_s, item.start, item.end, width);
    const std::vector<float> values = read_rows<T>(v, a.v_stride_s, item.start, item.end, width);
    std::vector<float> weights(static_cast<size_t>(item.end - item.start));
    for (int64_t row = 0; row < (item.end_entry - item.first_entry) * group; ++row) {
      const LeafEntry entry = table.entries[item.first_entry + row / group];
      const int64_t head = kv_head * group + row % group, partial = entry.partial * a.num_heads + head;
      const T* q = static_cast<const T*>(a.q) + entry.leaf * a.q_stride_l + head * a.q_stride_h;
      const std::vector<float> query = read_rows<T>(q, 0, 0, 1, width);
      const int64_t first = entry.start - item.start, end = entry.end - item.start;
      float largest = -std::numeric_limits<float>::infinity();
      for (int64_t s = first; s < end; ++s) {
        const float* key = keys.data() + s * width;
        float score = 0;
#pragma omp simd reduction(+ : score)
        for (int64_t e = 0; e < width; ++e) score += query[static_cast<size_t>(e)] * key[e];
        score *= a.scale;
        if constexpr (kIsCapped) score = a.softcap * std::tanh(score / a.softcap);
        weights[static_cast<size_t>(s)] = score;
        largest = std::max(largest, score);
      }
      float* out = a.partial_out + partial * width;
      std::fill_n(out, width, 0.0f);
      float total = 0;
      for (int64_t s = first; s < end; ++s) {
        const float weight = std::exp(weights[static_cast<size_t>(s)] - largest);
        const float* value = values.data() + s * width;
        total += weight;
        for (int64_t e = 0; e < width; ++e) out[e] += weight * value[e];
      }
      for (int64_t e = 0; e < width; ++e) out[e] /= total;
      a.partial_lse[partial] = largest + std::log(total);
    }
  }
}

template <typename T>
void merge(const LeafAttention& a) {
  const LeafTable table = leaf_table(a.items, a.num_items, a.num_leaves);
  const int64_t width = a.head_dim;
#pragma omp parallel for schedule(static) num_threads(num_threads())
  for (int64_t row = 0; row < a.num_leaves * a.num_heads; ++row) {
    const int64_t leaf = row / a.num_heads, head = row % a.num_heads;
    const int64_t first = table.leaf_offsets[leaf], end = table.leaf_offsets[leaf + 1];
    float largest = a.sinks == nullptr ? -std::numeric_limits<float>::infinity() : a.sinks[head];
    for (int64_t p = first; p < end; ++p) largest = std::max(largest, a.partial_lse[p * a.num_heads + head]);
    std::vector<float> sum(static_cast<size_t>(width), 0.0f);
    float total = a.sinks == nullptr ? 0.0f : std::exp(a.sinks[head] - largest);
    for (int64_t p = first; p < end; ++p) {
      const float weight = std::exp(a.partial_lse[p * a.num_heads + head] - largest);
      const float* out = a.partial_out + (p * a.num_heads + head) * width;
      total += weight;
      for (int64_t e = 0; e < width; ++e) sum[static_cast<size_t>(e)] += weight * out[e];
    }
    T* out = static_cast<T*>(a.out) + row * width;
    for (int64_t e = 0; e < width; ++e) out[e] = from_float<T>(sum[static_cast<size_t>(e)] / total);
  }
}

template <typename T>
void run(const LeafAttention& args) {
  if (args.softcap > 0) {
    attend<T, true>(args);
  } else {
    attend<T, false>(args);
  }
  merge<T>(args);
}

}  // namespace

void leaf_attention_cpu(const LeafAttention& args) {
  dispatch_cpu(args.dtype, [&]<typename T>() { run<T>(args); });
}

}  // namespace gram_fast
