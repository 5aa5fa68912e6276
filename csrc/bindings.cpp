// The module: token tree, plans and tables. Binds; nothing else. Arguments of tables are checked in gram_fast/ops.
#include "bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tables/leaf_items.h"
#include "tree/token_tree.h"
#include "tree/tree_plan.h"

namespace py = pybind11;

namespace gram_fast {
namespace {

using Ids = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;
using Table = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

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

}  // namespace
}  // namespace gram_fast

PYBIND11_MODULE(_C, m) {
  m.doc() = "Token tree, pass planning and the C++/CUDA ops of gram_fast.";
  gram_fast::bind_tree(m);
  gram_fast::bind_ops(m);
}
