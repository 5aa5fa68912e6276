#pragma once

#include <cstdint>

#include "ops/attention_states.h"

namespace gram_fast {

// Computes attention of packed tokens over their paths, tile by tile (attention_tables.h), in float32 and rounded once.
struct TreeAttention {
  AttentionStates states;
  const int32_t* tiles;  // table of attention_tiles
  int64_t num_tiles;
  bool is_windowed = false;  // whether the table is one with a window
};

void tree_attention_cpu(const TreeAttention& args);

}  // namespace gram_fast
