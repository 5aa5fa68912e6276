#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tree/slot_allocator.h"

namespace gram_fast {

// Which nodes of a tree have their keys and values in which slots, and which slots are free. A value: a plan changes a
// copy of its own.
class KeptSlots {
 public:
  explicit KeptSlots(int64_t base) : allocator_(base) {}

  // First slot of the node, or -1.
  int64_t slot(int32_t node) const { return is_known(node) ? slots_[static_cast<size_t>(node)] : -1; }
  // Gives the node slots -> the first of them.
  int64_t allocate(int32_t node, int64_t length);
  // Takes its slots from a node, if it has any.
  void release(int32_t node, int64_t length);
  // The first `length` tokens of `node` became the node `upper`.
  void split(int32_t node, int32_t upper, int64_t length);

  int64_t base() const { return allocator_.base(); }
  int64_t used() const { return allocator_.used(); }
  int64_t top() const { return allocator_.top(); }

  // The state of the tree that they belong to.
  int64_t revision = 0;

 private:
  bool is_known(int32_t node) const { return static_cast<size_t>(node) < slots_.size(); }
  int64_t& place(int32_t node);

  SlotAllocator allocator_;
  std::vector<int64_t> slots_;  // by node, -1 for none; nodes beyond the end have none
};

}  // namespace gram_fast
