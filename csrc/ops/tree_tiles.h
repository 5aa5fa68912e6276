#pragma once

#include <algorithm>
#include <cstdint>

#include "tables/layout.h"

namespace gram_fast {

struct SlotRange {
  int32_t start, end;
};
static_assert(sizeof(SlotRange) == kExtentColumns * sizeof(int32_t));

// Parts of a table of attention_tiles (tables/attention_tables.h).
struct TreeTiles {
  struct Tile {
    int32_t first, end, own_start, first_range, end_range;
  };
  static_assert(sizeof(Tile) == kTileColumns * sizeof(int32_t));

  TreeTiles(const int32_t* table, int64_t num_tiles, int64_t num_tokens, bool is_windowed = false)
      : tiles(reinterpret_cast<const Tile*>(table)),
        span_starts(table + kTileColumns * num_tiles),
        skips(is_windowed ? span_starts + num_tokens : nullptr),
        starts(is_windowed ? skips + num_tokens : nullptr),
        ranges(reinterpret_cast<const SlotRange*>(is_windowed ? starts + num_tiles : span_starts + num_tokens)) {
    for (int64_t x = 0; x < num_tiles; ++x) max_tokens = std::max(max_tokens, tiles[x].end - tiles[x].first);
  }

  const Tile* tiles;
  const int32_t* span_starts;  // of every token
  const int32_t* skips;        // of every token, with a window
  const int32_t* starts;       // of every tile, with a window
  const SlotRange* ranges;
  int32_t max_tokens = 0;  // of a tile
};

}  // namespace gram_fast
