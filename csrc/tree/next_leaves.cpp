#include "tree/next_leaves.h"

#include <algorithm>
#include <map>
#include <unordered_map>

#include "tree/needed_nodes.h"

namespace gram_fast {

std::vector<int64_t> leaves_of_pass(const TokenTree& tree, const int32_t* leaves, int64_t count, int64_t budget) {
  std::vector<bool> needed(tree.num_nodes(), false);
  std::unordered_map<int32_t, std::vector<int64_t>> at;  // positions of leaves by node
  for (int64_t i = 0; i < count; ++i) {
    const int32_t leaf = tree.leaf_node(leaves[i]);
    at[leaf].push_back(i);
    for (int32_t n = leaf; n > 0 && !needed[n]; n = tree.node(n).parent) needed[n] = true;
  }
  const KeptSlots slots = tree.kept().base() == budget ? tree.kept() : KeptSlots(budget);
  const std::vector<int32_t> order = depth_first(tree, needed);
  const std::vector<bool> computed = computed_nodes(tree, slots, order);
  std::vector<int64_t> chosen;
  int64_t tokens = 0;
  for (int32_t n : order) {
    const auto ends_here = at.find(n);
    const int64_t length = tree.node(n).length();
    // Of a kept leaf the last token is computed; with states, all of the node.
    const int64_t again = ends_here == at.end() ? 0 : (slots.state_cost() > 0 ? length : 1);
    tokens += computed[n] ? length : again;
    if (tokens > budget && !chosen.empty()) break;
    if (ends_here != at.end()) chosen.insert(chosen.end(), ends_here->second.begin(), ends_here->second.end());
  }
  return chosen;
}

std::vector<int64_t> verdicts_of_plan(const TokenTree& tree, const int32_t* leaves, int64_t count, int64_t slots,
                                      int64_t tokens) {
  std::map<int32_t, std::vector<int64_t>> by_first, by_second;  // positions of verdicts by the node that ends a path
  for (int64_t i = 0; i < count; ++i) {
    by_first[tree.leaf_node(leaves[i])].push_back(i);
    by_second[tree.second_node(leaves[i])].push_back(i);
  }
  std::vector<bool> has_path(tree.num_nodes(), false), has_first(static_cast<size_t>(count), false);
  int64_t used = 0, computed = 0;
  // Adds a path where it has room; the first one always has.
  const auto add_path = [&](int32_t end, int64_t most_used, int64_t most_computed, bool is_first) {
    int64_t length = 0, length_computed = 0;
    for (int32_t n = end; n > 0 && !has_path[n]; n = tree.node(n).parent) {
      length += tree.node(n).length();
      if (tree.kept().slot(n) < 0) length_computed += tree.node(n).length();
    }
    if (!is_first && (used + length > most_used || computed + length_computed > most_computed)) return false;
    for (int32_t n = end; n > 0 && !has_path[n]; n = tree.node(n).parent) has_path[n] = true;
    used += length;
    computed += length_computed;
    return true;
  };
  for (auto first = by_first.begin(); first != by_first.end(); ++first) {
    if (!add_path(first->first, slots / 4 * 3, tokens / 4 * 3, first == by_first.begin())) break;
    for (int64_t i : first->second) has_first[static_cast<size_t>(i)] = true;
  }
  std::vector<int64_t> chosen;
  for (const auto& [second, positions] : by_second) {
    if (std::none_of(positions.begin(), positions.end(),
                     [&](int64_t i) { return has_first[static_cast<size_t>(i)]; })) {
      continue;
    }
    if (!add_path(second, slots, tokens, chosen.empty())) break;
    for (int64_t i : positions) {
      if (!has_first[static_cast<size_t>(i)]) continue;
      const auto length = static_cast<int64_t>(tree.tail(leaves[i]).size());
      if (!chosen.empty() && computed + length > tokens) return chosen;
      computed += length;
      chosen.push_back(i);
    }
  }
  return chosen;
}

}  // namespace gram_fast
