// torch's CPU silu takes another exponential for the tail of a loop than for its body, and threads cut its rows
// anywhere: here an element has the same bits everywhere. No sum below has two products, so fused operations leave the
// compiler no choice (common/rows.h), and they take a quarter of the time.
#include "ops/swiglu.h"

#include "common/exponential.h"
#include "common/rows.h"

namespace gram_fast {
namespace {

template <typename T>
[[gnu::always_inline]] inline void activate_row(const Swiglu& a, int64_t t) {
  const T* gate = static_cast<const T*>(a.gate_up) + t * a.gate_up_stride;
  const T* up = gate + a.width;
  T* out = static_cast<T*>(a.out) + t * a.width;
#pragma omp simd
  for (int64_t f = 0; f < a.width; ++f) {
    const float x = to_float(gate[f]);
    out[f] = from_float<T>(x / (1.0f + exponential(-x)) * to_float(up[f]));
  }
}

}  // namespace

void swiglu_cpu(const Swiglu& args) {
  dispatch_cpu(args.dtype, [&]<typename T>() { for_each_row<activate_row<T>>(args, args.num_tokens, args.width); });
}

}  // namespace gram_fast
