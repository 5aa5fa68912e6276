// Bindings of the ops. Tensors are passed as addresses and checked in gram_fast/ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <stdexcept>

#include "bindings.h"
#include "common/amx.h"
#include "ops/add_rms_norm.h"
#include "ops/label_logits.h"
#include "ops/leaf_attention.h"
#include "ops/merge_states.h"
#include "ops/path_attention.h"
#include "ops/rotary_into_cache.h"
#include "ops/split_linear.h"
#include "ops/swiglu.h"
#include "ops/tree_attention.h"
#include "ops/tree_attention_backward.h"

namespace py = pybind11;

namespace gram_fast {
namespace {

using Strides = std::array<int64_t, 2>;

template <typename T>
T* address(uintptr_t value) {
  return reinterpret_cast<T*>(value);  // NOLINT: raw tensor addresses are the interface
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

// Runs an op without the GIL: on the CPU, or on a CUDA stream where there is one.
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

AttentionStates states_of(uintptr_t q, Strides q_strides, uintptr_t k, Strides k_strides, uintptr_t v,
                          Strides v_strides, uintptr_t out, float scale, int dtype, std::array<int64_t, 4> shape) {
  return {
      .q = address<void>(q),
      .q_stride_t = q_strides[0],
      .q_stride_h = q_strides[1],
      .k = address<void>(k),
      .k_stride_s = k_strides[0],
      .k_stride_h = k_strides[1],
      .v = address<void>(v),
      .v_stride_s = v_strides[0],
      .v_stride_h = v_strides[1],
      .out = address<void>(out),
      .scale = scale,
      .dtype = static_cast<Dtype>(dtype),
      .num_tokens = shape[0],
      .num_heads = shape[1],
      .num_kv_heads = shape[2],
      .head_dim = shape[3],
  };
}

}  // namespace

void bind_ops(py::module_& m) {
  m.attr("has_cuda") = kHasCuda;
  m.def(
      "merge_states",
      [](uintptr_t out, Strides out_strides, uintptr_t lse, Strides lse_strides, uintptr_t other_out,
         Strides other_out_strides, uintptr_t other_lse, Strides other_lse_strides, int other_dtype,
         std::array<int64_t, 3> shape, std::optional<uintptr_t> stream) {
        const MergeStates args{
            .out = address<float>(out),
            .out_stride_t = out_strides[0],
            .out_stride_h = out_strides[1],
            .lse = address<float>(lse),
            .lse_stride_t = lse_strides[0],
            .lse_stride_h = lse_strides[1],
            .other_out = address<void>(other_out),
            .other_out_stride_t = other_out_strides[0],
            .other_out_stride_h = other_out_strides[1],
            .other_lse = address<float>(other_lse),
            .other_lse_stride_t = other_lse_strides[0],
            .other_lse_stride_h = other_lse_strides[1],
            .other_dtype = static_cast<Dtype>(other_dtype),
            .num_queries = shape[0],
            .num_heads = shape[1],
            .head_dim = shape[2],
        };
        run(args, stream, merge_states_cpu, GRAM_FAST_CUDA(merge_states_cuda));
      },
      py::arg("out"), py::arg("out_strides"), py::arg("lse"), py::arg("lse_strides"), py::arg("other_out"),
      py::arg("other_out_strides"), py::arg("other_lse"), py::arg("other_lse_strides"), py::arg("other_dtype"),
      py::arg("shape"), py::arg("stream"));
  m.def(
      "label_logits",
      [](uintptr_t hidden, int64_t hidden_stride, uintptr_t rows, uintptr_t label_weight, uintptr_t norm_weight,
         float eps, uintptr_t logits, int dtype, std::array<int64_t, 2> shape, std::optional<uintptr_t> stream) {
        const LabelLogits args{
            .hidden = address<void>(hidden),
            .hidden_stride = hidden_stride,
            .rows = address<int64_t>(rows),
            .label_weight = address<void>(label_weight),
            .norm_weight = address<void>(norm_weight),
            .eps = eps,
            .logits = address<float>(logits),
            .dtype = static_cast<Dtype>(dtype),
            .num_leaves = shape[0],
            .width = shape[1],
        };
        run(args, stream, label_logits_cpu, GRAM_FAST_CUDA(label_logits_cuda));
      },
      py::arg("hidden"), py::arg("hidden_stride"), py::arg("rows"), py::arg("label_weight"), py::arg("norm_weight"),
      py::arg("eps"), py::arg("logits"), py::arg("dtype"), py::arg("shape"), py::arg("stream"));
  m.def(
      "add_rms_norm",
      [](uintptr_t residual, int64_t residual_stride, uintptr_t x, int64_t x_stride, uintptr_t weight, float eps,
         uintptr_t out, int dtype, std::array<int64_t, 2> shape) {
        const AddRmsNorm args{
            .residual = address<void>(residual),
            .residual_stride = residual_stride,
            .x = address<void>(x),
            .x_stride = x_stride,
            .weight = address<void>(weight),
            .eps = eps,
            .out = address<void>(out),
            .dtype = static_cast<Dtype>(dtype),
            .num_tokens = shape[0],
            .width = shape[1],
        };
        const py::gil_scoped_release release;
        add_rms_norm_cpu(args);
      },
      py::arg("residual"), py::arg("residual_stride"), py::arg("x"), py::arg("x_stride"), py::arg("weight"),
      py::arg("eps"), py::arg("out"), py::arg("dtype"), py::arg("shape"));
  m.def(
      "rotary_into_cache",
      [](uintptr_t qkv, Strides qkv_strides, uintptr_t cos, int64_t cos_stride, uintptr_t sin, int64_t sin_stride,
         uintptr_t k, Strides k_strides, uintptr_t v, Strides v_strides, uintptr_t q_norm, uintptr_t k_norm, float eps,
         int dtype, std::array<int64_t, 4> shape) {
        const RotaryIntoCache args{
            .qkv = address<void>(qkv),
            .qkv_stride_t = qkv_strides[0],
            .qkv_stride_c = qkv_strides[1],
            .cos = address<float>(cos),
            .cos_stride = cos_stride,
            .sin = address<float>(sin),
            .sin_stride = sin_stride,
            .k = address<void>(k),
            .k_stride_s = k_strides[0],
            .k_stride_h = k_strides[1],
            .v = address<void>(v),
            .v_stride_s = v_strides[0],
            .v_stride_h = v_strides[1],
            .q_norm = address<void>(q_norm),
            .k_norm = address<void>(k_norm),
            .eps = eps,
            .dtype = static_cast<Dtype>(dtype),
            .num_tokens = shape[0],
            .num_heads = shape[1],
            .num_kv_heads = shape[2],
            .head_dim = shape[3],
        };
        const py::gil_scoped_release release;
        rotary_into_cache_cpu(args);
      },
      py::arg("qkv"), py::arg("qkv_strides"), py::arg("cos"), py::arg("cos_stride"), py::arg("sin"),
      py::arg("sin_stride"), py::arg("k"), py::arg("k_strides"), py::arg("v"), py::arg("v_strides"), py::arg("q_norm"),
      py::arg("k_norm"), py::arg("eps"), py::arg("dtype"), py::arg("shape"));
  m.def(
      "swiglu",
      [](uintptr_t gate_up, int64_t gate_up_stride, uintptr_t out, int dtype, std::array<int64_t, 2> shape) {
        const Swiglu args{
            .gate_up = address<void>(gate_up),
            .gate_up_stride = gate_up_stride,
            .out = address<void>(out),
            .dtype = static_cast<Dtype>(dtype),
            .num_tokens = shape[0],
            .width = shape[1],
        };
        const py::gil_scoped_release release;
        swiglu_cpu(args);
      },
      py::arg("gate_up"), py::arg("gate_up_stride"), py::arg("out"), py::arg("dtype"), py::arg("shape"));
  m.def("has_amx", has_amx);
  m.def(
      "split_linear",
      [](uintptr_t x, int64_t x_stride, uintptr_t weight, uintptr_t bias, uintptr_t out, std::array<int64_t, 3> shape) {
        const SplitLinear args{
            .x = address<float>(x),
            .x_stride = x_stride,
            .weight = address<float>(weight),
            .bias = address<float>(bias),
            .out = address<float>(out),
            .num_tokens = shape[0],
            .width = shape[1],
            .out_width = shape[2],
        };
        const py::gil_scoped_release release;
        split_linear_cpu(args);
      },
      py::arg("x"), py::arg("x_stride"), py::arg("weight"), py::arg("bias"), py::arg("out"), py::arg("shape"));
  m.def(
      "leaf_attention",
      [](uintptr_t q, Strides q_strides, uintptr_t k, Strides k_strides, uintptr_t v, Strides v_strides,
         uintptr_t items, int64_t num_items, uintptr_t partial_out, uintptr_t partial_lse, uintptr_t out, float scale,
         int dtype, std::array<int64_t, 4> shape, std::optional<uintptr_t> stream, std::optional<uintptr_t> sinks,
         std::optional<float> softcap) {
        const LeafAttention args{
            .q = address<void>(q),
            .q_stride_l = q_strides[0],
            .q_stride_h = q_strides[1],
            .k = address<void>(k),
            .k_stride_s = k_strides[0],
            .k_stride_h = k_strides[1],
            .v = address<void>(v),
            .v_stride_s = v_strides[0],
            .v_stride_h = v_strides[1],
            .items = address<int32_t>(items),
            .partial_out = address<float>(partial_out),
            .partial_lse = address<float>(partial_lse),
            .out = address<void>(out),
            .scale = scale,
            .dtype = static_cast<Dtype>(dtype),
            .num_items = num_items,
            .num_leaves = shape[0],
            .num_heads = shape[1],
            .num_kv_heads = shape[2],
            .head_dim = shape[3],
            .sinks = address<float>(sinks.value_or(0)),
            .softcap = softcap.value_or(0),
        };
        run(args, stream, leaf_attention_cpu, GRAM_FAST_CUDA(leaf_attention_cuda));
      },
      py::arg("q"), py::arg("q_strides"), py::arg("k"), py::arg("k_strides"), py::arg("v"), py::arg("v_strides"),
      py::arg("items"), py::arg("num_items"), py::arg("partial_out"), py::arg("partial_lse"), py::arg("out"),
      py::arg("scale"), py::arg("dtype"), py::arg("shape"), py::arg("stream"), py::arg("sinks") = py::none(),
      py::arg("softcap") = py::none());
  m.def(
      "tree_attention",
      [](uintptr_t q, Strides q_strides, uintptr_t k, Strides k_strides, uintptr_t v, Strides v_strides, uintptr_t out,
         float scale, int dtype, std::array<int64_t, 4> shape, uintptr_t tiles, int64_t num_tiles,
         std::optional<uintptr_t> lse, bool is_windowed, std::optional<uintptr_t> sinks, std::optional<float> softcap) {
        TreeAttention args{
            .states = states_of(q, q_strides, k, k_strides, v, v_strides, out, scale, dtype, shape),
            .tiles = address<int32_t>(tiles),
            .num_tiles = num_tiles,
            .is_windowed = is_windowed,
        };
        args.states.lse = address<float>(lse.value_or(0));
        args.states.sinks = address<float>(sinks.value_or(0));
        args.states.softcap = softcap.value_or(0);
        const py::gil_scoped_release release;
        tree_attention_cpu(args);
      },
      py::arg("q"), py::arg("q_strides"), py::arg("k"), py::arg("k_strides"), py::arg("v"), py::arg("v_strides"),
      py::arg("out"), py::arg("scale"), py::arg("dtype"), py::arg("shape"), py::arg("tiles"), py::arg("num_tiles"),
      py::arg("lse") = py::none(), py::arg("is_windowed") = false, py::arg("sinks") = py::none(),
      py::arg("softcap") = py::none());
  m.def(
      "tree_attention_backward",
      [](uintptr_t q, Strides q_strides, uintptr_t k, Strides k_strides, uintptr_t v, Strides v_strides, uintptr_t out,
         float scale, int dtype, std::array<int64_t, 4> shape, uintptr_t tiles, int64_t num_tiles, uintptr_t lse,
         uintptr_t grad_out, Strides grad_out_strides, uintptr_t grad_q, uintptr_t grad_k, uintptr_t grad_v) {
        TreeAttentionBackward args{
            .forward = {.states = states_of(q, q_strides, k, k_strides, v, v_strides, out, scale, dtype, shape),
                        .tiles = address<int32_t>(tiles),
                        .num_tiles = num_tiles},
            .grad_out = address<void>(grad_out),
            .grad_out_stride_t = grad_out_strides[0],
            .grad_out_stride_h = grad_out_strides[1],
            .grad_q = address<void>(grad_q),
            .grad_k = address<void>(grad_k),
            .grad_v = address<void>(grad_v),
        };
        args.forward.states.lse = address<float>(lse);
        const py::gil_scoped_release release;
        tree_attention_backward_cpu(args);
      },
      py::arg("q"), py::arg("q_strides"), py::arg("k"), py::arg("k_strides"), py::arg("v"), py::arg("v_strides"),
      py::arg("out"), py::arg("scale"), py::arg("dtype"), py::arg("shape"), py::arg("tiles"), py::arg("num_tiles"),
      py::arg("lse"), py::arg("grad_out"), py::arg("grad_out_strides"), py::arg("grad_q"), py::arg("grad_k"),
      py::arg("grad_v"));
  m.def(
      "path_attention",
      [](uintptr_t q, Strides q_strides, uintptr_t k, Strides k_strides, uintptr_t v, Strides v_strides, uintptr_t out,
         float scale, int dtype, std::array<int64_t, 4> shape, uintptr_t tiles, int64_t num_tiles, uintptr_t slots,
         int64_t tile_tokens) {
        const PathAttention args{
            .states = states_of(q, q_strides, k, k_strides, v, v_strides, out, scale, dtype, shape),
            .tiles = address<int32_t>(tiles),
            .slots = address<int32_t>(slots),
            .num_tiles = num_tiles,
            .tile_tokens = tile_tokens,
        };
        const py::gil_scoped_release release;
        path_attention_cpu(args);
      },
      py::arg("q"), py::arg("q_strides"), py::arg("k"), py::arg("k_strides"), py::arg("v"), py::arg("v_strides"),
      py::arg("out"), py::arg("scale"), py::arg("dtype"), py::arg("shape"), py::arg("tiles"), py::arg("num_tiles"),
      py::arg("slots"), py::arg("tile_tokens"));
}

}  // namespace gram_fast
