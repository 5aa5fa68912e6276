#include "ops/path_attention.h"

#include "ops/attention_walk.h"
#include "tables/layout.h"

namespace gram_fast {
namespace {

struct PathTile {
  int32_t first, count, position, path;
};
static_assert(sizeof(PathTile) == kPathTileColumns * sizeof(int32_t));

// Slots of a path [slots, end) that follow each other, from the first on.
SlotRange run_of(const int32_t* slots, const int32_t* end) {
  SlotRange run{*slots, *slots + 1};
  while (++slots != end && *slots == run.end) ++run.end;
  return run;
}

template <typename Isa, typename T>
void attend(const PathAttention& a) {
  const auto* tiles = reinterpret_cast<const PathTile*>(a.tiles);
  walk_tiles<T, Isa>(a.states, a.num_tiles, a.tile_tokens, [&](Walk<Isa, T>& walk, int64_t x, int64_t kv_head) {
    const PathTile& tile = tiles[x];
    walk.start(tile.first, tile.first + tile.count, kv_head, nullptr);
    const int32_t *slots = a.slots + tile.path, *end = slots + tile.position;
    while (slots != end) {
      const SlotRange run = run_of(slots, end);
      walk.read(run);
      slots += run.end - run.start;
    }
    walk.finish();
  });
}

}  // namespace

void path_attention_cpu(const PathAttention& args) {
  dispatch_cpu(args.states.dtype,
               [&]<typename T>() { with_attention_instructions<T>([&]<typename Isa>() { attend<Isa, T>(args); }); });
}

}  // namespace gram_fast
