#pragma once

#include <algorithm>
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
  // Tokens on the path before a span: the position of its first token.
  int64_t num_before(int64_t span) const {
    int64_t count = 0;
    for (const Extent& range : read_by(span)) count += range.length();
    return count;
  }
};

// Which tokens of its path a token reads: itself and those before it, `size` in all, or, where windows are chunked,
// those from the last multiple of `size` on. Positions are counted from the root; by default everything is read.
struct Window {
  int64_t size = std::numeric_limits<int64_t>::max();
  bool is_chunked = false;

  // The lowest position that the token at a position reads. It never falls from one position to the next.
  int64_t low(int64_t position) const {
    return is_chunked ? position / size * size : std::max<int64_t>(position - size + 1, 0);
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
