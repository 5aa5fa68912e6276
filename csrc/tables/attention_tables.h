#pragma once

#include <cstdint>
#include <vector>

#include "tables/flat_table.h"
#include "tables/layout.h"
#include "tables/span_tables.h"

namespace gram_fast {

// Rectangles of unmasked attention: runs of spans that read the same range as their r-th become one row of rank r. Rows
// of one rank never share a query.
std::vector<BlockRow> attention_blocks(const SpanTables& tables);

// What a kernel walks: tiles of queries [first, end, own start, first range, past the last range], then the start of
// every packed token's span, then the ranges. A tile holds up to `tile_tokens` tokens of one span, or whole spans that
// read the same ranges. Its queries read its ranges and slots [own start, first) without a mask, and [first, end) from
// the start of their span up to themselves. The tiles with most keys stand first: launched in this order, the longest
// work starts earliest (Graham's LPT rule). Empty tiles fill them up to `min_tiles`.
FlatTable attention_tiles(const SpanTables& tables, int64_t tile_tokens, int64_t min_tiles);

}  // namespace gram_fast
