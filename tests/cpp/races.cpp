// Runs every CUDA kernel on the CPU, under the thread sanitizer: it sees two threads of a block that touch the same
// memory with no barrier between them. Results are checked in tests/ops/test_cuda_on_cpu.py.
#include <cstdint>
#include <vector>

#include "ops/label_logits.h"
#include "ops/leaf_attention.h"
#include "ops/merge_states.h"
#include "tables/leaf_items.h"

using namespace gram_fast;

namespace {

constexpr Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16};

// Zeros of any type up to four bytes.
std::vector<float> numbers(int64_t count) { return std::vector<float>(static_cast<size_t>(count)); }

void attend(int64_t width, Dtype dtype) {
  // Two spans, the second reads the first; 5 leaves of 14 heads are 70 rows, more than a block takes at once.
  const Extent spans[] = {{0, 37}, {37, 61}}, ranges[] = {{0, 35}};
  const int64_t range_offsets[] = {0, 0, 1};
  const int64_t leaf_rows[] = {36, 3, 60, 50, 60}, leaves = 5, slots = 61, heads = 14;
  const FlatTable items = leaf_items({spans, range_offsets, ranges}, leaf_rows, 0);
  const int64_t entries = items.size() / kEntryColumns;
  const auto q = numbers(leaves * heads * width), k = numbers(slots * width), v = numbers(slots * width);
  auto partial_out = numbers(entries * heads * width), partial_lse = numbers(entries * heads), out = q;
  leaf_attention_cuda(
      {
          .q = q.data(),
          .q_stride_l = heads * width,
          .q_stride_h = width,
          .k = k.data(),
          .k_stride_s = width,
          .k_stride_h = width,
          .v = v.data(),
          .v_stride_s = width,
          .v_stride_h = width,
          .items = items.values.data(),
          .partial_out = partial_out.data(),
          .partial_lse = partial_lse.data(),
          .out = out.data(),
          .scale = 1.0f,
          .dtype = dtype,
          .num_items = items.num_rows,
          .num_leaves = leaves,
          .num_heads = heads,
          .num_kv_heads = 1,
          .head_dim = width,
      },
      nullptr);
}

void read_labels(int64_t leaves, Dtype dtype) {
  const int64_t width = 40;
  const std::vector<int64_t> rows(static_cast<size_t>(leaves), 1);
  const auto hidden = numbers(2 * width), labels = numbers(2 * width), norm = numbers(width);
  auto logits = numbers(2 * leaves);
  label_logits_cuda(
      {
          .hidden = hidden.data(),
          .hidden_stride = width,
          .rows = rows.data(),
          .label_weight = labels.data(),
          .norm_weight = norm.data(),
          .eps = 1e-5f,
          .logits = logits.data(),
          .dtype = dtype,
          .num_leaves = leaves,
          .width = width,
      },
      nullptr);
}

void merge(int64_t width, Dtype dtype) {
  const int64_t queries = 5, heads = 3;
  auto out = numbers(queries * heads * width), lse = numbers(queries * heads);
  const auto other_out = out, other_lse = lse;
  merge_states_cuda(
      {
          .out = out.data(),
          .out_stride_t = heads * width,
          .out_stride_h = width,
          .lse = lse.data(),
          .lse_stride_t = heads,
          .lse_stride_h = 1,
          .other_out = other_out.data(),
          .other_out_stride_t = heads * width,
          .other_out_stride_h = width,
          .other_lse = other_lse.data(),
          .other_lse_stride_t = heads,
          .other_lse_stride_h = 1,
          .other_dtype = dtype,
          .num_queries = queries,
          .num_heads = heads,
          .head_dim = width,
      },
      nullptr);
}

}  // namespace

int main() {
  for (const Dtype dtype : kDtypes) {
    for (const int64_t width : {24, 97, 256}) attend(width, dtype);
    read_labels(3, dtype);
    for (const int64_t width : {1, 97, 128}) merge(width, dtype);
  }
  read_labels(GRAM_FAST_MANY_LEAVES, Dtype::kFloat32);
}
