#include "tables/attention_tables.h"

#include <algorithm>
#include <functional>

namespace gram_fast {
namespace {

struct Tile {
  int64_t first, end, own_start, span, num_keys;
  int64_t position;  // of the first token
};

// Whether the span fits, whole, into a tile of whole spans that read the same.
bool joins(const Tile& tile, int64_t span, const SpanTables& tables, int64_t tile_tokens) {
  return tile.own_start == tile.first && tables.spans[span].end - tile.first <= tile_tokens &&
         std::ranges::equal(tables.read_by(tile.span), tables.read_by(span));
}

std::vector<Tile> cut(const SpanTables& tables, int64_t tile_tokens, const Window& window) {
  std::vector<Tile> tiles;
  for (int64_t s = 0; s < tables.num_spans(); ++s) {
    const Extent span = tables.spans[s];
    if (span.length() <= tile_tokens && !tiles.empty() && joins(tiles.back(), s, tables, tile_tokens)) {
      tiles.back().num_keys += span.end - tiles.back().end;
      tiles.back().end = span.end;
      continue;
    }
    const int64_t before = tables.num_before(s);
    for (int64_t first = span.start; first < span.end; first += tile_tokens) {
      const int64_t end = std::min(span.end, first + tile_tokens);
      const int64_t position = before + first - span.start;
      const int64_t num_keys = position + (end - first) - window.low(position);
      tiles.push_back({first, end, span.start, s, num_keys, position});
    }
  }
  return tiles;
}

// Where the walk of a tile begins: at a slot of a range, or of its own span behind all ranges.
struct Start {
  int64_t range, own_start, slot;
};

Start start_of(const Tile& tile, const SpanTables& tables, const Window& window) {
  int64_t unread = window.low(tile.position), range = tables.range_offsets[tile.span];
  for (const Extent& slots : tables.read_by(tile.span)) {
    if (unread < slots.length()) return {range, tile.own_start, slots.start + unread};
    unread -= slots.length();
    ++range;
  }
  return {range, tile.own_start + unread, tile.own_start + unread};
}

// How many keys that its tile walks before its own tokens each packed token does not read.
std::vector<int32_t> skips_of(const std::vector<Tile>& tiles, const SpanTables& tables, const Window& window) {
  std::vector<int32_t> skips(static_cast<size_t>(tables.num_tokens()));
  for (const Tile& tile : tiles) {
    const int64_t low = window.low(tile.position);
    int64_t span = tile.span, position = tile.position;
    for (int64_t token = tile.first; token < tile.end; ++token, ++position) {
      if (token == tables.spans[span].end) {  // all spans of a tile begin at its position
        ++span;
        position = tile.position;
      }
      const int64_t skip = std::min(window.low(position), tile.position) - low;
      skips[static_cast<size_t>(token)] = static_cast<int32_t>(skip);
    }
  }
  return skips;
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

FlatTable attention_tiles(const SpanTables& tables, int64_t tile_tokens, int64_t min_tiles,
                          const std::optional<Window>& given_window) {
  const Window window = given_window.value_or(Window{});
  std::vector<Tile> tiles = cut(tables, tile_tokens, window);
  std::ranges::stable_sort(tiles, std::greater(), &Tile::num_keys);
  FlatTable table{.num_rows = std::max(static_cast<int64_t>(tiles.size()), min_tiles), .values = {}};
  for (const Tile& tile : tiles) {
    const Start start = start_of(tile, tables, window);
    table.put({tile.first, tile.end, start.own_start, start.range, tables.range_offsets[tile.span + 1]});
  }
  table.fill_to(kTileColumns * table.num_rows);
  for (int64_t s = 0; s < tables.num_spans(); ++s) {
    const Extent span = tables.spans[s];
    const int64_t before = given_window ? tables.num_before(s) : 0;
    for (int64_t t = span.start; t < span.end; ++t) {
      table.put({span.start + std::max<int64_t>(window.low(before + t - span.start) - before, 0)});
    }
  }
  if (given_window) {
    for (const int32_t skip : skips_of(tiles, tables, window)) table.put({skip});
    for (const Tile& tile : tiles) table.put({start_of(tile, tables, window).slot});
    table.fill_to(kTileColumns * table.num_rows + 2 * tables.num_tokens() + table.num_rows);
  }
  for (const Extent& range : tables.ranges) table.put({range.start, range.end});
  table.fill_rows();
  return table;
}

}  // namespace gram_fast
