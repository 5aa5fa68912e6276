// The Python module gram_fast._C: token tree, plans and tables. Tables that Python hands over are checked here.
#include "bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "tables/attention_tables.h"
#include "tables/layout.h"
#include "tables/leaf_items.h"
#include "tables/span_tables.h"
#include "tree/next_leaves.h"
#include "tree/token_tree.h"
#include "tree/tree_plan.h"

namespace py = pybind11;

namespace gram_fast {
namespace {

using Ids = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;
using Table = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

// Moves a vector into a NumPy array without a copy: integers, or structs of integers as rows.
template <typename Integer = int64_t, typename Row>
py::array_t<Integer> to_array(std::vector<Row> rows, std::vector<py::ssize_t> shape) {
  const auto* owned = new std::vector<Row>(std::move(rows));
  const py::capsule owner(owned, [](void* p) { delete static_cast<std::vector<Row>*>(p); });
  return py::array_t<Integer>(shape, reinterpret_cast<const Integer*>(owned->data()), owner);
}

template <typename Row>
py::array_t<int64_t> to_array(std::vector<Row> rows) {
  std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(rows.size())};
  if constexpr (!std::is_same_v<Row, int64_t>) shape.push_back(kColumns<Row, int64_t>);
  return to_array(std::move(rows), shape);
}

py::array_t<int32_t> to_array(FlatTable table) {
  const int64_t rows = table.num_rows, columns = rows > 0 ? table.size() / rows : 1;
  return to_array<int32_t>(std::move(table.values), {rows, columns});
}

// Views of arrays, which must outlive them.
std::span<const int64_t> integers(const Table& table) { return {table.data(), static_cast<size_t>(table.size())}; }

SpanTables views(const Table& spans, const Table& range_offsets, const Table& ranges) {
  const auto extents = [](const Table& table) {
    if (table.ndim() != 2 || table.shape(1) != kExtentColumns) {
      throw std::invalid_argument("spans_N2 and ranges_R2: expected rows of start and end");
    }
    return std::span{reinterpret_cast<const Extent*>(table.data()), static_cast<size_t>(table.size() / kExtentColumns)};
  };
  return {.spans = extents(spans), .range_offsets = integers(range_offsets), .ranges = extents(ranges)};
}

// The same, checked: what is made of them stays within the 32-bit slots that kernels count.
SpanTables span_tables(const Table& spans, const Table& range_offsets, const Table& ranges) {
  const SpanTables tables = views(spans, range_offsets, ranges);
  check_spans(tables, kMaxSlots, tables.num_tokens());
  return tables;
}

// That of the arguments, checked; none where there is no size.
std::optional<Window> window_of(std::optional<int64_t> size, bool is_chunked) {
  if (!size) return std::nullopt;
  if (*size < 1) throw std::invalid_argument("window: expected at least 1 token, got " + std::to_string(*size));
  return Window{*size, is_chunked};
}

py::dict table_layout() {
  py::dict layout;
  layout["EXTENT_COLUMNS"] = kExtentColumns;
  layout["NODE_COLUMNS"] = kNodeColumns;
  layout["KEEP_COLUMNS"] = kKeepColumns;
  layout["PIECE_COLUMNS"] = kPieceColumns;
  layout["BLOCK_COLUMNS"] = kBlockColumns;
  layout["TILE_COLUMNS"] = kTileColumns;
  layout["PATH_TILE_COLUMNS"] = kPathTileColumns;
  layout["ITEM_COLUMNS"] = kItemColumns;
  layout["ENTRY_COLUMNS"] = kEntryColumns;
  layout["OFFSET_MULTIPLE"] = kOffsetMultiple;
  return layout;
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
  out["nodes"] = to_array(std::move(pass.nodes));
  out["spans"] = to_array(std::move(pass.spans));
  out["range_offsets"] = to_array(std::move(pass.range_offsets));
  out["ranges"] = to_array(std::move(pass.ranges));
  out["leaf_rows"] = to_array(std::move(pass.leaf_rows));
  out["leaf_index"] = to_array(std::move(pass.leaf_index));
  out["keep"] = to_array(std::move(pass.keep));
  out["pieces"] = to_array(std::move(pass.pieces));
  return out;
}

void bind_tree(py::module_& m) {
  py::class_<KeptSlots>(m, "KeptSlots").def_property_readonly("used", &KeptSlots::used);
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
      .def(
          "add_verdicts",
          [](TokenTree& tree, const Ids& segments) {
            if (segments.ndim() != 2) throw std::invalid_argument("segments: expected an array [verdicts, segments]");
            py::array_t<int32_t> leaves(segments.shape(0));
            for (py::ssize_t row = 0; row < segments.shape(0); ++row) {
              leaves.mutable_at(row) = tree.add_verdict(segments.data(row, 0), segments.shape(1));
            }
            return leaves;
          },
          py::arg("segments"))
      .def("clear", &TokenTree::clear, py::kw_only(), py::arg("cache_limit") = 0)
      .def(
          "count_tokens",
          [](TokenTree& tree, const Ids& leaves) {
            for (py::ssize_t i = 0; i < leaves.size(); ++i) check(tree, leaves, i);
            return tree.count_tokens(leaves.data(), leaves.size());
          },
          py::arg("leaves"))
      .def("forget_slots", &TokenTree::forget_slots)
      .def("keep", &TokenTree::keep, py::arg("kept"))
      .def(
          "leaf_lengths",
          [](const TokenTree& tree, const Ids& leaves) {
            std::vector<int64_t> lengths;
            for (py::ssize_t i = 0; i < leaves.size(); ++i) lengths.push_back(tree.leaf_length(check(tree, leaves, i)));
            return to_array(std::move(lengths));
          },
          py::arg("leaves"))
      .def(
          "leaves_of_pass",
          [](const TokenTree& tree, const Ids& leaves, int64_t budget) {
            for (py::ssize_t i = 0; i < leaves.size(); ++i) check(tree, leaves, i);
            return to_array(leaves_of_pass(tree, leaves.data(), leaves.size(), budget));
          },
          py::arg("leaves"), py::kw_only(), py::arg("budget"))
      .def(
          "plan",
          [](TokenTree& tree, const Ids& leaves, int64_t budget, int64_t keep_limit, bool more_rounds,
             int64_t cache_limit, int64_t state_cost) {
            if (budget < 1)
              throw std::invalid_argument("budget: expected at least 1 token, got " + std::to_string(budget));
            if (state_cost < 0)
              throw std::invalid_argument("state_cost: expected at least 0, got " + std::to_string(state_cost));
            for (py::ssize_t i = 0; i < leaves.size(); ++i) check(tree, leaves, i);
            TreePlan plan = plan_passes(tree, leaves.data(), leaves.size(), budget, keep_limit, cache_limit,
                                        more_rounds, state_cost);
            py::list passes;
            for (TreePass& pass : plan.passes) passes.append(to_dict(std::move(pass)));
            return py::make_tuple(passes, plan.num_slots, plan.num_states, std::move(plan.kept));
          },
          py::arg("leaves"), py::kw_only(), py::arg("budget"), py::arg("keep_limit"), py::arg("more_rounds"),
          py::arg("cache_limit") = 0, py::arg("state_cost") = 0)
      .def(
          "verdicts_of_plan",
          [](const TokenTree& tree, const Ids& leaves, int64_t slots, int64_t tokens) {
            for (py::ssize_t i = 0; i < leaves.size(); ++i) {
              if (!tree.is_verdict(check(tree, leaves, i))) throw std::invalid_argument("leaves: expected verdicts");
            }
            return to_array(verdicts_of_plan(tree, leaves.data(), leaves.size(), slots, tokens));
          },
          py::arg("leaves"), py::kw_only(), py::arg("slots"), py::arg("tokens"))
      .def_property_readonly("num_tokens", &TokenTree::num_tokens);
}

void bind_tables(py::module_& m) {
  m.attr("table_layout") = table_layout();
  m.def(
      "attention_blocks",
      [](const Table& spans, const Table& range_offsets, const Table& ranges) {
        return to_array(attention_blocks(span_tables(spans, range_offsets, ranges)));
      },
      py::arg("spans"), py::arg("range_offsets"), py::arg("ranges"));
  m.def(
      "attention_tiles",
      [](const Table& spans, const Table& range_offsets, const Table& ranges, int64_t tile_tokens, int64_t min_tiles,
         std::optional<int64_t> window, bool is_chunked) {
        if (tile_tokens < 1) {
          throw std::invalid_argument("tile_tokens: expected at least 1, got " + std::to_string(tile_tokens));
        }
        return to_array(attention_tiles(span_tables(spans, range_offsets, ranges), tile_tokens, min_tiles,
                                        window_of(window, is_chunked)));
      },
      py::arg("spans"), py::arg("range_offsets"), py::arg("ranges"), py::arg("tile_tokens"), py::arg("min_tiles") = 0,
      py::arg("window") = py::none(), py::arg("is_chunked") = false);
  m.def(
      "check_leaf_rows",
      [](const Table& leaf_rows, int64_t num_tokens) { check_leaf_rows(integers(leaf_rows), num_tokens); },
      py::arg("leaf_rows"), py::arg("num_tokens"));
  m.def(
      "check_spans",
      [](const Table& spans, const Table& range_offsets, const Table& ranges, int64_t num_slots, int64_t num_tokens) {
        check_spans(views(spans, range_offsets, ranges), num_slots, num_tokens);
      },
      py::arg("spans"), py::arg("range_offsets"), py::arg("ranges"), py::arg("num_slots"), py::arg("num_tokens"));
  m.def(
      "leaf_items",
      [](const Table& spans, const Table& range_offsets, const Table& ranges, const Table& leaf_rows, int64_t min_items,
         std::optional<int64_t> window, bool is_chunked) {
        const SpanTables tables = span_tables(spans, range_offsets, ranges);
        check_leaf_rows(integers(leaf_rows), tables.num_tokens());
        return to_array(
            leaf_items(tables, integers(leaf_rows), min_items, window_of(window, is_chunked).value_or(Window{})));
      },
      py::arg("spans"), py::arg("range_offsets"), py::arg("ranges"), py::arg("leaf_rows"), py::arg("min_items") = 0,
      py::arg("window") = py::none(), py::arg("is_chunked") = false);
}

}  // namespace
}  // namespace gram_fast

PYBIND11_MODULE(_C, m) {
  m.doc() = "Token tree, pass planning and the C++/CUDA ops of gram_fast.";
  gram_fast::bind_tree(m);
  gram_fast::bind_tables(m);
  gram_fast::bind_ops(m);
}
