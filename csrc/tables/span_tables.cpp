#include "tables/span_tables.h"

#include <stdexcept>
#include <string>

namespace gram_fast {
namespace {

std::string text(const Extent& extent) {
  return "[" + std::to_string(extent.start) + ", " + std::to_string(extent.end) + "]";
}

// Texts are made on failure only: for a hundred spans they cost more than the check.
[[noreturn]] void fail(const std::string& expected, const std::string& got, size_t row) {
  throw std::invalid_argument(expected + ", got " + got + " in row " + std::to_string(row));
}

}  // namespace

void check_spans(const SpanTables& tables, int64_t num_slots, int64_t num_tokens) {
  const auto& [spans, offsets, ranges] = tables;
  const auto expected_spans = [&] {
    return "spans_N2: expected spans that cover 0 to " + std::to_string(num_tokens) + " in order";
  };
  int64_t covered = 0;
  for (size_t row = 0; row < spans.size(); ++row) {
    if (spans[row].start != covered || spans[row].end <= covered) fail(expected_spans(), text(spans[row]), row);
    covered = spans[row].end;
  }
  if (covered != num_tokens) {
    throw std::invalid_argument(expected_spans() + ", got " + std::to_string(spans.size()) + " that end at " +
                                std::to_string(covered));
  }
  if (covered > kMaxSlots) {
    throw std::invalid_argument("spans_N2: expected at most " + std::to_string(kMaxSlots) + " tokens, got " +
                                std::to_string(covered));
  }
  if (offsets.size() != spans.size() + 1) {
    throw std::invalid_argument("range_offsets: expected " + std::to_string(spans.size() + 1) + " rows, got " +
                                std::to_string(offsets.size()));
  }
  const auto num_ranges = static_cast<int64_t>(ranges.size());
  for (size_t row = 0; row < offsets.size(); ++row) {
    const bool rises = offsets[row] >= (row > 0 ? offsets[row - 1] : 0);
    const bool fits = (row > 0 || offsets[row] == 0) && (row + 1 < offsets.size() || offsets[row] == num_ranges);
    if (!rises || !fits) {
      fail("range_offsets: expected a rise from 0 to " + std::to_string(num_ranges), std::to_string(offsets[row]), row);
    }
  }
  for (size_t row = 0; row < ranges.size(); ++row) {
    const Extent& range = ranges[row];
    if (range.start < 0 || range.start >= range.end || range.end > num_slots) {
      fail("ranges_R2: expected 0 <= start < end <= " + std::to_string(num_slots), text(range), row);
    }
  }
}

void check_leaf_rows(std::span<const int64_t> leaf_rows, int64_t num_tokens) {
  for (size_t row = 0; row < leaf_rows.size(); ++row) {
    if (leaf_rows[row] >= 0 && leaf_rows[row] < num_tokens) continue;
    fail("leaf_rows_L: expected rows from 0 to " + std::to_string(num_tokens - 1), std::to_string(leaf_rows[row]), row);
  }
}

}  // namespace gram_fast
