#include "tables/attention_tables.h"

#include <algorithm>
#include <functional>

namespace gram_fast {
namespace {

struct Tile {
  int64_t first, end, own_start, span, num_keys;
};

// Whether the span fits, whole, into a tile of whole spans that read the same.
bool joins(const Tile& tile, int64_t span, const SpanTables& tables, int64_t tile_tokens) {
  return tile.own_start == tile.first && tables.spans[span].end - tile.first <= tile_tokens &&
         std::ranges::equal(tables.read_by(tile.span), tables.read_by(span));
}

std::vector<Tile> cut(const SpanTables& tables, int64_t tile_tokens) {
  std::vector<Tile> tiles;
  for (int64_t s = 0; s < tables.num_spans(); ++s) {
    const Extent span = tables.spans[s];
    if (span.length() <= tile_tokens && !tiles.empty() && joins(tiles.back(), s, tables, tile_tokens)) {
      tiles.back().num_keys += span.end - tiles.back().end;
      tiles.back().end = span.end;
      continue;
    }
    int64_t num_keys = 0;
    for (const Extent& range : tables.read_by(s)) num_keys += range.length();
    for (int64_t first = span.start; first < span.end; first += tile_tokens) {
      const int64_t end = std::min(span.end, first + tile_tokens);
      tiles.push_back({first, end, span.start, s, num_keys + end - span.start});
    }
  }
  return tiles;
}

}  // namespace

std::vector<BlockRow> attention_blocks(const SpanTables& tables) {
  std::vector<std::vector<BlockRow>> by_rank;
  for (int64_t s = 0; s < tables.num_spans(); ++s) {
    const Extent span = tables.spans[s];
    size_t rank = 0;
    for (const Extent& range : tables.read_by(s)) {
      if (rank == by_rank.size()) by_rank.emplace_back();
      std::vector<BlockRow>& rows = by_rank[rank];
      if (!rows.empty() && rows.back().queries.end == span.start && rows.back().slots == range) {
        rows.back().queries.end = span.end;
      } else {
        rows.push_back({.rank = static_cast<int64_t>(rank), .queries = span, .slots = range});
      }
      ++rank;
    }
  }
  std::vector<BlockRow> blocks;
  for (const std::vector<BlockRow>& rows : by_rank) blocks.insert(blocks.end(), rows.begin(), rows.end());
  return blocks;
}

FlatTable attention_tiles(const SpanTables& tables, int64_t tile_tokens, int64_t min_tiles) {
  std::vector<Tile> tiles = cut(tables, tile_tokens);
  std::ranges::stable_sort(tiles, std::greater(), &Tile::num_keys);
  FlatTable table{.num_rows = std::max(static_cast<int64_t>(tiles.size()), min_tiles), .values = {}};
  for (const Tile& tile : tiles) {
    const int64_t* ranges = tables.range_offsets.data() + tile.span;
    table.put({tile.first, tile.end, tile.own_start, ranges[0], ranges[1]});
  }
  table.fill_to(kTileColumns * table.num_rows);
  for (const Extent& span : tables.spans) {
    for (int64_t t = span.start; t < span.end; ++t) table.put({span.start});
  }
  for (const Extent& range : tables.ranges) table.put({range.start, range.end});
  table.fill_rows();
  return table;
}

}  // namespace gram_fast
