#include "tree/slot_allocator.h"

#include <iterator>

namespace gram_fast {

int64_t SlotAllocator::allocate(int64_t length) {
  used_ += length;
  for (auto range = free_.begin(); range != free_.end(); ++range) {
    const auto [start, available] = *range;
    if (available < length) continue;
    free_.erase(range);
    if (available > length) free_.emplace(start + length, available - length);
    return start;
  }
  const int64_t start = top_;
  top_ += length;
  return start;
}

void SlotAllocator::release(int64_t start, int64_t length) {
  used_ -= length;
  auto next = free_.lower_bound(start);
  if (next != free_.end() && next->first == start + length) {
    length += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto previous = std::prev(next);
    if (previous->first + previous->second == start) {
      start = previous->first;
      length += previous->second;
      free_.erase(previous);
    }
  }
  if (start + length == top_) {
    top_ = start;
  } else {
    free_.emplace(start, length);
  }
}

}  // namespace gram_fast
