#pragma once

#include <algorithm>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "tree/kept_slots.h"

namespace gram_fast {

// Radix tree over token sequences, which are given as lists of segments (arrays of token ids). Every distinct prefix is
// stored once; no whole sequence is written out. Node 0 is an empty root. The head, the tokens with which every
// sequence starts (the judge's instruction), is the root's first child and outlives clear().
//
// A verdict is a leaf with two parents: its tokens stand behind two paths, neither of which reads the other, and are no
// node of the tree.
class TokenTree {
 public:
  struct Node {
    int32_t parent;  // -1 for the root
    int64_t depth;   // tokens on the path before this node = position of its first token
    int64_t begin;   // own tokens: pool[begin, end)
    int64_t end;
    bool reusable;                  // ends above or at a segment border where later sequences may branch off
    bool border;                    // ends at such a border
    bool closed;                    // not to be extended: a border or a sequence ends here, or it has children
    bool counted;                   // by count_tokens
    bool apart;                     // starts a second path: sequences do not go through it
    int64_t read;                   // number of the last plan that read or computed it
    std::vector<int32_t> children;  // in order of insertion

    int64_t length() const { return end - begin; }
    int64_t end_depth() const { return depth + length(); }
  };

  explicit TokenTree(std::vector<int32_t> head_ids);

  // Copies a segment in and returns its index.
  int32_t add_segment(const int32_t* ids, int64_t count);

  // Adds the sequence head + segments and returns the handle of its leaf. The ends of the first `reusable` segments
  // become node ends, and the nodes above them are marked reusable; a prefix of segments that was added before keeps
  // its marks. Throws std::invalid_argument for an unknown segment and for segments without a token.
  int32_t add_sequence(const int32_t* segments, int64_t count, int64_t reusable);

  // Adds the paths head + shared + first and head + shared + second, and a verdict of the tail behind both, given as
  // the segments shared..., first, second, tail; returns the handle of its leaf. All segments but the tail are
  // reusable. The second path has nodes of its own from where it leaves the shared one, also where both have the same
  // tokens: a verdict reads each of them. Throws std::invalid_argument for an unknown segment, fewer than three, and a
  // tail without a token.
  int32_t add_verdict(const int32_t* segments, int64_t count);

  // Removes all sequences and segments, and the nodes without kept keys and values. The head stays, with its slots; of
  // the other kept nodes those that were read last, while at most `cache_limit` slots are in use. Of a head that had to
  // be split over several passes, and below it, nothing stays.
  void clear(int64_t cache_limit = 0);

  // Counts the tokens on the paths to leaves, head included, that no earlier count since clear() has had.
  int64_t count_tokens(const int32_t* leaves, int64_t count);

  // Frees the slots of all nodes.
  void forget_slots();

  // Slots of the kept keys and values. `keep` replaces them by those of a plan that has run, and throws
  // std::invalid_argument when the tree has changed since it was planned.
  const KeptSlots& kept() const { return kept_; }
  void keep(KeptSlots kept);

  // Cuts the first `length` tokens of a node off into a new parent and returns that parent. The given index keeps the
  // lower part, so a handle that points into either part stays valid: a lookup walks up.
  int32_t split(int32_t node, int64_t length);

  // The node at whose end the leaf lies; of a verdict that at the end of its first path.
  int32_t leaf_node(int32_t leaf) const { return resolve(leaves_[leaf].first); }
  int64_t leaf_length(int32_t leaf) const;  // tokens of the whole sequence, with head
  bool is_verdict(int32_t leaf) const { return leaves_[leaf].tail >= 0; }
  // Of a verdict: the node at the end of its second path, the tokens of that path that the first shares, its own
  // tokens, and the position of the first of them, behind the longer path.
  int32_t second_node(int32_t leaf) const { return resolve(leaves_[leaf].second); }
  int64_t shared_depth(int32_t leaf) const { return leaves_[leaf].shared; }
  const std::vector<int32_t>& tail(int32_t leaf) const { return segments_[leaves_[leaf].tail]; }
  int64_t tail_depth(int32_t leaf) const { return std::max(leaves_[leaf].first.depth, leaves_[leaf].second.depth); }
  int64_t num_leaves() const { return static_cast<int64_t>(leaves_.size()); }
  int64_t num_tokens() const { return static_cast<int64_t>(pool_.size()); }  // distinct tokens, with head

  int32_t head_node() const { return head_ids_.empty() ? 0 : 1; }
  const Node& node(int32_t index) const { return nodes_[index]; }
  int32_t num_nodes() const { return static_cast<int32_t>(nodes_.size()); }
  const int32_t* ids(const Node& node) const { return pool_.data() + node.begin; }
  // Gives a plan its number, and notes that it reads a node.
  int64_t number_plan() { return ++plans_; }
  void mark_read(int32_t node, int64_t plan) { nodes_[node].read = plan; }
  // Changes with every change of nodes or kept slots.
  int64_t revision() const { return revision_; }

 private:
  struct Position {  // `depth` tokens below the root, on the path to or through `node`
    int32_t node;
    int64_t depth;
  };

  struct Leaf {
    Position first;
    Position second{0, 0};  // of a verdict
    int64_t shared = 0;
    int32_t tail = -1;  // segment
  };

  void plant();
  void transplant();
  void check_segments(const int32_t* segments, int64_t count) const;
  int32_t resolve(Position position) const;
  int32_t longer_prefix(int32_t prefix, int32_t segment, bool apart, bool reusable);
  Position descend(Position position, const std::vector<int32_t>& ids, bool apart);
  Position end_node_at(Position position);
  int32_t append_node(int32_t parent, const int32_t* ids, int64_t count, bool apart);

  static uint64_t key(int32_t high, int32_t low) {
    return (static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32) | static_cast<uint32_t>(low);
  }
  // What starts apart has a key of its own beside the same token or segment that does not: both are at least 0.
  static int32_t marked(int32_t number, bool apart) { return apart ? ~number : number; }

  std::vector<int32_t> head_ids_;
  std::vector<int32_t> pool_;
  std::vector<Node> nodes_;
  KeptSlots kept_{0};
  int64_t revision_ = 0;
  int64_t plans_ = 0;
  std::unordered_map<uint64_t, int32_t> child_by_token_;     // (node, first token, marked) -> child
  std::vector<std::vector<int32_t>> segments_;               // by segment index
  std::vector<Position> prefixes_;                           // by segment prefix; 0 is the head alone
  std::unordered_map<uint64_t, int32_t> prefix_by_segment_;  // (prefix, segment, marked) -> longer prefix
  std::vector<Leaf> leaves_;                                 // by handle
};

// Nodes with these slots that are not `needed` (by number; beyond its end none is), in the order in which they may go:
// read longest ago first, the deepest first. The head never goes.
std::vector<int32_t> idle_nodes(const TokenTree& tree, const KeptSlots& slots, const std::vector<bool>& needed);

}  // namespace gram_fast
