#include "ops/tree_attention_backward.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "ops/attention_walk.h"
#include "ops/tree_tiles.h"

namespace gram_fast {
namespace {

// The backward of tiles of queries, one after the other, each of one key/value head: the backward of FlashAttention
// (arXiv 2205.14135), transposed as the forward is. R rows of a tile, filled up to whole panels, F head width filled
// up, B keys of a block.
template <typename Isa, typename T>
class BackwardWalk {
 public:
  BackwardWalk(const TreeAttentionBackward& args, const TreeTiles& tiles)
      : a_(args.forward.states),
        args_(args),
        tiles_(tiles),
        group_(a_.num_heads / a_.num_kv_heads),
        filled_(filled_up(a_.head_dim, kStep)),
        max_rows_(filled_up(tiles.max_tokens * group_, kPanel)),
        q_columns_(max_rows_ * filled_),
        q_right_(max_rows_ * filled_),
        slope_columns_(max_rows_ * filled_),
        slope_right_(max_rows_ * filled_),
        grad_q_(max_rows_ * filled_),
        keys_(2 * kBlock * filled_),
        values_(kBlock * filled_),
        weights_(kBlock * max_rows_),
        score_slopes_(kBlock * max_rows_),
        right_(kBlock * kPanel),
        rows_(max_rows_ * filled_),
        scores_(kBlock * kPanel),
        weight_slopes_(kBlock * kPanel),
        product_(kStep * std::max<int64_t>(filled_, kPanel)) {
    for (std::vector<float>* numbers : {&lse_, &offset_}) numbers->resize(static_cast<size_t>(max_rows_));
    for (std::vector<int32_t>* tokens : {&low_, &high_}) tokens->resize(static_cast<size_t>(max_rows_));
  }

  // Writes the slopes of a tile's queries, and adds to those of the keys and values [T, F] of its head.
  void take(int64_t tile, int64_t kv_head, float* grad_k, float* grad_v) {
    const TreeTiles::Tile& at = tiles_.tiles[tile];
    own_ = {at.first, at.end};
    kv_head_ = kv_head;
    num_rows_ = (at.end - at.first) * group_;
    filled_rows_ = filled_up(num_rows_, kPanel);
    grad_k_ = grad_k;
    grad_v_ = grad_v;
    start();
    for (int32_t r = at.first_range; r < at.end_range; ++r) collect(tiles_.ranges[r], false);
    collect({at.own_start, at.first}, false);
    collect(own_, true);
    if (num_keys_ > 0) take_block();
    finish();
  }

 private:
  using Element = typename Isa::Element;
  static constexpr int64_t kLanes = Isa::kLanes, kPanel = Isa::kPanel, kStep = Isa::kStep, kBlock = Isa::kBlockKeys;

  int32_t token_of(int64_t row) const { return own_.start + static_cast<int32_t>(row / group_); }
  int64_t head_of(int64_t row) const { return kv_head_ * group_ + row % group_; }
  int64_t place_of(int64_t row) const { return token_of(row) * a_.num_heads + head_of(row); }

  void start() {
    std::fill_n(grad_q_.at(0), filled_rows_ * filled_, 0.0f);
    for (int64_t row = 0; row < filled_rows_; ++row) {
      const auto at = static_cast<size_t>(row);
      const bool is_row = row < num_rows_;  // what fills the last panel up reads nothing
      low_[at] = is_row ? tiles_.span_starts[token_of(row)] : 0;
      high_[at] = is_row ? token_of(row) : -1;
      lse_[at] = is_row ? a_.lse[place_of(row)] : std::numeric_limits<float>::max();
      offset_[at] = is_row ? offset_of(row) : 0;
    }
    read_rows(a_.q, a_.q_stride_t, a_.q_stride_h, q_columns_, q_right_);
    read_rows(args_.grad_out, args_.grad_out_stride_t, args_.grad_out_stride_h, slope_columns_, slope_right_);
  }

  const T* slope_at(int64_t row) const {
    return static_cast<const T*>(args_.grad_out) + token_of(row) * args_.grad_out_stride_t +
           head_of(row) * args_.grad_out_stride_h;
  }

  // The mean of the slopes with respect to weights, weighted: the product of the result and its slopes.
  float offset_of(int64_t row) const {
    const T *slope = slope_at(row), *out = static_cast<const T*>(a_.out) + place_of(row) * a_.head_dim;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t e = 0; e < a_.head_dim; ++e) sum += to_float(slope[e]) * to_float(out[e]);
    return sum;
  }

  // Rows of the tile as right operands: [F, R] in columns, and [R, F].
  void read_rows(const void* from, int64_t stride_t, int64_t stride_h, Buffer<Element>& columns,
                 Buffer<Element>& right) {
    std::fill_n(rows_.at(0), filled_rows_ * filled_, Element{});
    for (int64_t row = 0; row < num_rows_; ++row) {
      const T* at = static_cast<const T*>(from) + token_of(row) * stride_t + head_of(row) * stride_h;
      Isa::read(at, 0, 1, a_.head_dim, rows_.at(row * filled_), filled_);
    }
    for (int64_t row = 0; row < filled_rows_; row += kLanes) {
      const int64_t panel = row / kPanel * kPanel;
      Isa::to_columns(rows_.at(row * filled_), filled_, columns.at(panel * filled_), kPanel, row - panel);
    }
    Isa::to_right(rows_.at(0), filled_rows_, filled_, right.at(0));
  }

  void collect(SlotRange slots, bool is_own) {
    const T* k = static_cast<const T*>(a_.k) + kv_head_ * a_.k_stride_h;
    const T* v = static_cast<const T*>(a_.v) + kv_head_ * a_.v_stride_h;
    for (int64_t slot = slots.start; slot < slots.end;) {
      const int64_t count = std::min<int64_t>(kBlock - num_keys_, slots.end - slot), at = num_keys_ * filled_;
      Isa::read(k + slot * a_.k_stride_s, a_.k_stride_s, count, a_.head_dim, keys_.at(at), filled_);
      Isa::read(v + slot * a_.v_stride_s, a_.v_stride_s, count, a_.head_dim, values_.at(at), filled_);
      for (int64_t i = 0; i < count; ++i) slots_[num_keys_ + i] = slot + i;
      if (num_keys_ == num_shared_) own_token_ = slot;
      if (!is_own) num_shared_ += count;
      num_keys_ += count;
      slot += count;
      if (num_keys_ == kBlock) take_block();
    }
  }

  void take_block() {
    const Element* turned = Isa::turn(keys_.at(0), num_keys_, filled_);
    for (int64_t row = 0; row < filled_rows_; row += kPanel) take_panel(row, turned);
    add_products(weights_, slope_right_, grad_v_);
    add_products(score_slopes_, q_right_, grad_k_);
    num_keys_ = num_shared_ = 0;
  }

  // Weights and slopes of one panel of rows, as left operands [B, R], and what the queries get of them.
  void take_panel(int64_t row, const Element* turned) {
    const int64_t last = std::min(row + kPanel, num_rows_) - 1;
    const auto at = static_cast<size_t>(row);
    const int64_t first = num_shared_ > 0 ? 0 : std::max<int64_t>(low_[at] - own_token_, 0);
    const int64_t own_end = std::min(token_of(last) + 1 - own_token_, num_keys_ - num_shared_);
    const int64_t end = num_shared_ + std::max<int64_t>(own_end, 0);
    const int64_t from = first < end ? first / kStep * kStep : 0, to = first < end ? filled_up(end, kStep) : 0;
    const KeyBlock<Element> block{
        .keys = keys_.at(0),
        .values = values_.at(0),
        .space = scores_.at(0),
        .width = a_.head_dim,
        .filled_width = filled_,
        .first = first,
        .end = end,
        .num_shared = num_shared_,
        .own_token = own_token_,
    };
    for (int64_t n = from; n < to; n += kStep) {
      float *scores = scores_.at(n * kPanel), *slopes = weight_slopes_.at(n * kPanel);
      Isa::product(keys_.at(n * filled_), filled_, q_columns_.at(row * filled_), filled_, scores);
      Isa::product(values_.at(n * filled_), filled_, slope_columns_.at(row * filled_), filled_, slopes);
    }
    const BackwardPanel panel{&lse_[at], &offset_[at], &low_[at], &high_[at], a_.scale};
    Isa::differentiate(panel, block, from, to, scores_.at(0), weight_slopes_.at(0));
    keep(scores_.at(from * kPanel), from, to, row, weights_);
    keep(weight_slopes_.at(from * kPanel), from, to, row, score_slopes_);
    const Element* right = Isa::to_right_panel(weight_slopes_.at(from * kPanel), to - from, right_.at(0));
    for (int64_t e = 0; from < to && e < filled_; e += kStep) {
      Isa::product_with_turned(turned, e, from, filled_, right, to - from, product_.at(0));
      float* sum = grad_q_.at(row * filled_ + e * kPanel);
      for (int64_t i = 0; i < kStep * kPanel; ++i) sum[i] += product_.at(0)[i];
    }
  }

  // Rows [from, to) of one panel as columns of a left operand, with zeros for the other keys of the block.
  void keep(const float* numbers, int64_t from, int64_t to, int64_t row, Buffer<Element>& left) {
    for (int64_t n = 0; n < filled_up(num_keys_, kStep); ++n) {
      if (n < from || n >= to) std::fill_n(left.at(n * filled_rows_ + row), kPanel, Element{});
    }
    Isa::to_left(numbers, to - from, left.at(from * filled_rows_ + row), filled_rows_);
  }

  // Adds left [B, R] times right [R, F] to the rows of the block's slots.
  void add_products(Buffer<Element>& left, Buffer<Element>& right, float* sums) {
    for (int64_t n = 0; n < num_keys_; n += kStep) {
      for (int64_t e = 0; e < filled_; e += kPanel) {
        Isa::product(left.at(n * filled_rows_), filled_rows_, right.at(e * filled_rows_), filled_rows_, product_.at(0));
        for (int64_t i = 0; i < std::min(kStep, num_keys_ - n); ++i) {
          float* sum = sums + slots_[n + i] * filled_ + e;
          const float* term = product_.at(i * kPanel);
#pragma omp simd
          for (int64_t j = 0; j < kPanel; ++j) sum[j] += term[j];
        }
      }
    }
  }

  void finish() {
    for (int64_t first = 0; first < num_rows_; first += kLanes) {
      const int64_t panel = first / kPanel * kPanel;
      Isa::to_rows(grad_q_.at(panel * filled_ + (first - panel)), kPanel, filled_, product_.at(0));
      for (int64_t row = first; row < std::min(first + kLanes, num_rows_); ++row) {
        T* out = static_cast<T*>(args_.grad_q) + place_of(row) * a_.head_dim;
        Isa::write(product_.at((row - first) * filled_), 1, a_.head_dim, out);
      }
    }
  }

  const AttentionStates& a_;
  const TreeAttentionBackward& args_;
  const TreeTiles& tiles_;
  const int64_t group_, filled_, max_rows_;
  Buffer<Element> q_columns_, q_right_, slope_columns_, slope_right_;
  Buffer<float> grad_q_;                    // of panels: columns [F, kPanel]
  Buffer<Element> keys_;                    // [B, F], and room for `turn` behind them
  Buffer<Element> values_;                  // [B, F]
  Buffer<Element> weights_, score_slopes_;  // [B, R]
  Buffer<Element> right_;
  Buffer<Element> rows_;
  Buffer<float> scores_, weight_slopes_;  // [B, kPanel]
  Buffer<float> product_;
  std::vector<float> lse_, offset_;
  std::vector<int32_t> low_, high_;
  int64_t slots_[kBlock];  // of the keys of the block
  SlotRange own_{};
  int64_t kv_head_ = 0, num_rows_ = 0, filled_rows_ = 0;
  int64_t num_keys_ = 0, num_shared_ = 0, own_token_ = 0;
  float *grad_k_ = nullptr, *grad_v_ = nullptr;
};

// Parts into which the tiles of a head are dealt, each with sums of its own: enough tasks for all threads, and bits
// that depend on nothing but their number.
int64_t num_parts(int64_t num_kv_heads) {
  const int64_t threads = num_threads();
  return threads == 1 ? 1 : (2 * threads + num_kv_heads - 1) / num_kv_heads;
}

template <typename Isa, typename T>
void differentiate(const TreeAttentionBackward& args) {
  const AttentionStates& a = args.forward.states;
  const TreeTiles tiles(args.forward.tiles, args.forward.num_tiles, a.num_tokens);
  const int64_t parts = num_parts(a.num_kv_heads), filled = filled_up(a.head_dim, Isa::kStep);
  const int64_t size = a.num_tokens * filled;
  Buffer<float> grad_k(a.num_kv_heads * parts * size), grad_v(a.num_kv_heads * parts * size);
  const auto round = [&](Buffer<float>& sums, int64_t kv_head, int64_t token, void* to) {
    float* sum = sums.at(kv_head * parts * size + token * filled);
    for (int64_t part = 1; part < parts; ++part) {
      for (int64_t e = 0; e < a.head_dim; ++e) sum[e] += sum[part * size + e];
    }
    Isa::write(sum, 1, a.head_dim, static_cast<T*>(to) + (token * a.num_kv_heads + kv_head) * a.head_dim);
  };
#pragma omp parallel num_threads(num_threads())
  {
    Isa::begin();
    BackwardWalk<Isa, T> walk(args, tiles);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < a.num_kv_heads * parts; ++task) {
      for (int64_t tile = task % parts; tile < args.forward.num_tiles; tile += parts) {
        walk.take(tile, task / parts, grad_k.at(task * size), grad_v.at(task * size));
      }
    }
    Isa::end();
#pragma omp for
    for (int64_t token = 0; token < a.num_tokens; ++token) {
      for (int64_t kv_head = 0; kv_head < a.num_kv_heads; ++kv_head) {
        round(grad_k, kv_head, token, args.grad_k);
        round(grad_v, kv_head, token, args.grad_v);
      }
    }
  }
}

}  // namespace

void tree_attention_backward_cpu(const TreeAttentionBackward& args) {
  dispatch_cpu(args.forward.states.dtype, [&]<typename T>() {
    with_attention_instructions<T>([&]<typename Isa>() { differentiate<Isa, T>(args); });
  });
}

}  // namespace gram_fast
