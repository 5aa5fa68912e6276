#pragma once

#include <cstdint>
#include <vector>

#include "tree/token_tree.h"

namespace gram_fast {

// Chooses the leaves that one pass of at most `budget` tokens has room for, depth first, given what is kept; one leaf
// at least. Returns their positions in `leaves`.
std::vector<int64_t> leaves_of_pass(const TokenTree& tree, const int32_t* leaves, int64_t count, int64_t budget);

// Chooses verdicts whose paths have room in so many slots, and which take at most so many tokens to compute, given what
// is kept; one at least. Returns their positions in `leaves`, all of which are verdicts. They are those of some first
// paths, which fill up to three quarters of the room, with as many second paths as the rest holds: where verdicts are
// chosen until none is left, the first paths stay the same until all their verdicts are done, and the second ones
// stream by.
std::vector<int64_t> verdicts_of_plan(const TokenTree& tree, const int32_t* leaves, int64_t count, int64_t slots,
                                      int64_t tokens);

}  // namespace gram_fast
