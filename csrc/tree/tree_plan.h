#pragma once

#include <cstdint>
#include <vector>

#include "tables/layout.h"
#include "tree/kept_slots.h"
#include "tree/token_tree.h"

namespace gram_fast {

// One forward over T packed tokens. Slots [0, T) hold the keys and values of the pass itself, in packed order; kept
// ones lie from the token budget on.
struct TreePass {
  std::vector<int64_t> input_ids;     // [T]
  std::vector<int64_t> position_ids;  // [T], counted along the path
  std::vector<NodeRow> nodes;
  std::vector<Extent> spans;           // causal on itself. A node and its chain of first children.
  std::vector<int64_t> range_offsets;  // one more than spans: rows of `ranges` that a span reads
  std::vector<Extent> ranges;          // slots of ancestors, read without a mask
  std::vector<int64_t> leaf_rows;      // [L]: packed index of the last token of a leaf
  std::vector<int64_t> leaf_index;     // [L]: which of the leaves asked for
  std::vector<KeepRow> keep;
};

struct TreePlan {
  std::vector<TreePass> passes;
  int64_t num_slots = 0;  // slots that the key/value buffer needs while the plan runs
  KeptSlots kept{0};      // what is kept once it has run: for TokenTree::keep
};

// Plans the forwards that give the logits of `leaves`, in depth-first order, none over `budget` tokens. Nodes whose
// keys and values are kept are read, not computed. What a later pass reads is kept until then; with `more_rounds`,
// reusable nodes of this round stay for the next one while fewer than `keep_limit` slots are in use. Kept nodes that
// this round does not touch are let go; with another budget than that of the kept slots, all of them. Nodes of the tree
// may be split, its kept slots stay as they are until it is told to keep the plan's.
TreePlan plan_passes(TokenTree& tree, const int32_t* leaves, int64_t count, int64_t budget, int64_t keep_limit,
                     bool more_rounds);

}  // namespace gram_fast
