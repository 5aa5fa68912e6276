#include "tree/kept_slots.h"

#include <utility>

namespace gram_fast {
namespace {

int64_t& place(std::vector<int64_t>& slots, int32_t node) {
  if (static_cast<size_t>(node) >= slots.size()) slots.resize(static_cast<size_t>(node) + 1, -1);
  return slots[static_cast<size_t>(node)];
}

void renumber_nodes(std::vector<int64_t>& slots, const std::vector<int32_t>& numbers) {
  const std::vector<int64_t> before = std::exchange(slots, {});
  for (size_t node = 0; node < before.size(); ++node) {
    if (before[node] >= 0) place(slots, numbers[node]) = before[node];
  }
}

}  // namespace

int64_t KeptSlots::allocate(int32_t node, int64_t length) { return place(slots_, node) = allocator_.allocate(length); }

void KeptSlots::release(int32_t node, int64_t length) {
  release_state(node);
  if (slot(node) < 0) return;
  allocator_.release(slot(node), length);
  place(slots_, node) = -1;
}

void KeptSlots::allocate_state(int32_t node) { place(states_, node) = state_allocator_.allocate(1); }

void KeptSlots::release_state(int32_t node) {
  if (state(node) < 0) return;
  state_allocator_.release(state(node), 1);
  place(states_, node) = -1;
}

void KeptSlots::split(int32_t node, int32_t upper, int64_t length) {
  const int64_t first = slot(node);
  if (first < 0) return;
  place(slots_, upper) = first;
  place(slots_, node) = first + length;
}

void KeptSlots::renumber(const std::vector<int32_t>& numbers) {
  renumber_nodes(slots_, numbers);
  renumber_nodes(states_, numbers);
}

}  // namespace gram_fast
