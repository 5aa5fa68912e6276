#include "tree/token_tree.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace gram_fast {

TokenTree::TokenTree(std::vector<int32_t> head_ids) : head_ids_(std::move(head_ids)) { plant(); }

void TokenTree::plant() {
  ++revision_;
  pool_.clear();
  nodes_.clear();
  child_by_token_.clear();
  segments_.clear();
  prefix_by_segment_.clear();
  leaves_.clear();
  nodes_.push_back(Node{.parent = -1,
                        .depth = 0,
                        .begin = 0,
                        .end = 0,
                        .reusable = true,
                        .border = true,
                        .closed = true,
                        .counted = false,
                        .apart = false,
                        .read = 0,
                        .children = {}});
  if (!head_ids_.empty()) {
    append_node(0, head_ids_.data(), static_cast<int64_t>(head_ids_.size()), false);
    nodes_[1].reusable = nodes_[1].border = nodes_[1].closed = true;
  }
  prefixes_.assign(1, Position{head_node(), static_cast<int64_t>(head_ids_.size())});
}

void TokenTree::clear(int64_t cache_limit) {
  // A head that had to be split over several passes lies in several nodes and is computed anew.
  const bool head_is_whole = head_ids_.empty() || nodes_[1].depth == 0;
  if (cache_limit > 0 && head_is_whole) {
    for (int32_t n : idle_nodes(*this, kept_, {})) {
      if (kept_.used() <= cache_limit) break;
      kept_.release(n, nodes_[n].length());
    }
    transplant();
    return;
  }
  const int64_t base = kept_.base(), state_cost = kept_.state_cost();
  const bool has_state = state_cost > 0;
  const bool head_is_kept =
      !head_ids_.empty() && head_is_whole && kept_.slot(1) == base && (!has_state || kept_.state(1) == 0);
  plant();
  kept_ = KeptSlots(base, state_cost);
  if (!head_is_kept) return;
  kept_.allocate(1, nodes_[1].length());
  if (has_state) kept_.allocate_state(1);
}

// Plants the tree anew with the kept nodes and those above them. The head is whole.
void TokenTree::transplant() {
  const std::vector<int32_t> old_pool = std::move(pool_);
  const std::vector<Node> old_nodes = std::move(nodes_);
  plant();
  std::vector<bool> stays(old_nodes.size(), false);
  for (size_t n = 1; n < old_nodes.size(); ++n) {
    if (kept_.slot(static_cast<int32_t>(n)) < 0) continue;
    for (auto up = static_cast<int32_t>(n); up > 0 && !stays[up]; up = old_nodes[up].parent) stays[up] = true;
  }
  std::vector<int32_t> numbers(old_nodes.size(), -1);
  numbers[0] = 0;
  std::vector<int32_t> stack(old_nodes[0].children.rbegin(), old_nodes[0].children.rend());
  while (!stack.empty()) {
    const int32_t old = stack.back();
    const Node& node = old_nodes[old];
    stack.pop_back();
    if (old == 1 && !head_ids_.empty()) {
      numbers[old] = 1;
    } else if (stays[old]) {
      const int32_t now = append_node(numbers[node.parent], old_pool.data() + node.begin, node.length(), node.apart);
      numbers[old] = now;
      nodes_[now].reusable = node.reusable;
      nodes_[now].border = node.border;
      nodes_[now].closed = true;
    } else {
      continue;
    }
    nodes_[numbers[old]].read = node.read;
    stack.insert(stack.end(), node.children.rbegin(), node.children.rend());
  }
  kept_.renumber(numbers);
}

int64_t TokenTree::count_tokens(const int32_t* leaves, int64_t count) {
  int64_t tokens = 0;
  const auto count_path = [&](int32_t n) {
    for (; n > 0 && !nodes_[n].counted; n = nodes_[n].parent) {
      nodes_[n].counted = true;
      tokens += nodes_[n].length();
    }
  };
  for (int64_t i = 0; i < count; ++i) {
    count_path(leaf_node(leaves[i]));
    if (!is_verdict(leaves[i])) continue;
    count_path(second_node(leaves[i]));
    tokens += static_cast<int64_t>(tail(leaves[i]).size());
  }
  return tokens;
}

void TokenTree::forget_slots() {
  ++revision_;
  kept_ = KeptSlots(kept_.base(), kept_.state_cost());
}

void TokenTree::keep(KeptSlots kept) {
  if (kept.revision != revision_) {
    throw std::invalid_argument("kept: expected those of a plan after which the tree did not change");
  }
  ++revision_;
  kept_ = std::move(kept);
}

int32_t TokenTree::add_segment(const int32_t* ids, int64_t count) {
  segments_.emplace_back(ids, ids + count);
  return static_cast<int32_t>(segments_.size()) - 1;
}

int32_t TokenTree::add_sequence(const int32_t* segments, int64_t count, int64_t reusable) {
  check_segments(segments, count);
  const auto is_empty = [this](int32_t segment) { return segments_[segment].empty(); };
  if (std::all_of(segments, segments + count, is_empty)) {
    throw std::invalid_argument("a sequence needs at least one token after the head");
  }
  int32_t prefix = 0;
  for (int64_t i = 0; i < count; ++i) prefix = longer_prefix(prefix, segments[i], false, i < reusable);
  leaves_.push_back({.first = end_node_at(prefixes_[prefix])});
  return static_cast<int32_t>(leaves_.size()) - 1;
}

int32_t TokenTree::add_verdict(const int32_t* segments, int64_t count) {
  check_segments(segments, count);
  if (count < 3) throw std::invalid_argument("a verdict needs two paths and a tail, got " + std::to_string(count));
  const int32_t first = segments[count - 3], second = segments[count - 2], tail = segments[count - 1];
  if (segments_[tail].empty()) throw std::invalid_argument("a verdict needs at least one token behind its paths");
  int32_t prefix = 0;
  for (int64_t i = 0; i < count - 3; ++i) prefix = longer_prefix(prefix, segments[i], false, true);
  // Where the paths part, a node ends, so that the second can have nodes of its own.
  prefixes_[prefix] = end_node_at(prefixes_[prefix]);
  const int64_t shared = prefixes_[prefix].depth;
  const int32_t ends[] = {longer_prefix(prefix, first, false, true), longer_prefix(prefix, second, true, true)};
  // A path that was the beginning of a sequence may end within a node.
  for (int32_t end : ends) prefixes_[end] = end_node_at(prefixes_[end]);
  leaves_.push_back({.first = prefixes_[ends[0]], .second = prefixes_[ends[1]], .shared = shared, .tail = tail});
  return static_cast<int32_t>(leaves_.size()) - 1;
}

int64_t TokenTree::leaf_length(int32_t leaf) const {
  const Leaf& at = leaves_[leaf];
  if (!is_verdict(leaf)) return at.first.depth;
  return at.first.depth + at.second.depth - at.shared + static_cast<int64_t>(segments_[at.tail].size());
}

void TokenTree::check_segments(const int32_t* segments, int64_t count) const {
  for (int64_t i = 0; i < count; ++i) {
    if (segments[i] >= 0 && segments[i] < static_cast<int32_t>(segments_.size())) continue;
    throw std::invalid_argument("segment " + std::to_string(segments[i]) + " is unknown: there are " +
                                std::to_string(segments_.size()));
  }
}

// A prefix of segments with one more, which may be in the tree already.
int32_t TokenTree::longer_prefix(int32_t prefix, int32_t segment, bool apart, bool reusable) {
  const uint64_t step = key(prefix, marked(segment, apart));
  const auto known = prefix_by_segment_.find(step);
  if (known != prefix_by_segment_.end()) return known->second;
  Position position = descend(prefixes_[prefix], segments_[segment], apart);
  if (reusable) {
    position = end_node_at(position);
    nodes_[position.node].border = true;
    for (int32_t n = position.node; n >= 0 && !nodes_[n].reusable; n = nodes_[n].parent) nodes_[n].reusable = true;
  }
  prefixes_.push_back(position);
  const int32_t longer = static_cast<int32_t>(prefixes_.size()) - 1;
  prefix_by_segment_.emplace(step, longer);
  return longer;
}

int32_t TokenTree::resolve(Position position) const {
  int32_t node = position.node;
  while (node != 0 && position.depth <= nodes_[node].depth) node = nodes_[node].parent;
  return node;
}

TokenTree::Position TokenTree::descend(Position position, const std::vector<int32_t>& ids, bool apart) {
  int32_t node = resolve(position);
  int64_t offset = position.depth - nodes_[node].depth;  // own tokens of `node` that are already matched
  const int64_t count = static_cast<int64_t>(ids.size());
  int64_t done = 0;
  while (done < count) {
    if (offset == nodes_[node].length()) {
      Node& here = nodes_[node];
      if (!here.closed && here.end == static_cast<int64_t>(pool_.size())) {
        pool_.insert(pool_.end(), ids.begin() + done, ids.end());
        here.end += count - done;
        break;
      }
      const bool starts_apart = apart && done == 0;
      const auto child = child_by_token_.find(key(node, marked(ids[done], starts_apart)));
      node = child == child_by_token_.end() ? append_node(node, ids.data() + done, count - done, starts_apart)
                                            : child->second;
      if (child == child_by_token_.end()) break;
      offset = 0;
    }
    const int32_t* own = pool_.data() + nodes_[node].begin + offset;
    const int64_t most = std::min(nodes_[node].length() - offset, count - done);
    const int64_t same = std::mismatch(own, own + most, ids.data() + done).first - own;
    done += same;
    offset += same;
    if (same < most) {
      node = split(node, offset);
      // Now offset == length(node), and the next token has no child here yet: the loop appends one.
    }
  }
  return Position{node, position.depth + count};
}

TokenTree::Position TokenTree::end_node_at(Position position) {
  int32_t node = resolve(position);
  if (position.depth < nodes_[node].end_depth()) node = split(node, position.depth - nodes_[node].depth);
  nodes_[node].closed = true;
  return Position{node, position.depth};
}

int32_t TokenTree::append_node(int32_t parent, const int32_t* ids, int64_t count, bool apart) {
  ++revision_;
  const int32_t index = num_nodes();
  const int64_t begin = static_cast<int64_t>(pool_.size());
  pool_.insert(pool_.end(), ids, ids + count);
  nodes_.push_back(Node{.parent = parent,
                        .depth = nodes_[parent].end_depth(),
                        .begin = begin,
                        .end = begin + count,
                        .reusable = false,
                        .border = false,
                        .closed = false,
                        .counted = false,
                        .apart = apart,
                        .read = 0,
                        .children = {}});
  nodes_[parent].children.push_back(index);
  nodes_[parent].closed = true;
  child_by_token_.emplace(key(parent, marked(ids[0], apart)), index);
  return index;
}

int32_t TokenTree::split(int32_t node, int64_t length) {
  ++revision_;
  const int32_t upper = num_nodes();
  nodes_.push_back(nodes_[node]);
  Node& top = nodes_[upper];
  Node& bottom = nodes_[node];
  top.end = top.begin + length;
  top.border = false;
  top.closed = true;
  top.children.assign(1, node);
  bottom.parent = upper;
  bottom.apart = false;
  bottom.begin += length;
  bottom.depth += length;
  kept_.split(node, upper, length);
  std::vector<int32_t>& siblings = nodes_[top.parent].children;
  *std::find(siblings.begin(), siblings.end(), node) = upper;
  child_by_token_[key(top.parent, marked(pool_[top.begin], top.apart))] = upper;
  child_by_token_[key(upper, pool_[bottom.begin])] = node;
  return upper;
}

std::vector<int32_t> idle_nodes(const TokenTree& tree, const KeptSlots& slots, const std::vector<bool>& needed) {
  std::vector<int32_t> idle;
  for (int32_t n = 1; n < tree.num_nodes(); ++n) {
    const bool is_needed = static_cast<size_t>(n) < needed.size() && needed[n];
    if (slots.slot(n) >= 0 && !is_needed && n != tree.head_node()) idle.push_back(n);
  }
  std::stable_sort(idle.begin(), idle.end(), [&tree](int32_t a, int32_t b) {
    const TokenTree::Node &x = tree.node(a), &y = tree.node(b);
    return x.read != y.read ? x.read < y.read : x.depth > y.depth;
  });
  return idle;
}

}  // namespace gram_fast
