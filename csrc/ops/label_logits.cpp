#include "ops/label_logits.h"

#include "common/lane_sum.h"
#include "common/rows.h"

namespace gram_fast {
namespace {

// Adds the products of elements [first, first + count) of a hidden state with those of the two label weights.
template <bool kHasNorm, typename T>
[[gnu::always_inline]] inline void add_products(const LabelLogits& a, const T* hidden, int64_t first, int64_t count,
                                                LaneSum& dot_a, LaneSum& dot_b) {
  const T *weight_a = static_cast<const T*>(a.label_weight) + first, *weight_b = weight_a + a.width;
  const T* norm = static_cast<const T*>(a.norm_weight);
#pragma omp simd
  for (int64_t j = 0; j < count; ++j) {
    float x = to_float(hidden[first + j]);
    if constexpr (kHasNorm) x *= to_float(norm[first + j]);
    dot_a.lanes[j] += x * to_float(weight_a[j]);
    dot_b.lanes[j] += x * to_float(weight_b[j]);
  }
}

template <bool kHasNorm, typename T>
[[gnu::always_inline]] inline void read_leaf(const LabelLogits& a, int64_t l) {
  const T* hidden = static_cast<const T*>(a.hidden) + a.rows[l] * a.hidden_stride;
  LaneSum dot_a, dot_b;
  int64_t first = 0;
  for (; first + LaneSum::kCount <= a.width; first += LaneSum::kCount) {
    add_products<kHasNorm>(a, hidden, first, LaneSum::kCount, dot_a, dot_b);
  }
  add_products<kHasNorm>(a, hidden, first, a.width - first, dot_a, dot_b);
  const float scale = kHasNorm ? rms_scale(hidden, a.width, a.eps) : 1.0f;
  a.logits[2 * l] = dot_a.total() * scale;
  a.logits[2 * l + 1] = dot_b.total() * scale;
}

template <typename T>
void read_labels(const LabelLogits& a) {
  if (a.norm_weight) return for_each_row<read_leaf<true, T>>(a, a.num_leaves, a.width);
  for_each_row<read_leaf<false, T>>(a, a.num_leaves, a.width);
}

}  // namespace

void label_logits_cpu(const LabelLogits& args) {
  dispatch_cpu(args.dtype, [&]<typename T>() { read_labels<T>(args); });
}

}  // namespace gram_fast
