#include "ops/tree_attention.h"

#include <algorithm>

#include "ops/attention_walk.h"
#include "tables/layout.h"

namespace gram_fast {
namespace {

struct Tile {
  int32_t first, end, own_start, first_range, end_range;
};
static_assert(sizeof(Tile) == kTileColumns * sizeof(int32_t));
static_assert(sizeof(SlotRange) == kExtentColumns * sizeof(int32_t));

template <typename Isa, typename T>
void attend(const TreeAttention& a) {
  // Parts of a table of attention_tiles.
  const auto* tiles = reinterpret_cast<const Tile*>(a.tiles);
  const int32_t* span_starts = a.tiles + kTileColumns * a.num_tiles;
  const auto* ranges = reinterpret_cast<const SlotRange*>(span_starts + a.states.num_tokens);
  int32_t max_tokens = 0;
  for (int64_t x = 0; x < a.num_tiles; ++x) max_tokens = std::max(max_tokens, tiles[x].end - tiles[x].first);
  walk_tiles<T, Isa>(a.states, a.num_tiles, max_tokens, [&](Walk<Isa, T>& walk, int64_t x, int64_t kv_head) {
    const Tile& tile = tiles[x];
    walk.start(tile.first, tile.end, kv_head, span_starts);
    for (int32_t r = tile.first_range; r < tile.end_range; ++r) walk.read(ranges[r]);
    walk.read({tile.own_start, tile.first});
    walk.finish();
  });
}

}  // namespace

void tree_attention_cpu(const TreeAttention& args) {
  dispatch_cpu(args.states.dtype,
               [&]<typename T>() { with_attention_instructions<T>([&]<typename Isa>() { attend<Isa, T>(args); }); });
}

}  // namespace gram_fast
