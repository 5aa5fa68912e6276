#include "ops/tree_attention.h"

#include "ops/attention_walk.h"
#include "ops/tree_tiles.h"

namespace gram_fast {
namespace {

template <typename Isa, typename T>
void attend(const TreeAttention& a) {
  const TreeTiles table(a.tiles, a.num_tiles, a.states.num_tokens, a.is_windowed);
  walk_tiles<T, Isa>(a.states, a.num_tiles, table.max_tokens, [&](Walk<Isa, T>& walk, int64_t x, int64_t kv_head) {
    const TreeTiles::Tile& tile = table.tiles[x];
    walk.start(tile.first, tile.end, kv_head, table.span_starts, table.skips);
    for (int32_t r = tile.first_range; r < tile.end_range; ++r) {
      const bool is_cut = a.is_windowed && r == tile.first_range;
      walk.read({is_cut ? table.starts[x] : table.ranges[r].start, table.ranges[r].end});
    }
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
