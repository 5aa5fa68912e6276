#pragma once

#include <cstdint>
#include <vector>

#include "tables/layout.h"
#include "tree/kept_slots.h"
#include "tree/token_tree.h"

namespace gram_fast {

// One pass: a forward over T packed tokens. Slots [0, T) hold the keys and values of the pass itself, in packed order;
// kept keys and values lie in the slots from the token budget on.
struct TreePass {
  std::vector<int64_t> input_ids;     // [T]
  std::vector<int64_t> position_ids;  // [T], counted along the path
  std::vector<NodeRow> nodes;
  std::vector<Extent> spans;           // causal on themselves; a node and its chain of first children
  std::vector<int64_t> range_offsets;  // [N + 1]: rows of `ranges` that each span reads
  std::vector<Extent> ranges;          // slots of ancestors, read without a mask, from the root down
  std::vector<int64_t> leaf_rows;      // [L]: packed index of each leaf's last token
  std::vector<int64_t> leaf_index;     // [L]: position of each leaf in the list that was planned
  std::vector<KeepRow> keep;
  std::vector<PieceRow> pieces;  // none for a model without states
};

// The passes of one round.
struct TreePlan {
  std::vector<TreePass> passes;
  int64_t num_slots = 0;   // slots that the key/value buffer needs while the plan runs
  int64_t num_states = 0;  // and those that the buffer of states needs
  KeptSlots kept{0};       // for TokenTree::keep, once every pass has run
};

// Plans the passes that compute the logits of `leaves`, in depth-first order, each of at most `budget` tokens and all
// of about equal size. Nodes with kept keys and values are read, not computed. A node that a later pass reads is kept
// until then; with `more_rounds`, reusable nodes are kept for the next round while at most `keep_limit` slots are in
// use. Kept nodes that this round does not read are dropped, and all of them where `budget` is not the one they were
// kept with. With a `cache_limit` above 0 reusable nodes are kept for calls to come too, and those that this round does
// not read stay, while at most so many slots are in use; the nodes that were read longest ago make room. The tables of
// every pass are checked. Planning may split nodes of the tree; the tree's kept slots change only when it is given the
// plan's (TokenTree::keep).
//
// Verdicts are computed behind all nodes, in the passes that have room for them: those of one first path one after the
// other. Throws std::invalid_argument for one of more tokens than the budget, and for verdicts of a model with states,
// as a state has one parent.
//
// A model with states has a `state_cost`, the memory of one in slots, which both limits count; 0 for one without. A
// node is computed from the state at the end of its parent. A state is kept where nodes start from it in a later pass,
// and, with its node, where later rounds may: at the ends of reusable segments. Kept nodes behind which something is
// computed and whose state is not kept are computed again.
TreePlan plan_passes(TokenTree& tree, const int32_t* leaves, int64_t count, int64_t budget, int64_t keep_limit,
                     int64_t cache_limit, bool more_rounds, int64_t state_cost);

}  // namespace gram_fast
