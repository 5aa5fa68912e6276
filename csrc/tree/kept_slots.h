#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tree/slot_allocator.h"

namespace gram_fast {

// Maps nodes of a tree to the slots of their kept keys and values and, of a model with states, to that of the state at
// their end; knows which slots are free. It has value semantics: a plan changes its own copy.
class KeptSlots {
 public:
  // `state_cost`: the memory of a state, in slots of keys and values; 0 for a model without states.
  explicit KeptSlots(int64_t base, int64_t state_cost = 0) : allocator_(base), state_cost_(state_cost) {}

  // The node's first slot, or -1.
  int64_t slot(int32_t node) const { return at(slots_, node); }
  // Assigns `length` slots to the node and returns the first.
  int64_t allocate(int32_t node, int64_t length);
  // Frees the node's slots and its state, if it has any.
  void release(int32_t node, int64_t length);
  // The slot of the state at the node's end, or -1.
  int64_t state(int32_t node) const { return at(states_, node); }
  void allocate_state(int32_t node);
  // Frees the node's state, if it has one.
  void release_state(int32_t node);
  // Follows a split of the tree: the first `length` tokens of `node` are now the node `upper`, whose end has no state.
  void split(int32_t node, int32_t upper, int64_t length);
  // Follows new numbers of the tree's nodes; -1 for one that is gone, which has no slots.
  void renumber(const std::vector<int32_t>& numbers);

  int64_t base() const { return allocator_.base(); }
  int64_t state_cost() const { return state_cost_; }
  // Memory in use, in slots of keys and values.
  int64_t used() const { return allocator_.used() + state_cost_ * state_allocator_.used(); }
  int64_t top() const { return allocator_.top(); }
  int64_t num_states() const { return state_allocator_.top(); }

  // Revision of the tree for which these slots hold (TokenTree::revision).
  int64_t revision = 0;

 private:
  using ByNode = std::vector<int64_t>;  // -1 for none; nodes beyond the end have none

  static int64_t at(const ByNode& slots, int32_t node) {
    return static_cast<size_t>(node) < slots.size() ? slots[static_cast<size_t>(node)] : -1;
  }

  SlotAllocator allocator_;
  SlotAllocator state_allocator_{0};
  int64_t state_cost_;
  ByNode slots_;
  ByNode states_;
};

}  // namespace gram_fast
