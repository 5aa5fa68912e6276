#pragma once

#include <cstdint>
#include <limits>
#include <span>

#include "tables/layout.h"

namespace gram_fast {

// Slots that the packed tokens of a pass read: each span itself, causally, and the span's ranges, without a mask.
struct SpanTables {
  std::span<const Extent> spans;           // packed tokens; they cover the pass in order
  std::span<const int64_t> range_offsets;  // [N + 1]: rows of `ranges` that each span reads
  std::span<const Extent> ranges;          // slots

  int64_t num_spans() const { return static_cast<int64_t>(spans.size()); }
  int64_t num_tokens() const { return spans.empty() ? 0 : spans.back().end; }
  std::span<const Extent> read_by(int64_t span) const {
    const auto begin = static_cast<size_t>(range_offsets[span]), end = static_cast<size_t>(range_offsets[span + 1]);
    return ranges.subspan(begin, end - begin);
  }
};

// Most slots that the 32-bit tables of kernels can count.
constexpr int64_t kMaxSlots = std::numeric_limits<int32_t>::max();

// Throws std::invalid_argument unless the spans cover [0, num_tokens) in order, at most kMaxSlots tokens, and their
// ranges lie in the slots. The message names the table as the ops do (gram_fast/ops/tables.py).
void check_spans(const SpanTables& tables, int64_t num_slots, int64_t num_tokens);

// Throws std::invalid_argument unless the packed rows lie in [0, num_tokens).
void check_leaf_rows(std::span<const int64_t> leaf_rows, int64_t num_tokens);

}  // namespace gram_fast
