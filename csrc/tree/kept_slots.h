#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tree/slot_allocator.h"

namespace gram_fast {

// Maps nodes of a tree to the slots of their kept keys and values, and knows which slots are free. It has value
// semantics: a plan changes its own copy.
class KeptSlots {
 public:
  explicit KeptSlots(int64_t base) : allocator_(base) {}

  // The node's first slot, or -1.
  int64_t slot(int32_t node) const { return is_known(node) ? slots_[static_cast<size_t>(node)] : -1; }
  // Assigns `length` slots to the node and returns the first.
  int64_t allocate(int32_t node, int64_t length);
  // Frees the node's slots, if it has any.
  void release(int32_t node, int64_t length);
  // Follows a split of the tree: the first `length` tokens of `node` are now the node `upper`.
  void split(int32_t node, int32_t upper, int64_t length);
  // Follows new numbers of the tree's nodes; -1 for one that is gone, which has no slots.
  void renumber(const std::vector<int32_t>& numbers);

  int64_t base() const { return allocator_.base(); }
  int64_t used() const { return allocator_.used(); }
  int64_t top() const { return allocator_.top(); }

  // Revision of the tree for which these slots hold (TokenTree::revision).
  int64_t revision = 0;

 private:
  bool is_known(int32_t node) const { return static_cast<size_t>(node) < slots_.size(); }
  int64_t& place(int32_t node);

  SlotAllocator allocator_;
  std::vector<int64_t> slots_;  // by node, -1 for none; nodes beyond the end have none
};

}  // namespace gram_fast
