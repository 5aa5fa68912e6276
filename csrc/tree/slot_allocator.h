#pragma once

#include <cstdint>
#include <map>

namespace gram_fast {

// Allocates contiguous ranges of key/value slots from `base` upwards: first fit; released neighbours are merged.
class SlotAllocator {
 public:
  explicit SlotAllocator(int64_t base) : base_(base), top_(base) {}

  int64_t allocate(int64_t length);
  void release(int64_t start, int64_t length);

  int64_t used() const { return used_; }
  // One more than the highest slot in use; `base` where none is.
  int64_t top() const { return top_; }
  int64_t base() const { return base_; }

 private:
  std::map<int64_t, int64_t> free_;  // start -> length; never touches another range nor top_
  int64_t base_;
  int64_t top_;
  int64_t used_ = 0;
};

}  // namespace gram_fast
