#pragma once

#include <cstdint>

namespace gram_fast {

// Layout of the integer tables that plans hand to Python and to kernels. kernels/tables.py has the same numbers in
// Python; tests/ops/test_tables.py compares the two.

// Integers in one row.
template <typename Row, typename Integer>
constexpr int64_t kColumns = sizeof(Row) / sizeof(Integer);

// Tables of a pass, 64-bit.

// Packed tokens or slots [start, end).
struct Extent {
  int64_t start, end;

  int64_t length() const { return end - start; }
  bool operator==(const Extent&) const = default;
};

// A node of a pass, in packed tokens: its own tokens, the end of its subtree, the row of its nearest ancestor in the
// pass or -1, and the tokens on the path before it.
struct NodeRow {
  Extent own;
  int64_t subtree_end, parent, depth;
};

// Keys and values to copy after a pass: packed tokens [start, start + length) to slots from `slot` on.
struct KeepRow {
  int64_t start, slot, length;
};

// Packed tokens [start, end) whose states follow each other, for models with states. It starts from the end of the
// piece `parent` of the pass, which is of a lower level, or from the state kept in slot `from`, or, where both are -1,
// from the state before any token. The state at its end goes to slot `to`, or nowhere where that is -1.
struct PieceRow {
  Extent own;
  int64_t level, parent, from, to;
};

// Queries that read slots without a mask, as the `rank`-th range of their spans.
struct BlockRow {
  int64_t rank;
  Extent queries, slots;
};

constexpr int64_t kExtentColumns = kColumns<Extent, int64_t>;
constexpr int64_t kNodeColumns = kColumns<NodeRow, int64_t>;
constexpr int64_t kKeepColumns = kColumns<KeepRow, int64_t>;
constexpr int64_t kPieceColumns = kColumns<PieceRow, int64_t>;
constexpr int64_t kBlockColumns = kColumns<BlockRow, int64_t>;

// Tables of kernels, 32-bit.

// Slots [start, end) that one block of a kernel loads, and the leaves that read some of them: entries [first_entry,
// end_entry).
struct LeafItem {
  int32_t start, end, first_entry, end_entry;
};

// The slots [start, end) of an item that a leaf reads. The result is partial result number `partial`.
struct LeafEntry {
  int32_t leaf, start, end, partial;
};

constexpr int64_t kItemColumns = kColumns<LeafItem, int32_t>;
constexpr int64_t kEntryColumns = kColumns<LeafEntry, int32_t>;
constexpr int64_t kTileColumns = 5;      // first query, end, own start, first range, end of ranges
constexpr int64_t kPathTileColumns = 4;  // first query, count, first position, start of its path; made in Python
// The offsets of leaves are filled up to a multiple of this, so that entries start at multiples of 16 bytes.
constexpr int64_t kOffsetMultiple = 4;

// Integers that the offsets take in the table.
constexpr int64_t leaf_offsets_size(int64_t num_leaves) {
  return (num_leaves + kOffsetMultiple) / kOffsetMultiple * kOffsetMultiple;
}

// Parts of a table of leaf_items: X items, L + 1 offsets with zeros up to a multiple, then the entries. Leaf l has
// partial results [leaf_offsets[l], leaf_offsets[l + 1]).
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
