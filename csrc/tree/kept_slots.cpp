#include "tree/kept_slots.h"

namespace gram_fast {

int64_t KeptSlots::allocate(int32_t node, int64_t length) { return place(node) = allocator_.allocate(length); }

void KeptSlots::release(int32_t node, int64_t length) {
  if (slot(node) < 0) return;
  allocator_.release(slot(node), length);
  place(node) = -1;
}

void KeptSlots::split(int32_t node, int32_t upper, int64_t length) {
  const int64_t first = slot(node);
  if (first < 0) return;
  place(upper) = first;
  place(node) = first + length;
}

void KeptSlots::renumber(const std::vector<int32_t>& numbers) {
  const std::vector<int64_t> before = std::move(slots_);
  slots_.clear();
  for (size_t node = 0; node < before.size(); ++node) {
    if (before[node] >= 0) place(numbers[node]) = before[node];
  }
}

int64_t& KeptSlots::place(int32_t node) {
  if (!is_known(node)) slots_.resize(static_cast<size_t>(node) + 1, -1);
  return slots_[static_cast<size_t>(node)];
}

}  // namespace gram_fast
