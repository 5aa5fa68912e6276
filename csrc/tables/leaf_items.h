#pragma once

#include <cstdint>
#include <vector>

namespace gram_fast {

// Keys of an item at most. Work has to spread over some 132 multiprocessors: 8 leaves with 512 keys of their own are
// 128 blocks at 8 key/value heads. Smaller chunks would cost traffic: a partial result of 32 heads of 128 columns is 33
// KB to write and read, the 256 keys and values it stands for are 1 MB where one leaf alone reads them.
constexpr int64_t kChunkKeys = 256;
// Leaves of an item at most: with four query heads a key/value head 64 rows, what leaf_attention.cu takes at once in
// the 16-bit types up to width 128. Where a kernel takes fewer, the second walk over the chunk finds it in the L2
// cache.
constexpr int64_t kItemLeaves = 16;

// Slots [start, end) and the leaves that read some of them: entries [first_entry, end_entry).
struct LeafItem {
  int32_t start, end, first_entry, end_entry;
};

// A leaf reads slots [start, end) of its item; what comes of it is partial result number `partial`.
struct LeafEntry {
  int32_t leaf, start, end, partial;
};

// Plans one query a leaf, at its last token: `leaf_rows` [L] in slots; it reads the ranges of the span around it, and
// the span up to itself. Slots are cut into chunks such that leaves that read the same slots find each other in one
// item; every slot that a leaf reads is in exactly one of its entries. Items stand longest first; empty ones fill them
// up to `min_items`.
//
// Returns the flat table of `leaf_table`, filled up with zeros to a multiple of the number of items, which goes to
// `num_items`: as the number of rows it travels to the launch without a word from the device.
std::vector<int32_t> leaf_items(const int64_t* spans, const int64_t* range_offsets, const int64_t* ranges,
                                int64_t num_spans, const int64_t* leaf_rows, int64_t num_leaves, int64_t min_items,
                                int64_t& num_items);

// The parts of the table: X items, L + 1 offsets in multiples of four integers, then the entries. The partial results
// of leaf l are [leaf_offsets[l], leaf_offsets[l + 1]).
struct LeafTable {
  const LeafItem* items;
  const int32_t* leaf_offsets;
  const LeafEntry* entries;
};

inline LeafTable leaf_table(const int32_t* flat, int64_t num_items, int64_t num_leaves) {
  const int32_t* offsets = flat + 4 * num_items;
  return {reinterpret_cast<const LeafItem*>(flat), offsets,
          reinterpret_cast<const LeafEntry*>(offsets + (num_leaves + 4) / 4 * 4)};
}

}  // namespace gram_fast
