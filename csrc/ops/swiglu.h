#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace gram_fast {

// Computes the gated activation SwiGLU (arXiv 2002.05202): out[t, f] = silu(gate[t, f]) * up[t, f], in float32 and
// rounded once. The bits of an element depend on its gate and up values alone, not on its place or on the threads.
struct Swiglu {
  const void* gate_up;  // [T, 2F]: gate, then up; row stride in elements, 2F contiguous
  int64_t gate_up_stride;
  void* out;    // [T, F] contiguous
  Dtype dtype;  // of gate_up and out
  int64_t num_tokens, width;
};

void swiglu_cpu(const Swiglu& args);

}  // namespace gram_fast
