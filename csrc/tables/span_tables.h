#pragma once

#include <cstdint>
#include <span>

#include "tables/layout.h"

namespace gram_fast {

// What the tokens of a pass attend to: spans, causal on themselves, and the ranges of slots that each reads unmasked.
struct SpanTables {
  std::span<const Extent> spans;  // side by side
  const int64_t* range_offsets;   // one more than spans: rows of `ranges`
  const Extent* ranges;

  int64_t num_spans() const { return static_cast<int64_t>(spans.size()); }
  std::span<const Extent> read_by(int64_t span) const {
    return {ranges + range_offsets[span], ranges + range_offsets[span + 1]};
  }
  std::span<const Extent> all_ranges() const { return {ranges, ranges + range_offsets[num_spans()]}; }
};

}  // namespace gram_fast
