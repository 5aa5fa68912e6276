#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "common/dtype.h"
#include "common/parallel.h"
#include "ops/attention_instructions.h"
#include "ops/attention_states.h"
#include "ops/tree_tiles.h"

namespace gram_fast {

inline int64_t filled_up(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

// Memory, zeros at first, that begins where a vector should.
template <typename Element>
class Buffer {
 public:
  explicit Buffer(int64_t size) : elements_(new (kAlignment) Element[static_cast<size_t>(size)]()) {}
  Element* at(int64_t place) { return elements_.get() + place; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(Element* elements) const { operator delete[](elements, kAlignment); }
  };
  std::unique_ptr<Element[], Free> elements_;
};

// Attention of tiles of queries, one after the other, each of one key/value head. Its rows, tokens times the heads that
// share the key/value head, go in panels through blocks of keys. A block takes up keys across the ends of ranges.
template <typename Isa, typename T>
class Walk {
 public:
  Walk(const AttentionStates& args, int64_t max_rows)
      : a_(args),
        group_(args.num_heads / args.num_kv_heads),
        filled_(filled_up(args.head_dim, Isa::kFill)),
        queries_(filled_up(max_rows, kPanelRows) * filled_),
        sum_(filled_up(max_rows, kPanelRows) * filled_),
        keys_(Isa::kBlockKeys * filled_),
        values_(2 * Isa::kBlockKeys * filled_),
        space_(Isa::kSpace),
        in_(kLanes * filled_),
        out_(kLanes * filled_) {
    largest_.resize(static_cast<size_t>(filled_up(max_rows, kPanelRows)));
    total_.resize(largest_.size());
    low_.resize(largest_.size());
    high_.resize(largest_.size());
    skip_.resize(largest_.size());
  }

  // Begins with the queries of packed tokens [first, end). Of these each reads those before it and itself, from the
  // start of its span on where there are `span_starts`; and of what is read before those it leaves out as many keys as
  // `skips` says, where there are any.
  void start(int32_t first, int32_t end, int64_t kv_head, const int32_t* span_starts, const int32_t* skips = nullptr) {
    own_ = {first, end};
    kv_head_ = kv_head;
    has_skips_ = skips != nullptr;
    num_before_ = 0;
    num_rows_ = (end - first) * group_;
    for (int64_t row = 0; row < num_rows_; row += kLanes) start_rows(row, span_starts, skips);
    std::fill_n(sum_.at(0), filled_up(num_rows_, kPanelRows) * filled_, 0.0f);
  }

  // Slots that all queries read but for those that skip them.
  void read(SlotRange slots) { collect(slots, false); }

  void finish() {
    collect(own_, true);
    if (num_keys_ > 0) take_block();
    for (int64_t row = 0; row < num_rows_; row += kLanes) finish_rows(row);
  }

 private:
  using Element = typename Isa::Element;
  static constexpr int64_t kLanes = Isa::kLanes, kPanelRows = kLanes * Isa::kMaxVectors;

  int32_t token_of(int64_t row) const { return own_.start + static_cast<int32_t>(row / group_); }
  int64_t head_of(int64_t row) const { return kv_head_ * group_ + row % group_; }

  // Rows of the panel that begins with a row: the last one of a tile is narrower where fewer vectors hold its rows.
  int64_t panel_rows(int64_t first) const { return std::min(kPanelRows, filled_up(num_rows_ - first, kLanes)); }
  // Where the columns of the vector that begins with a row lie, in memory of panels.
  int64_t place_of(int64_t row) const { return row / kPanelRows * kPanelRows * filled_ + row % kPanelRows; }

  void start_rows(int64_t row, const int32_t* span_starts, const int32_t* skips) {
    for (int64_t r = row; r < row + kLanes; ++r) {
      const auto at = static_cast<size_t>(r);
      const bool is_row = r < num_rows_;  // what fills the last vector up reads nothing of its own
      low_[at] = is_row && span_starts != nullptr ? span_starts[token_of(r)] : 0;
      high_[at] = is_row ? token_of(r) : -1;
      skip_[at] = is_row && skips != nullptr ? skips[token_of(r)] : 0;
      largest_[at] = std::numeric_limits<float>::lowest();
      total_[at] = 0;
      if (!is_row) continue;
      const T* q = static_cast<const T*>(a_.q) + token_of(r) * a_.q_stride_t + head_of(r) * a_.q_stride_h;
      Isa::read(q, 0, 1, a_.head_dim, in_.at((r - row) * filled_), filled_);
    }
    const int64_t panel = row / kPanelRows * kPanelRows;
    Isa::to_columns(in_.at(0), filled_, queries_.at(panel * filled_), panel_rows(panel), row - panel);
  }

  // Adds keys to the block, and takes it whenever it is full.
  void collect(SlotRange slots, bool is_own) {
    const T* k = static_cast<const T*>(a_.k) + kv_head_ * a_.k_stride_h;
    const T* v = static_cast<const T*>(a_.v) + kv_head_ * a_.v_stride_h;
    for (int64_t slot = slots.start; slot < slots.end;) {
      const int64_t count = std::min<int64_t>(Isa::kBlockKeys - num_keys_, slots.end - slot), at = num_keys_ * filled_;
      Isa::read(k + slot * a_.k_stride_s, a_.k_stride_s, count, a_.head_dim, keys_.at(at), filled_);
      Isa::read(v + slot * a_.v_stride_s, a_.v_stride_s, count, a_.head_dim, values_.at(at), filled_);
      if (num_keys_ == num_shared_) own_token_ = slot;
      if (!is_own) num_shared_ += count;
      num_keys_ += count;
      slot += count;
      if (num_keys_ == Isa::kBlockKeys) take_block();
    }
  }

  void take_block() {
    const Element* values = Isa::turn(values_.at(0), num_keys_, filled_);
    for (int64_t row = 0; row < num_rows_; row += kPanelRows) {
      const int64_t rows = panel_rows(row), last = std::min(row + rows, num_rows_) - 1;
      // Own tokens that some row of the panel reads.
      const int64_t first = std::max<int64_t>(low_[static_cast<size_t>(row)] - own_token_, 0);
      const int64_t end = std::min(token_of(last) + 1 - own_token_, num_keys_ - num_shared_);
      // Of the others, those that no row of the panel reads, and those that not all rows read.
      const auto [least_skip, most_skip] = skips_of(row, last);
      const int64_t unread = std::clamp<int64_t>(least_skip - num_before_, 0, num_shared_);
      const KeyBlock<Element> block{
          .keys = keys_.at(0),
          .values = values,
          .space = space_.at(0),
          .width = a_.head_dim,
          .filled_width = filled_,
          .first = unread < num_shared_ ? unread : num_shared_ + first,
          .end = num_shared_ + std::max<int64_t>(end, 0),
          .num_shared = num_shared_,
          .own_token = own_token_,
          .num_masked = std::clamp<int64_t>(most_skip - num_before_, 0, num_shared_),
          .num_before = num_before_,
      };
      if (block.first >= block.end) continue;
      const auto at = static_cast<size_t>(row);
      const Panel<Element> panel{
          .queries = queries_.at(row * filled_),
          .sum = sum_.at(row * filled_),
          .largest = &largest_[at],
          .total = &total_[at],
          .low = &low_[at],
          .high = &high_[at],
          .skip = &skip_[at],
          .scale = a_.scale,
          .softcap = a_.softcap,
      };
      attend_panel(panel, block, rows / kLanes);
    }
    num_before_ += num_shared_;
    num_keys_ = num_shared_ = 0;
  }

  // The least and the most keys that rows [first, last] skip.
  std::pair<int32_t, int32_t> skips_of(int64_t first, int64_t last) const {
    if (!has_skips_) return {0, 0};
    const auto [least, most] = std::minmax_element(skip_.begin() + first, skip_.begin() + last + 1);
    return {*least, *most};
  }

  // Code of its own for blocks of which some row skips a key, and for capped scores: the others stay as fast as they
  // are.
  static void attend_panel(const Panel<Element>& panel, const KeyBlock<Element>& block, int64_t num_vectors) {
    if (panel.softcap > 0) return attend_panel<true, true>(panel, block, num_vectors);
    if (block.num_masked > 0) return attend_panel<true, false>(panel, block, num_vectors);
    attend_panel<false, false>(panel, block, num_vectors);
  }

  template <bool kIsMasked, bool kIsCapped>
  static void attend_panel(const Panel<Element>& panel, const KeyBlock<Element>& block, int64_t num_vectors) {
    static_assert(Isa::kMaxVectors <= 3);
    if (num_vectors == 1) return Isa::template attend<1, kIsMasked, kIsCapped>(panel, block);
    if (num_vectors == 2) return Isa::template attend<2, kIsMasked, kIsCapped>(panel, block);
    if constexpr (Isa::kMaxVectors == 3) Isa::template attend<3, kIsMasked, kIsCapped>(panel, block);
  }

  // What the sum of weighted values is multiplied by. Weights are counted from the larger of the sink and the scores.
  float factor_of(int64_t row) const {
    const auto at = static_cast<size_t>(row);
    if (a_.sinks == nullptr) return 1 / total_[at];
    const float sink = a_.sinks[head_of(row)], largest = std::max(largest_[at], sink);
    const float shrink = std::exp(largest_[at] - largest);
    return shrink / (total_[at] * shrink + std::exp(sink - largest));
  }

  // Writes the results of one vector of rows.
  void finish_rows(int64_t first) {
    Isa::to_rows(sum_.at(place_of(first)), panel_rows(first / kPanelRows * kPanelRows), filled_, out_.at(0));
    for (int64_t row = first; row < std::min(first + kLanes, num_rows_); ++row) {
      T* out = static_cast<T*>(a_.out) + (token_of(row) * a_.num_heads + head_of(row)) * a_.head_dim;
      const auto at = static_cast<size_t>(row);
      Isa::write(out_.at((row - first) * filled_), factor_of(row), a_.head_dim, out);
      if (a_.lse != nullptr) {
        a_.lse[token_of(row) * a_.num_heads + head_of(row)] = largest_[at] + std::log(total_[at]);
      }
    }
  }

  const AttentionStates& a_;
  const int64_t group_, filled_;
  Buffer<Element> queries_;  // of panels: columns [filled_, rows]
  Buffer<float> sum_;        // the same
  Buffer<Element> keys_;     // [Isa::kBlockKeys, filled_]
  Buffer<Element> values_;   // room for `turn` behind them
  Buffer<float> space_;
  Buffer<Element> in_;  // [kLanes, filled_]
  Buffer<float> out_;   // the same
  std::vector<float> largest_, total_;
  std::vector<int32_t> low_, high_, skip_;
  // The tile, and the block that is being filled, before which `num_before_` keys were taken: `num_shared_` of its
  // `num_keys_` keys are those before the tile, and the others are own tokens from `own_token_` on.
  SlotRange own_{};
  int64_t kv_head_ = 0, num_rows_ = 0;
  bool has_skips_ = false;
  int64_t num_keys_ = 0, num_shared_ = 0, own_token_ = 0, num_before_ = 0;
};

// Calls `attend(walk, tile, kv_head)`, which starts and finishes one tile of up to `max_tokens` queries, for all tiles
// and key/value heads, with the fastest instructions and on all threads.
template <typename T, typename Isa, typename Attend>
void walk_tiles(const AttentionStates& states, int64_t num_tiles, int64_t max_tokens, const Attend& attend) {
#pragma omp parallel num_threads(num_threads())
  {
    Isa::begin();
    Walk<Isa, T> walk(states, max_tokens * states.num_heads / states.num_kv_heads);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < num_tiles * states.num_kv_heads; ++task) {
      // Head by head: the keys and values of one, which many tiles read, stay in a core's cache.
      attend(walk, task % num_tiles, task / num_tiles);
    }
    Isa::end();
  }
}

}  // namespace gram_fast
