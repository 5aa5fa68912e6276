#pragma once

#include <cstdint>
#include <span>

#include "tables/flat_table.h"
#include "tables/span_tables.h"

namespace gram_fast {

// Keys of an item at most. Work has to spread over some 132 multiprocessors: 8 leaves with 512 keys of their own are
// 128 blocks at 8 key/value heads. Smaller chunks would cost traffic: a partial result of 32 heads of 128 columns is 33
// KB to write and read, the 256 keys and values it stands for are 1 MB where one leaf alone reads them.
constexpr int64_t kChunkKeys = 256;
// Leaves of an item at most: with four query heads a key/value head 64 rows, what leaf_attention.cu takes at once in
// the 16-bit types up to width 128. Where a kernel takes fewer, the second walk over the chunk finds it in the L2
// cache.
constexpr int64_t kItemLeaves = 16;

// Plans one query a leaf, at its last token: `leaf_rows` in slots; it reads the ranges of the span around it, and
// the span up to itself. Slots are cut into chunks such that leaves that read the same slots find each other in one
// item; every slot that a leaf reads is in exactly one of its entries. Items stand longest first; empty ones fill them
// up to `min_items`.
// The table's parts are those of `leaf_table`.
FlatTable leaf_items(const SpanTables& tables, std::span<const int64_t> leaf_rows, int64_t min_items);

}  // namespace gram_fast
