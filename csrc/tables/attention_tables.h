#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "tables/flat_table.h"
#include "tables/layout.h"
#include "tables/span_tables.h"

namespace gram_fast {

// Lists the rectangles (queries x slots) of unmasked attention, sorted by rank. Neighbouring spans whose r-th range is
// the same make one row of rank r. Rows of one rank never share a query.
std::vector<BlockRow> attention_blocks(const SpanTables& tables);

// Makes the table of tree attention: tiles [first query, end, own start, first range, end of ranges], then the start of
// every packed token's span [T], then the ranges [R, 2]. A tile holds up to `tile_tokens` tokens of one span, or
// several whole spans that read the same ranges. Its queries read its ranges and slots [own start, first query) without
// a mask, and of slots [first query, end) those from the start of their span up to themselves. Tiles with the most keys
// come first, so that the longest work starts earliest (Graham's LPT rule). Empty tiles follow, up to `min_tiles` in
// all.
// With a window, a tile does not walk what stands before the lowest position that its first query reads, and two parts
// stand before the ranges: how many of the keys that its tile walks before its own tokens each packed token does not
// read [T], and the slot at which each tile's walk begins [X], which lies in its first range or, where it has none, is
// its own start. In place of the start of its span a token has the lowest slot of its span that it reads.
FlatTable attention_tiles(const SpanTables& tables, int64_t tile_tokens, int64_t min_tiles,
                          const std::optional<Window>& window);

}  // namespace gram_fast
