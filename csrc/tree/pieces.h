#pragma once

#include <cstdint>
#include <vector>

#include "tables/layout.h"

namespace gram_fast {

// A node of a pass: its packed tokens; the row of its parent, where the pass computes that too, or -1; the slot of the
// state that it starts from, or -1; the slot that the state at its end goes to, or -1.
struct NodeStates {
  Extent own;
  int64_t parent, from, to;
};

// Joins the nodes of a pass, in packed order, to pieces: a node continues the piece of its parent where nothing else
// starts at the border between them.
std::vector<PieceRow> join_nodes(const std::vector<NodeStates>& nodes);

// Throws std::logic_error unless the pieces cover the tokens at these positions in order, each starts where what it
// starts from ends, and slots are below `num_states`.
void check_pieces(const std::vector<PieceRow>& pieces, const std::vector<int64_t>& position_ids, int64_t num_states);

}  // namespace gram_fast
