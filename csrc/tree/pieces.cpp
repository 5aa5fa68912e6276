#include "tree/pieces.h"

#include <stdexcept>
#include <string>

namespace gram_fast {

std::vector<PieceRow> join_nodes(const std::vector<NodeStates>& nodes) {
  std::vector<int64_t> children(nodes.size(), 0), piece_of(nodes.size(), -1);
  for (const NodeStates& node : nodes) {
    if (node.parent >= 0) ++children[static_cast<size_t>(node.parent)];
  }
  std::vector<PieceRow> pieces;
  for (size_t row = 0; row < nodes.size(); ++row) {
    const NodeStates& node = nodes[row];
    const auto parent = static_cast<size_t>(node.parent);
    const bool continues = node.parent >= 0 && parent + 1 == row && children[parent] == 1 && nodes[parent].to < 0;
    if (continues) {
      pieces.back().own.end = node.own.end;
      pieces.back().to = node.to;
    } else {
      const int64_t above = node.parent < 0 ? -1 : piece_of[parent];
      const int64_t level = above < 0 ? 0 : pieces[static_cast<size_t>(above)].level + 1;
      pieces.push_back({.own = node.own, .level = level, .parent = above, .from = node.from, .to = node.to});
    }
    piece_of[row] = static_cast<int64_t>(pieces.size()) - 1;
  }
  return pieces;
}

void check_pieces(const std::vector<PieceRow>& pieces, const std::vector<int64_t>& position_ids, int64_t num_states) {
  const auto at = [&](int64_t row) { return position_ids[static_cast<size_t>(row)]; };
  int64_t covered = 0;
  for (size_t row = 0; row < pieces.size(); ++row) {
    const auto& [own, level, parent, from, to] = pieces[row];
    const bool is_next = own.start == covered && own.end > covered;
    const bool is_below = parent < static_cast<int64_t>(row) && !(parent >= 0 && from >= 0);
    covered = own.end;
    if (is_next && is_below && from < num_states && to < num_states) {
      const bool is_first = parent < 0 && from < 0;
      if (is_first && at(own.start) == 0) continue;
      if (from >= 0 && at(own.start) > 0) continue;
      if (parent >= 0 && at(own.start) == at(pieces[static_cast<size_t>(parent)].own.end - 1) + 1) continue;
    }
    throw std::logic_error("pieces: expected each to start where its state is, got another in row " +
                           std::to_string(row));
  }
  if (covered != static_cast<int64_t>(position_ids.size())) {
    throw std::logic_error("pieces: expected " + std::to_string(position_ids.size()) + " tokens, got " +
                           std::to_string(covered));
  }
}

}  // namespace gram_fast
