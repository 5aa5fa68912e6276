#include "tree/tree_plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "tables/span_tables.h"
#include "tree/needed_nodes.h"
#include "tree/pieces.h"

namespace gram_fast {
namespace {

constexpr int32_t kNone = -1;

// Depth-first planning of one round. Per node, indexed as in the tree; a split during planning appends. Slots are those
// of a copy, so that a plan that is not run leaves nothing behind.
class Planner {
 public:
  Planner(TokenTree& tree, int64_t budget, int64_t keep_limit, int64_t cache_limit, bool more_rounds,
          int64_t state_cost)
      : tree_(tree),
        slots_(is_same_store(tree.kept(), budget, state_cost) ? tree.kept() : KeptSlots(budget, state_cost)),
        budget_(budget),
        state_cost_(state_cost),
        kept_limit_(std::max(more_rounds ? keep_limit : 0, cache_limit)),
        has_cache_(cache_limit > 0),
        has_later_reads_(more_rounds || cache_limit > 0) {}

  TreePlan plan(const int32_t* leaves, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      if (tree_.is_verdict(leaves[i])) {
        add_verdict(leaves[i], i);
      } else {
        expose_last_token(tree_.leaf_node(leaves[i]));
      }
    }
    mark_needed(leaves, count);
    release_without_state();
    split_long_nodes();
    assign_passes();
    for (size_t pass = 0; pass < pass_nodes_.size(); ++pass) {
      plan_.passes.push_back(fill_pass(static_cast<int32_t>(pass)));
      place_verdicts(static_cast<int32_t>(pass));
      std::vector<NodeStates> starts = states_before(static_cast<int32_t>(pass));
      keep_after(static_cast<int32_t>(pass));
      plan_.passes.back().pieces = join_to_pieces(static_cast<int32_t>(pass), std::move(starts));
    }
    place_leaves(leaves, count);
    check_tables();
    slots_.revision = tree_.revision();
    plan_.kept = std::move(slots_);
    return std::move(plan_);
  }

 private:
  struct VerdictPlace {
    int32_t leaf;
    int64_t index;  // in the list of leaves
    int32_t pass = kNone;
  };

  static bool is_same_store(const KeptSlots& kept, int64_t budget, int64_t state_cost) {
    return kept.base() == budget && kept.state_cost() == state_cost;
  }

  // A leaf whose keys are kept still needs its last hidden state: compute that one token again. With states, all of the
  // node: there is none within it to start from.
  void expose_last_token(int32_t node) {
    if (!is_kept(node)) return;
    const int64_t length = tree_.node(node).length();
    if (length > 1 && state_cost_ == 0) split(node, length - 1);
    release(node);
  }

  void add_verdict(int32_t leaf, int64_t index) {
    const auto length = static_cast<int64_t>(tree_.tail(leaf).size());
    if (length > budget_) {
      throw std::invalid_argument("budget: expected at least the " + std::to_string(length) +
                                  " tokens of a verdict, got " + std::to_string(budget_));
    }
    if (state_cost_ > 0) throw std::invalid_argument("leaves: expected no verdict of a model with states");
    verdicts_.push_back({leaf, index});
  }

  // Cuts the first tokens off, in the tree and in this plan's slots.
  void split(int32_t node, int64_t length) { slots_.split(node, tree_.split(node, length), length); }

  void mark_needed(const int32_t* leaves, int64_t count) {
    const int64_t number = tree_.number_plan();
    needed_.assign(tree_.num_nodes(), false);
    const auto mark_path = [&](int32_t n) {
      for (; n > 0 && !needed_[n]; n = tree_.node(n).parent) {
        needed_[n] = true;
        tree_.mark_read(n, number);
      }
    };
    for (int64_t i = 0; i < count; ++i) {
      mark_path(tree_.leaf_node(leaves[i]));
      if (tree_.is_verdict(leaves[i])) mark_path(tree_.second_node(leaves[i]));
    }
    idle_ = idle_nodes(tree_, slots_, needed_);
    if (!has_cache_) {
      for (; !idle_.empty(); idle_.pop_back()) release(idle_.back());
    }
    std::reverse(idle_.begin(), idle_.end());
  }

  void release_without_state() {
    if (state_cost_ == 0) return;
    const std::vector<int32_t> order = depth_first(tree_, needed_);
    const std::vector<bool> computed = computed_nodes(tree_, slots_, order);
    for (int32_t n : order) {
      if (computed[n]) release(n);
    }
  }

  void split_long_nodes() {
    for (int32_t n = 1, known = tree_.num_nodes(); n < known; ++n) {
      while (needed_[n] && !is_kept(n) && tree_.node(n).length() > budget_) {
        split(n, budget_);
        needed_.push_back(true);
      }
    }
  }

  // A node or verdict that does not fit opens the next pass.
  void assign_passes() {
    order_nodes();
    order_verdicts();
    const int64_t limit = even_limit();
    int64_t tokens = 0;
    const auto pass_with_room = [&](int64_t length) {
      if (pass_nodes_.empty() || tokens + length > limit) {
        pass_nodes_.emplace_back();
        tokens = 0;
      }
      tokens += length;
      return static_cast<int32_t>(pass_nodes_.size()) - 1;
    };
    for (int32_t n : computed_) {
      pass_of_[n] = pass_with_room(tree_.node(n).length());
      start_[n] = tokens - tree_.node(n).length();
      pass_nodes_.back().push_back(n);
    }
    for (VerdictPlace& verdict : verdicts_) {
      verdict.pass = pass_with_room(static_cast<int64_t>(tree_.tail(verdict.leaf).size()));
      for (int32_t n : {tree_.leaf_node(verdict.leaf), tree_.second_node(verdict.leaf)}) {
        last_read_[n] = std::max(last_read_[n], verdict.pass);
      }
    }
    for (int32_t n : computed_) {
      int32_t& parent = last_start_[tree_.node(n).parent];
      parent = std::max(parent, pass_of_[n]);
    }
    for (auto n = order_.rbegin(); n != order_.rend(); ++n) {
      last_read_[*n] = std::max(last_read_[*n], pass_of_[*n]);
      int32_t& parent = last_read_[tree_.node(*n).parent];
      parent = std::max(parent, last_read_[*n]);
    }
  }

  void order_nodes() {
    const int32_t known = tree_.num_nodes();
    pass_of_.assign(known, kNone);
    start_.assign(known, kNone);
    last_read_.assign(known, kNone);
    last_start_.assign(known, kNone);
    row_of_.assign(known, kNone);
    order_ = depth_first(tree_, needed_);
    for (int32_t n : order_) (is_kept(n) ? kept_ : computed_).push_back(n);
  }

  // Those of the same first path one after the other: they read its keys while these are near.
  void order_verdicts() {
    std::stable_sort(verdicts_.begin(), verdicts_.end(), [this](const VerdictPlace& a, const VerdictPlace& b) {
      return tree_.leaf_node(a.leaf) < tree_.leaf_node(b.leaf);
    });
  }

  // Fewest tokens of a pass that need no more passes than the budget: passes of about equal size, as a short rest takes
  // a GPU nearly as long as more tokens would.
  int64_t even_limit() const {
    const int64_t passes = passes_of(budget_);
    int64_t low = 1, high = budget_;
    for (int32_t n : computed_) low = std::max(low, tree_.node(n).length());
    for (const VerdictPlace& verdict : verdicts_) {
      low = std::max(low, static_cast<int64_t>(tree_.tail(verdict.leaf).size()));
    }
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (passes_of(middle) > passes) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return high;
  }

  // Number of passes of at most `limit` tokens, which no node or verdict is longer than.
  int64_t passes_of(int64_t limit) const {
    int64_t passes = 0, tokens = limit;
    const auto take = [&](int64_t length) {
      if (tokens + length > limit) {
        ++passes;
        tokens = 0;
      }
      tokens += length;
    };
    for (int32_t n : computed_) take(tree_.node(n).length());
    for (const VerdictPlace& verdict : verdicts_) take(static_cast<int64_t>(tree_.tail(verdict.leaf).size()));
    return passes;
  }

  TreePass fill_pass(int32_t pass) {
    TreePass out;
    const std::vector<int32_t>& members = pass_nodes_[pass];
    out.range_offsets.push_back(0);
    for (size_t row = 0; row < members.size(); ++row) {
      const int32_t n = members[row];
      const TokenTree::Node& node = tree_.node(n);
      row_of_[n] = static_cast<int64_t>(row);
      const Extent own{start_[n], start_[n] + node.length()};
      out.input_ids.insert(out.input_ids.end(), tree_.ids(node), tree_.ids(node) + node.length());
      for (int64_t t = 0; t < node.length(); ++t) out.position_ids.push_back(node.depth + t);
      int32_t ancestor = node.parent;
      while (ancestor > 0 && row_of_[ancestor] < 0) ancestor = tree_.node(ancestor).parent;
      const int64_t parent = row_of_[ancestor];
      out.nodes.push_back({.own = own, .subtree_end = own.end, .parent = parent, .depth = node.depth});
      // A first child directly behind its parent continues the parent's causal span.
      if (row > 0 && members[row - 1] == node.parent) {
        out.spans.back().end = own.end;
      } else {
        out.spans.push_back(own);
        add_ranges(node.parent, pass, out);
      }
    }
    for (auto row = out.nodes.rbegin(); row != out.nodes.rend(); ++row) {
      if (row->parent < 0) continue;
      int64_t& subtree_end = out.nodes[static_cast<size_t>(row->parent)].subtree_end;
      subtree_end = std::max(subtree_end, row->subtree_end);
    }
    for (int32_t n : members) row_of_[n] = kNone;
    return out;
  }

  // Key ranges of a span from the root down to `n`; neighbours in the buffer become one.
  void add_ranges(int32_t n, int32_t pass, TreePass& out) {
    add_path(n, 0, pass, out);
    out.range_offsets.push_back(static_cast<int64_t>(out.ranges.size()));
  }

  // Those of the path down to `n` from a depth on, at which a node ends.
  void add_path(int32_t n, int64_t depth, int32_t pass, TreePass& out) {
    path_.clear();
    for (; n > 0 && tree_.node(n).depth >= depth; n = tree_.node(n).parent) path_.push_back(n);
    const auto first = static_cast<size_t>(out.range_offsets.back());
    for (auto it = path_.rbegin(); it != path_.rend(); ++it) {
      const TokenTree::Node& node = tree_.node(*it);
      const int64_t start = pass_of_[*it] == pass ? start_[*it] : slots_.slot(*it);
      const int64_t end = start + node.length();
      if (out.ranges.size() > first && out.ranges.back().end == start) {
        out.ranges.back().end = end;
      } else {
        out.ranges.push_back({start, end});
      }
    }
  }

  // Appends its verdicts to a pass, each as a span of its own that reads both paths.
  void place_verdicts(int32_t pass) {
    TreePass& out = plan_.passes.back();
    for (; num_placed_ < verdicts_.size() && verdicts_[num_placed_].pass == pass; ++num_placed_) {
      const VerdictPlace& verdict = verdicts_[num_placed_];
      const std::vector<int32_t>& ids = tree_.tail(verdict.leaf);
      const auto start = static_cast<int64_t>(out.input_ids.size());
      out.input_ids.insert(out.input_ids.end(), ids.begin(), ids.end());
      const auto end = static_cast<int64_t>(out.input_ids.size());
      for (int64_t t = start; t < end; ++t) out.position_ids.push_back(tree_.tail_depth(verdict.leaf) + t - start);
      out.spans.push_back({start, end});
      add_path(tree_.leaf_node(verdict.leaf), 0, pass, out);
      add_path(tree_.second_node(verdict.leaf), tree_.shared_depth(verdict.leaf), pass, out);
      out.range_offsets.push_back(static_cast<int64_t>(out.ranges.size()));
      out.leaf_rows.push_back(end - 1);
      out.leaf_index.push_back(verdict.index);
    }
  }

  // The states that a pass's nodes start from. They are read before any is written: a slot may be given on within a
  // pass.
  std::vector<NodeStates> states_before(int32_t pass) {
    std::vector<NodeStates> out;
    if (state_cost_ == 0) return out;
    for (int32_t n : pass_nodes_[pass]) {
      const TokenTree::Node& node = tree_.node(n);
      row_of_[n] = static_cast<int64_t>(out.size());
      const int64_t parent = row_of_[node.parent];
      out.push_back({.own = {start_[n], start_[n] + node.length()},
                     .parent = parent,
                     .from = parent < 0 ? slots_.state(node.parent) : kNone,
                     .to = kNone});
    }
    for (int32_t n : pass_nodes_[pass]) row_of_[n] = kNone;
    return out;
  }

  std::vector<PieceRow> join_to_pieces(int32_t pass, std::vector<NodeStates> nodes) const {
    for (size_t row = 0; row < nodes.size(); ++row) nodes[row].to = slots_.state(pass_nodes_[pass][row]);
    return join_nodes(nodes);
  }

  void keep_after(int32_t pass) {
    // The highest slot is reached before this pass's releases or after its copies.
    count_slots();
    const auto done = [&](int32_t n) {
      if (last_start_[n] <= pass && !(is_start_later(n) && stays(n))) slots_.release_state(n);
      if (last_read_[n] > pass || stays(n)) return false;
      release(n);
      return true;
    };
    kept_.erase(std::remove_if(kept_.begin(), kept_.end(), done), kept_.end());
    for (int32_t n : pass_nodes_[pass]) {
      const bool is_read_later = last_read_[n] > pass;
      if (!is_read_later && !is_wanted_later(n)) continue;
      const int64_t length = tree_.node(n).length();
      const bool wants_state = state_cost_ > 0 && (last_start_[n] > pass || is_start_later(n));
      const bool has_room = make_room(length + (wants_state ? state_cost_ : 0));
      if (!has_room && !is_read_later && n != tree_.head_node()) continue;
      kept_.push_back(n);
      plan_.passes[pass].keep.push_back({.start = start_[n], .slot = slots_.allocate(n, length), .length = length});
      if (wants_state && (has_room || last_start_[n] > pass || n == tree_.head_node())) slots_.allocate_state(n);
    }
    count_slots();
  }

  void count_slots() {
    plan_.num_slots = std::max(plan_.num_slots, slots_.top());
    plan_.num_states = std::max(plan_.num_states, slots_.num_states());
  }

  // Lets idle nodes go for so many slots; whether they are within the limit then.
  bool make_room(int64_t length) {
    for (; !idle_.empty() && slots_.used() + length > kept_limit_; idle_.pop_back()) release(idle_.back());
    return slots_.used() + length <= kept_limit_;
  }

  bool is_wanted_later(int32_t n) const {
    return n == tree_.head_node() || (has_later_reads_ && tree_.node(n).reusable);
  }

  // Whether nodes of later rounds may start from its state. Elsewhere they would only where texts branch off by chance.
  bool is_start_later(int32_t n) const { return is_wanted_later(n) && tree_.node(n).border; }

  bool stays(int32_t n) { return n == tree_.head_node() || (is_wanted_later(n) && slots_.used() <= kept_limit_); }

  void place_leaves(const int32_t* leaves, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      if (tree_.is_verdict(leaves[i])) continue;
      const int32_t n = tree_.leaf_node(leaves[i]);
      TreePass& pass = plan_.passes[pass_of_[n]];
      pass.leaf_rows.push_back(start_[n] + tree_.node(n).length() - 1);
      pass.leaf_index.push_back(i);
    }
  }

  // What a layer reads is trusted from here on: a wrong slot would be a wrong score, or memory of somebody else.
  void check_tables() const {
    for (const TreePass& pass : plan_.passes) {
      const auto num_tokens = static_cast<int64_t>(pass.input_ids.size());
      check_spans({.spans = pass.spans, .range_offsets = pass.range_offsets, .ranges = pass.ranges}, plan_.num_slots,
                  num_tokens);
      check_leaf_rows(pass.leaf_rows, num_tokens);
      if (state_cost_ > 0) check_pieces(pass.pieces, pass.position_ids, plan_.num_states);
    }
  }

  bool is_kept(int32_t n) const { return slots_.slot(n) >= 0; }
  void release(int32_t n) { slots_.release(n, tree_.node(n).length()); }

  TokenTree& tree_;
  KeptSlots slots_;
  const int64_t budget_;
  const int64_t state_cost_;
  const int64_t kept_limit_;  // slots in use up to which nodes are kept that this round reads no more
  const bool has_cache_;
  const bool has_later_reads_;
  TreePlan plan_;
  std::vector<bool> needed_;
  std::vector<int32_t> idle_;                     // kept nodes that are not needed; the first to go is the last
  std::vector<int32_t> pass_of_;                  // pass that computes the node, or kNone when it is kept
  std::vector<int64_t> start_;                    // packed start within that pass
  std::vector<int32_t> last_read_;                // last pass that reads the node's keys
  std::vector<int32_t> last_start_;               // last pass that computes one of its children
  std::vector<int64_t> row_of_;                   // row of the node in the pass that is filled, or kNone
  std::vector<int32_t> order_;                    // needed nodes, depth first
  std::vector<int32_t> computed_;                 // those of them that are computed
  std::vector<int32_t> kept_;                     // needed nodes that hold slots
  std::vector<std::vector<int32_t>> pass_nodes_;  // in packed order
  std::vector<int32_t> path_;
  std::vector<VerdictPlace> verdicts_;  // in the order of their passes
  size_t num_placed_ = 0;
};

}  // namespace

TreePlan plan_passes(TokenTree& tree, const int32_t* leaves, int64_t count, int64_t budget, int64_t keep_limit,
                     int64_t cache_limit, bool more_rounds, int64_t state_cost) {
  return Planner(tree, budget, keep_limit, cache_limit, more_rounds, state_cost).plan(leaves, count);
}

}  // namespace gram_fast
