#pragma once

#include <cstdint>
#include <span>

#include "tables/layout.h"

namespace gram_fast {

// Slots that the packed tokens of a pass read: each span itself, causally, and the span's ranges, without a mask.
struct SpanTables {
  std::span<const Extent> spans;  // packed tokens; they cover the pass in order
  const int64_t* range_offsets;   // [N + 1]: rows of `ranges` that each span reads
  const Extent* ranges;           // slots

  int64_t num_spans() const { return static_cast<int64_t>(spans.size()); }
  std::span<const Extent> read_by(int64_t span) const {
    return {ranges + range_offsets[span], ranges + range_offsets[span + 1]};
  }
  std::span<const Extent> all_ranges() const { return {ranges, ranges + range_offsets[num_spans()]}; }
};

}  // namespace gram_fast
