#pragma once

#include <cstdint>
#include <vector>

#include "tree/token_tree.h"

namespace gram_fast {

// One forward over T packed tokens. Slots [0, T) hold the keys and values of the pass itself, in packed order; kept
// ones lie from the token budget on.
struct TreePass {
  std::vector<int64_t> input_ids;     // [T]
  std::vector<int64_t> position_ids;  // [T], counted along the path
  std::vector<int64_t> nodes;         // [N, 5]: start, end, subtree_end (packed), row of the next ancestor or -1, depth
  std::vector<int64_t> spans;         // [S, 2]: start, end; causal on itself. A node and its chain of first children.
  std::vector<int64_t> range_offsets;  // [S + 1]: rows of `ranges` that a span reads
  std::vector<int64_t> ranges;         // [R, 2]: slots [start, end) of ancestors, read without a mask
  std::vector<int64_t> leaf_rows;      // [L]: packed index of the last token of a leaf
  std::vector<int64_t> leaf_index;     // [L]: which of the leaves asked for
  std::vector<int64_t> keep;           // [K, 3]: packed start, slot, length: copies to make after the pass
};

struct TreePlan {
  std::vector<TreePass> passes;
  int64_t num_slots = 0;  // slots that the key/value buffer needs while the plan runs
};

// Plans the forwards that give the logits of `leaves`, in depth-first order, none over `budget` tokens. Nodes whose
// keys and values are kept are read, not computed. What a later pass reads is kept until then; with `more_rounds`,
// reusable nodes of this round stay for the next one while fewer than `keep_limit` slots are in use. Kept nodes that
// this round does not touch are let go. The tree records the slots as if the plan had run: when it did not, call
// forget_slots().
TreePlan plan_passes(TokenTree& tree, const int32_t* leaves, int64_t count, int64_t budget, int64_t keep_limit,
                     bool more_rounds);

// Rectangles of unmasked attention from spans and their ranges: runs of spans that read the same range as their r-th
// become one row [r, query start, query end, slot start, slot end]. Rows of one r never share a query.
std::vector<int64_t> attention_blocks(const int64_t* spans, const int64_t* range_offsets, const int64_t* ranges,
                                      int64_t num_spans);

// What a kernel walks, flat: X tiles of queries [first, end, own start, first range, past the last range], then the
// start of every packed token's span [T], then the R ranges. A tile holds up to `tile_tokens` tokens of one span, or
// whole spans that read the same ranges. Its queries read its ranges and slots [own start, first) without a mask, and
// [first, end) from the start of their span up to themselves. The tiles with most keys stand first: launched in this
// order, the longest work starts earliest (Graham's LPT rule). Empty tiles fill them up to `min_tiles`.
//
// The table is filled up with zeros to a multiple of X, which goes to `num_tiles`: as the number of rows it travels to
// the launch without a word from the device.
std::vector<int32_t> attention_tiles(const int64_t* spans, const int64_t* range_offsets, const int64_t* ranges,
                                     int64_t num_spans, int64_t tile_tokens, int64_t min_tiles, int64_t& num_tiles);

}  // namespace gram_fast
