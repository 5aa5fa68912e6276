#pragma once

#include <cstdint>

namespace gram_fast {

// How the integer tables are laid out that plans hand to Python and to kernels. kernels/tables.py says the same in
// Python; tests/ops/test_tables.py compares both.

template <typename Row, typename Integer>
constexpr int64_t kColumns = sizeof(Row) / sizeof(Integer);

// Tables of a pass, 64-bit.

// Packed tokens or slots [start, end).
struct Extent {
  int64_t start, end;

  int64_t length() const { return end - start; }
  bool operator==(const Extent&) const = default;
};

// A node of a pass, in packed tokens: its own, the end of its subtree, the row of the next ancestor or -1, depth.
struct NodeRow {
  Extent own;
  int64_t subtree_end, parent, depth;
};

// A copy to make after a pass.
struct KeepRow {
  int64_t start, slot, length;
};

// Queries that read slots, unmasked, as the `rank`-th range of their spans.
struct BlockRow {
  int64_t rank;
  Extent queries, slots;
};

constexpr int64_t kExtentColumns = kColumns<Extent, int64_t>;
constexpr int64_t kNodeColumns = kColumns<NodeRow, int64_t>;
constexpr int64_t kKeepColumns = kColumns<KeepRow, int64_t>;
constexpr int64_t kBlockColumns = kColumns<BlockRow, int64_t>;

// Tables of kernels, 32-bit.

// Slots [start, end) and the leaves that read some of them: entries [first_entry, end_entry).
struct LeafItem {
  int32_t start, end, first_entry, end_entry;
};

// A leaf reads slots [start, end) of its item; what comes of it is partial result number `partial`.
struct LeafEntry {
  int32_t leaf, start, end, partial;
};

constexpr int64_t kItemColumns = kColumns<LeafItem, int32_t>;
constexpr int64_t kEntryColumns = kColumns<LeafEntry, int32_t>;
constexpr int64_t kTileColumns = 5;      // first query, end, own start, first range, past the last range
constexpr int64_t kPathTileColumns = 4;  // first query, number of them, position, start of the path; made in Python
// The offsets of leaves are filled up to a multiple of this, so that entries start at multiples of 16 bytes.
constexpr int64_t kOffsetMultiple = 4;

// Integers that the offsets of so many leaves take.
constexpr int64_t leaf_offsets_size(int64_t num_leaves) {
  return (num_leaves + kOffsetMultiple) / kOffsetMultiple * kOffsetMultiple;
}

// The parts of the table of leaf_items: X items, L + 1 offsets and what fills them up, then the entries. The partial
// results of leaf l are [leaf_offsets[l], leaf_offsets[l + 1]).
struct LeafTable {
  const LeafItem* items;
  const int32_t* leaf_offsets;
  const LeafEntry* entries;
};

inline LeafTable leaf_table(const int32_t* flat, int64_t num_items, int64_t num_leaves) {
  const int32_t* offsets = flat + kItemColumns * num_items;
  return {.items = reinterpret_cast<const LeafItem*>(flat),
          .leaf_offsets = offsets,
          .entries = reinterpret_cast<const LeafEntry*>(offsets + leaf_offsets_size(num_leaves))};
}

}  // namespace gram_fast
