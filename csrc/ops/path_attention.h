#pragma once

#include <cstdint>

#include "ops/attention_states.h"

namespace gram_fast {

// Computes attention of packed tokens over their paths such that the bits of a token depend on its path alone: blocks
// of keys are counted from the root, and what a row does not read adds zeros to its sums.
struct PathAttention {
  AttentionStates states;
  const int32_t* tiles;  // [X, kPathTileColumns]
  const int32_t* slots;  // of every path, from the root down
  int64_t num_tiles, tile_tokens;
};

void path_attention_cpu(const PathAttention& args);

}  // namespace gram_fast
