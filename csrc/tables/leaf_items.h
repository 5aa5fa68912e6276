#pragma once

#include <cstdint>
#include <span>

#include "tables/flat_table.h"
#include "tables/span_tables.h"

namespace gram_fast {

// Most keys of an item. Work has to spread over some 132 multiprocessors: 8 leaves with 512 keys of their own are
// 128 blocks at 8 key/value heads. Smaller chunks would cost traffic: a partial result of 32 heads of 128 columns is 33
// KB to write and read; the 256 keys and values behind it are 1 MB where one leaf alone reads them.
constexpr int64_t kChunkKeys = 256;
// Most leaves of an item. With four query heads per key/value head they make 64 rows, as many as leaf_attention.cu
// takes at once in the 16-bit types up to width 128. Where a kernel takes fewer, the second walk over the chunk finds
// it in the L2 cache.
constexpr int64_t kItemLeaves = 16;

// Makes the table of leaf attention, with the parts of `leaf_table`. Each leaf has one query, its last token at packed
// row leaf_rows[l], which reads the ranges of its span and the span up to itself, less what its window leaves out.
// Slots are cut into chunks, and leaves that read the same chunk share an item; every slot that a leaf reads is in
// exactly one of its entries. The costliest items come first. Empty items follow, up to `min_items` in all.
FlatTable leaf_items(const SpanTables& tables, std::span<const int64_t> leaf_rows, int64_t min_items,
                     const Window& window = {});

}  // namespace gram_fast
