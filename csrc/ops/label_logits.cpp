#include "ops/label_logits.h"

#include <cmath>

#include "common/parallel.h"

namespace gram_fast {
namespace {

template <typename T>
void read_labels(const LabelLogits& a) {
  const T* hidden_base = static_cast<const T*>(a.hidden);
  const T* weight_a = static_cast<const T*>(a.label_weight);
  const T* weight_b = weight_a + a.width;
  const T* norm = static_cast<const T*>(a.norm_weight);
#pragma omp parallel for schedule(static) num_threads(num_threads()) if (a.num_leaves * a.width >= 32768)
  for (int64_t l = 0; l < a.num_leaves; ++l) {
    const T* hidden = hidden_base + a.rows[l] * a.hidden_stride;
    float squares = 0, dot_a = 0, dot_b = 0;
#pragma omp simd reduction(+ : squares, dot_a, dot_b)
    for (int64_t d = 0; d < a.width; ++d) {
      const float x = to_float(hidden[d]);
      const float scaled = norm ? x * to_float(norm[d]) : x;
      squares += x * x;
      dot_a += scaled * to_float(weight_a[d]);
      dot_b += scaled * to_float(weight_b[d]);
    }
    const float rms = norm ? 1.0f / std::sqrt(squares / static_cast<float>(a.width) + a.eps) : 1.0f;
    a.logits[2 * l] = dot_a * rms;
    a.logits[2 * l + 1] = dot_b * rms;
  }
}

}  // namespace

void label_logits_cpu(const LabelLogits& args) {
  dispatch_cpu(args.dtype, [&]<typename T>() { read_labels<T>(args); });
}

}  // namespace gram_fast
