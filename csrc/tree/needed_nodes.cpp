#include "tree/needed_nodes.h"

namespace gram_fast {

std::vector<int32_t> depth_first(const TokenTree& tree, const std::vector<bool>& needed) {
  std::vector<int32_t> order, stack{0};
  while (!stack.empty()) {
    const int32_t n = stack.back();
    const TokenTree::Node& node = tree.node(n);
    stack.pop_back();
    if (n != 0) order.push_back(n);
    for (auto child = node.children.rbegin(); child != node.children.rend(); ++child) {
      if (needed[*child]) stack.push_back(*child);
    }
  }
  return order;
}

std::vector<bool> computed_nodes(const TokenTree& tree, const KeptSlots& slots, const std::vector<int32_t>& order) {
  std::vector<bool> computed(tree.num_nodes(), false);
  for (auto n = order.rbegin(); n != order.rend(); ++n) {
    if (slots.slot(*n) < 0) computed[*n] = true;
    const int32_t parent = tree.node(*n).parent;
    if (slots.state_cost() > 0 && computed[*n] && slots.state(parent) < 0) computed[parent] = true;
  }
  return computed;
}

}  // namespace gram_fast
