// Binds; nothing else. Tensors come as addresses, checked in gram_fast/ops.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ops/label_logits.h"
#include "ops/leaf_attention.h"
#include "ops/merge_states.h"
#include "ops/swiglu.h"
#include "tables/leaf_items.h"
#include "tree/token_tree.h"
#include "tree/tree_plan.h"

namespace py = pybind11;

namespace gram_fast {
namespace {

using Ids = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;
using Table = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;
using Strides = std::array<int64_t, 2>;

template <typename T>
T* address(uintptr_t value) {
  return reinterpret_cast<T*>(value);  // NOLINT: raw tensor addresses are the interface
}

// Hands a vector over to NumPy without a copy.
template <typename T>
py::array_t<T> to_array(std::vector<T> values, int64_t columns = 0) {
  const auto* owned = new std::vector<T>(std::move(values));
  const py::capsule owner(owned, [](void* p) { delete static_cast<std::vector<T>*>(p); });
  const auto count = static_cast<py::ssize_t>(owned->size());
  std::vector<py::ssize_t> shape{count};
  if (columns > 0) shape = {count / columns, columns};
  return py::array_t<T>(shape, owned->data(), owner);
}

// The same, as so many rows.
template <typename T>
py::array_t<T> to_rows(std::vector<T> values, int64_t rows) {
  const auto size = static_cast<int64_t>(values.size());
  return to_array(std::move(values), rows > 0 ? size / rows : 1);
}

#ifdef GRAM_FAST_WITH_CUDA
constexpr bool kHasCuda = true;
#define GRAM_FAST_CUDA(function) function
#else
constexpr bool kHasCuda = false;
#define GRAM_FAST_CUDA(function) \
  {                              \
  }
#endif

// Without a stream on the CPU, otherwise on CUDA.
template <typename Args>
void run(const Args& args, std::optional<uintptr_t> stream, void (*cpu)(const Args&),
         void (*cuda)(const Args&, void*)) {
  const py::gil_scoped_release release;
  if (!stream) {
    cpu(args);
  } else if (kHasCuda) {
    cuda(args, address<void>(*stream));
  } else {
    throw std::runtime_error("the extension was built without its CUDA part: install nvcc and rebuild it");
  }
}

int32_t check(const TokenTree& tree, const Ids& leaves, py::ssize_t i) {
  const int32_t leaf = leaves.data()[i];
  if (leaf < 0 || leaf >= tree.num_leaves()) {
    throw std::invalid_argument("leaf " + std::to_string(leaf) + " is unknown: there are " +
                                std::to_string(tree.num_leaves()));
  }
  return leaf;
}

py::dict to_dict(TreePass pass) {
  py::dict out;
  out["input_ids"] = to_array(std::move(pass.input_ids));
  out["position_ids"] = to_array(std::move(pass.position_ids));
  out["nodes"] = to_array(std::move(pass.nodes), 5);
  out["spans"] = to_array(std::move(pass.spans), 2);
  out["range_offsets"] = to_array(std::move(pass.range_offsets));
  out["ranges"] = to_array(std::move(pass.ranges), 2);
  out["leaf_rows"] = to_array(std::move(pass.leaf_rows));
  out["leaf_index"] = to_array(std::move(pass.leaf_index));
  out["keep"] = to_array(std::move(pass.keep), 3);
  return out;
}

void bind_tree(py::module_& m) {
  py::class_<TokenTree>(m, "TokenTree")
      .def(py::init([](const Ids& head_ids) {
             return TokenTree(std::vector<int32_t>(head_ids.data(), head_ids.data() + head_ids.size()));
           }),
           py::arg("head_ids"))
      .def(
          "add_segment", [](TokenTree& tree, const Ids& ids) { return tree.add_segment(ids.data(), ids.size()); },
          py::arg("ids"))
      .def(
          "add_sequences",
          [](TokenTree& tree, const Ids& segments, int64_t reusable) {
            if (segments.ndim() != 2) throw std::invalid_argument("segments: expected an array [sequences, segments]");
            py::array_t<int32_t> leaves(segments.shape(0));
            for (py::ssize_t row = 0; row < segments.shape(0); ++row) {
              leaves.mutable_at(row) = tree.add_sequence(segments.data(row, 0), segments.shape(1), reusable);
            }
            return leaves;
          },
          py::arg("segments"), py::arg("reusable"))
      .def("clear", &TokenTree::clear)
      .def("forget_slots", [](TokenTree& tree) { tree.forget_slots(tree.slots().base()); })
      .def(
          "leaf_lengths",
          [](const TokenTree& tree, const Ids& leaves) {
            std::vector<int64_t> lengths;
            for (py::ssize_t i = 0; i < leaves.size(); ++i) lengths.push_back(tree.leaf_length(check(tree, leaves, i)));
            return to_array(std::move(lengths));
          },
          py::arg("leaves"))
      .def(
          "plan",
          [](TokenTree& tree, const Ids& leaves, int64_t budget, int64_t keep_limit, bool more_rounds) {
            if (budget < 1)
              throw std::invalid_argument("budget: expected at least 1 token, got " + std::to_string(budget));
            for (py::ssize_t i = 0; i < leaves.size(); ++i) check(tree, leaves, i);
            TreePlan plan = plan_passes(tree, leaves.data(), leaves.size(), budget, keep_limit, more_rounds);
            py::list passes;
            for (TreePass& pass : plan.passes) passes.append(to_dict(std::move(pass)));
            return py::make_tuple(passes, plan.num_slots);
          },
          py::arg("leaves"), py::kw_only(), py::arg("budget"), py::arg("keep_limit"), py::arg("more_rounds"))
      .def_property_readonly("num_tokens", &TokenTree::num_tokens);
  m.def(
      "attention_blocks",
      [](const Table& spans, const Table& range_offsets, const Table& ranges) {
        return to_array(attention_blocks(spans.data(), range_offsets.data(), ranges.data(), range_offsets.size() - 1),
                        5);
      },
      py::arg("spans"), py::arg("range_offsets"), py::arg("ranges"));
  m.def(
      "attention_tiles",
      [](const Table& spans, const Table& range_offsets, const Table& ranges, int64_t tile_tokens, int64_t min_tiles) {
        int64_t num_tiles = 0;
        auto flat = attention_tiles(spans.data(), range_offsets.data(), ranges.data(), range_offsets.size() - 1,
                                    tile_tokens, min_tiles, num_tiles);
        return to_rows(std::move(flat), num_tiles);
      },
      py::arg("spans"), py::arg("range_offsets"), py::arg("ranges"), py::arg("tile_tokens"), py::arg("min_tiles") = 0);
  m.def(
      "leaf_items",
      [](const Table& spans, const Table& range_offsets, const Table& ranges, const Table& leaf_rows,
         int64_t min_items) {
        int64_t num_items = 0;
        auto flat = leaf_items(spans.data(), range_offsets.data(), ranges.data(), spans.size() / 2, leaf_rows.data(),
                               leaf_rows.size(), min_items, num_items);
        return to_rows(std::move(flat), num_items);
      },
      py::arg("spans"), py::arg("range_offsets"), py::arg("ranges"), py::arg("leaf_rows"), py::arg("min_items") = 0);
}

void bind_ops(py::module_& m) {
  m.def(
      "merge_states",
      [](uintptr_t out, Strides out_strides, uintptr_t lse, Strides lse_strides, uintptr_t other_out,
         Strides other_out_strides, uintptr_t other_lse, Strides other_lse_strides, int other_dtype,
         std::array<int64_t, 3> shape, std::optional<uintptr_t> stream) {
        const MergeStates args{address<float>(out),
                               out_strides[0],
                               out_strides[1],
                               address<float>(lse),
                               lse_strides[0],
                               lse_strides[1],
                               address<void>(other_out),
                               other_out_strides[0],
                               other_out_strides[1],
                               address<float>(other_lse),
                               other_lse_strides[0],
                               other_lse_strides[1],
                               static_cast<Dtype>(other_dtype),
                               shape[0],
                               shape[1],
                               shape[2]};
        run(args, stream, merge_states_cpu, GRAM_FAST_CUDA(merge_states_cuda));
      },
      py::arg("out"), py::arg("out_strides"), py::arg("lse"), py::arg("lse_strides"), py::arg("other_out"),
      py::arg("other_out_strides"), py::arg("other_lse"), py::arg("other_lse_strides"), py::arg("other_dtype"),
      py::arg("shape"), py::arg("stream"));
  m.def(
      "label_logits",
      [](uintptr_t hidden, int64_t hidden_stride, uintptr_t rows, uintptr_t label_weight, uintptr_t norm_weight,
         float eps, uintptr_t logits, int dtype, std::array<int64_t, 2> shape, std::optional<uintptr_t> stream) {
        const LabelLogits args{address<void>(hidden),
                               hidden_stride,
                               address<int64_t>(rows),
                               address<void>(label_weight),
                               address<void>(norm_weight),
                               eps,
                               address<float>(logits),
                               static_cast<Dtype>(dtype),
                               shape[0],
                               shape[1]};
        run(args, stream, label_logits_cpu, GRAM_FAST_CUDA(label_logits_cuda));
      },
      py::arg("hidden"), py::arg("hidden_stride"), py::arg("rows"), py::arg("label_weight"), py::arg("norm_weight"),
      py::arg("eps"), py::arg("logits"), py::arg("dtype"), py::arg("shape"), py::arg("stream"));
  m.def(
      "swiglu",
      [](uintptr_t gate_up, int64_t gate_up_stride, uintptr_t out, int dtype, std::array<int64_t, 2> shape) {
        const Swiglu args{address<void>(gate_up),    gate_up_stride, address<void>(out),
                          static_cast<Dtype>(dtype), shape[0],       shape[1]};
        const py::gil_scoped_release release;
        swiglu_cpu(args);
      },
      py::arg("gate_up"), py::arg("gate_up_stride"), py::arg("out"), py::arg("dtype"), py::arg("shape"));
  m.def(
      "leaf_attention",
      [](uintptr_t q, Strides q_strides, uintptr_t k, Strides k_strides, uintptr_t v, Strides v_strides,
         uintptr_t items, int64_t num_items, uintptr_t partial_out, uintptr_t partial_lse, uintptr_t out, float scale,
         int dtype, std::array<int64_t, 4> shape, std::optional<uintptr_t> stream) {
        const LeafAttention args{address<void>(q),
                                 q_strides[0],
                                 q_strides[1],
                                 address<void>(k),
                                 k_strides[0],
                                 k_strides[1],
                                 address<void>(v),
                                 v_strides[0],
                                 v_strides[1],
                                 address<int32_t>(items),
                                 address<float>(partial_out),
                                 address<float>(partial_lse),
                                 address<void>(out),
                                 scale,
                                 static_cast<Dtype>(dtype),
                                 num_items,
                                 shape[0],
                                 shape[1],
                                 shape[2],
                                 shape[3]};
        run(args, stream, leaf_attention_cpu, GRAM_FAST_CUDA(leaf_attention_cuda));
      },
      py::arg("q"), py::arg("q_strides"), py::arg("k"), py::arg("k_strides"), py::arg("v"), py::arg("v_strides"),
      py::arg("items"), py::arg("num_items"), py::arg("partial_out"), py::arg("partial_lse"), py::arg("out"),
      py::arg("scale"), py::arg("dtype"), py::arg("shape"), py::arg("stream"));
}

}  // namespace
}  // namespace gram_fast

PYBIND11_MODULE(_C, m) {
  m.doc() = "Token tree, pass planning and the C++/CUDA ops of gram_fast.";
  m.attr("has_cuda") = gram_fast::kHasCuda;
  gram_fast::bind_tree(m);
  gram_fast::bind_ops(m);
}
