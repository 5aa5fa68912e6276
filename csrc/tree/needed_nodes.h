#pragma once

#include <cstdint>
#include <vector>

#include "tree/kept_slots.h"
#include "tree/token_tree.h"

namespace gram_fast {

// The needed nodes, by number, depth first.
std::vector<int32_t> depth_first(const TokenTree& tree, const std::vector<bool>& needed);

// Which nodes of such an order, by number, are computed: those that are not kept and, of a model with states, kept ones
// behind which something is computed and whose state is not kept.
std::vector<bool> computed_nodes(const TokenTree& tree, const KeptSlots& slots, const std::vector<int32_t>& order);

}  // namespace gram_fast
