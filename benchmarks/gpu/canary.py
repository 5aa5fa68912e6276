"""Is an op right on this GPU, at the shapes of real models?

    python -m benchmarks.gpu.canary OP [OP ...] [--backend NAME]

Runs every backend that the op has there, or one, in bfloat16, at the sizes of Qwen3-8B and Qwen3-1.7B. Each result is
compared with the plain reference in float64, and what a CUDA graph replays with what a launch gives, bit by bit.
Without a GPU it runs on the CPU, at tiny sizes, and compares two launches.

A row of the last dimension may be off by 1.5 times what the reference is off by in the same dtype, with half a unit in
the last place for the output's own rounding; a result in float32, whose sums have another order, by 4 times. Results in
float8 have the reference's bits.

Shape letters: T packed tokens, S slots, L leaves, H query heads, K key/value heads, E head width, C channels, D model
width, G gate and up, O columns out, F half a head.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernel_speed.exactness import row_error
from benchmarks.kernel_speed.run import backends_on
from benchmarks.kernel_speed.shapes import Forest, Heads, heads_of, one_against_all, random_lengths
from benchmarks.random_judge import SHAPES, ModelSizes
from gram_fast import ops
from gram_fast.kernels.add_rms_norm import add_rms_norm_reference
from gram_fast.kernels.add_rms_norm_fp8 import add_rms_norm_fp8_reference
from gram_fast.kernels.invariant_linear import invariant_linear_reference
from gram_fast.kernels.label_logits import label_logits_reference
from gram_fast.kernels.leaf_attention import leaf_attention_reference
from gram_fast.kernels.merge_states import merge_states_reference
from gram_fast.kernels.quantize_rows import FLOAT8, quantize_rows_reference
from gram_fast.kernels.rotary_into_cache import rotary_into_cache_reference
from gram_fast.kernels.swiglu import swiglu_reference
from gram_fast.kernels.swiglu_fp8 import swiglu_fp8_reference
from gram_fast.kernels.tree_attention import tree_attention_reference

Tensors = tuple[Tensor, ...]
Compute = Callable[..., Tensors]
"""(inputs) -> the outputs, and inputs that were written to."""
FACTOR = {torch.float32: 4.0, torch.float16: 1.5, torch.bfloat16: 1.5, FLOAT8: 0.0}
EPS = 1e-6
MODELS = {"cuda": ("qwen3-8b", "qwen3-1.7b"), "cpu": ("small",)}
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float16}
"""In float16 since Triton's interpreter computes bfloat16 wrongly."""


@dataclass(frozen=True)
class Case:
    """One op at the sizes of one model."""

    inputs: Tensors
    reference: Compute
    """Also computes in float64."""
    bound: Callable[[str], Compute]
    """The op on the backend of that name, without its checks: as the layers of a model call it."""


@dataclass(frozen=True)
class Sizes:
    """What cases are made of."""

    model: ModelSizes
    heads: Heads
    forest: Forest
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, name: str, device: torch.device) -> "Sizes":
        """Gives the sizes of a model, and a forest of odd lengths: 3,000 tokens on a GPU, where dense scores fit."""
        lengths = random_lengths(80, 180, 8) if device.type == "cuda" else [7, 5, 6]
        forest = one_against_all(157 if device.type == "cuda" else 5, lengths)
        return cls(SHAPES[name], heads_of(name), forest, device, DTYPES[device.type])

    @property
    def tokens(self) -> int:
        """T."""
        return self.forest.num_tokens

    @property
    def spans(self) -> ops.Spans:
        """What the tokens of the forest read."""
        return ops.Spans(*self.forest.tables)

    def normal(self, *shape: int) -> Tensor:
        """Draws normally distributed numbers of the dtype."""
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def states(self) -> Tensors:
        """Draws queries, keys and values for all tokens."""
        kv = (self.tokens, self.heads.num_kv_heads, self.heads.width)
        return self.normal(self.tokens, self.heads.num_heads, self.heads.width), self.normal(*kv), self.normal(*kv)

    @property
    def scale(self) -> float:
        """Factor on the scores."""
        return float(self.heads.width**-0.5)


def returned(function: Callable[..., Tensor], *more: Any) -> Compute:
    """Makes the computation of a function that returns its output, given `more` arguments behind the inputs."""
    return lambda *inputs: (function(*inputs, *more),)


def tree_attention(sizes: Sizes) -> Case:
    """Attention of all tokens."""

    def bound(backend: str) -> Compute:
        tables = ops.TreeTables.of(sizes.spans, backend, sizes.heads.group, sizes.device)
        return returned(ops.bind("tree_attention", backend), tables, sizes.scale)

    return Case(sizes.states(), returned(tree_attention_reference, *sizes.spans, sizes.scale), bound)


def path_attention(sizes: Sizes) -> Case:
    """The same attention, with sums in the order of the paths."""

    def bound(backend: str) -> Compute:
        tables = ops.PathTables.of(sizes.spans, sizes.heads.group, sizes.device)
        return returned(ops.bind("path_attention", backend), tables, sizes.scale)

    return Case(sizes.states(), returned(tree_attention_reference, *sizes.spans, sizes.scale), bound)


def leaf_attention(sizes: Sizes) -> Case:
    """Attention of the leaves' last tokens."""
    rows_L = sizes.forest.tree_pass.leaf_rows
    q_THE, k_SKE, v_SKE = sizes.states()

    def bound(backend: str) -> Compute:
        tables = ops.LeafTables.of(sizes.spans, rows_L, backend, sizes.device)
        return returned(ops.bind("leaf_attention", backend), tables, sizes.scale)

    inputs = (q_THE[rows_L.to(sizes.device)], k_SKE, v_SKE)
    return Case(inputs, returned(leaf_attention_reference, *sizes.spans, rows_L, sizes.scale), bound)


def merge_states(sizes: Sizes) -> Case:
    """The merge of two partial results, which writes to the first."""
    states, sums = (sizes.tokens, sizes.heads.num_heads, sizes.heads.width), (sizes.tokens, sizes.heads.num_heads)
    out_THE, lse_TH, other_TH = sizes.normal(*states).float(), sizes.normal(*sums).float(), sizes.normal(*sums).float()

    def compute(merge: Callable[..., None]) -> Compute:
        def run(out_THE: Tensor, lse_TH: Tensor, *other: Tensor) -> Tensors:
            merge(out_THE, lse_TH, *other)
            return out_THE, lse_TH

        return run

    inputs = (out_THE, lse_TH, sizes.normal(*states), other_TH)
    return Case(inputs, compute(merge_states_reference), lambda backend: compute(ops.bind("merge_states", backend)))


def label_logits(sizes: Sizes) -> Case:
    """The final norm and the two label logits of all tokens."""
    hidden_TD, labels_2D = sizes.normal(sizes.tokens, sizes.model.hidden), sizes.normal(2, sizes.model.hidden)
    rows_L = torch.randperm(sizes.tokens, device=sizes.device)

    def compute(function: Callable[..., Tensor]) -> Compute:
        return lambda hidden, labels, norm: (function(hidden, rows_L, labels, norm, EPS),)

    inputs = (hidden_TD, labels_2D, sizes.normal(sizes.model.hidden))
    return Case(inputs, compute(label_logits_reference), lambda backend: compute(ops.bind("label_logits", backend)))


def add_rms_norm(sizes: Sizes) -> Case:
    """The sum of residual, which it writes to, and update, with its norm."""
    shape = (sizes.tokens, sizes.model.hidden)

    def compute(function: Callable[..., Tensor]) -> Compute:
        def run(residual_TD: Tensor, x_TD: Tensor, weight_D: Tensor) -> Tensors:
            return function(residual_TD, x_TD, weight_D, EPS), residual_TD

        return run

    inputs = (sizes.normal(*shape), sizes.normal(*shape), sizes.normal(sizes.model.hidden))
    return Case(inputs, compute(add_rms_norm_reference), lambda backend: compute(ops.bind("add_rms_norm", backend)))


def rotary_into_cache(sizes: Sizes) -> Case:
    """The norm and rotation of queries and keys, in place and into the cache."""
    heads = sizes.heads
    channels = heads.num_heads + 2 * heads.num_kv_heads
    angles_TF = torch.rand(sizes.tokens, heads.width // 2, device=sizes.device)
    cache = (sizes.tokens, heads.num_kv_heads, heads.width)

    def compute(function: Callable[..., None]) -> Compute:
        def run(qkv_TCE: Tensor, *others: Tensor) -> Tensors:
            function(qkv_TCE, *others, EPS, heads.num_heads)
            return qkv_TCE[:, : heads.num_heads], others[2], others[3]

        return run

    rotated = (sizes.normal(sizes.tokens, channels, heads.width), angles_TF.cos(), angles_TF.sin())
    norms = (sizes.normal(heads.width), sizes.normal(heads.width))
    return Case(
        (*rotated, sizes.normal(*cache), sizes.normal(*cache), *norms),
        compute(rotary_into_cache_reference),
        lambda backend: compute(ops.bind("rotary_into_cache", backend)),
    )


def swiglu(sizes: Sizes) -> Case:
    """The gated activation."""
    inputs = (sizes.normal(sizes.tokens, 2 * sizes.model.intermediate),)
    return Case(inputs, returned(swiglu_reference), lambda backend: returned(ops.bind("swiglu", backend)))


def invariant_linear(sizes: Sizes) -> Case:
    """A product whose rows do not depend on each other."""
    x_TD, weight_OD = sizes.normal(sizes.tokens, sizes.model.hidden), sizes.normal(1000, sizes.model.hidden)
    return Case(
        (x_TD, weight_OD),
        returned(invariant_linear_reference, None),
        lambda backend: returned(ops.bind("invariant_linear", backend), None),
    )


def quantize_rows(sizes: Sizes) -> Case:
    """Rows as float8 numbers times one factor a row."""
    inputs = (sizes.normal(sizes.tokens, sizes.model.intermediate),)
    return Case(inputs, quantize_rows_reference, lambda backend: ops.bind("quantize_rows", backend))


def dequantized(rows: tuple[Tensor, Tensor], like: Tensor) -> Tensor:
    """What values and scales of quantized rows stand for."""
    values, scales = rows
    return (values.to(scales.dtype) * scales).to(like.dtype)


def add_rms_norm_fp8(sizes: Sizes) -> Case:
    """The sum of residual, which it writes to, and update, with its norm quantized."""

    def compute(function: Callable[..., tuple[Tensor, Tensor]]) -> Compute:
        def run(residual_TD: Tensor, x_TD: Tensor, weight_D: Tensor) -> Tensors:
            return dequantized(function(residual_TD, x_TD, weight_D, EPS), residual_TD), residual_TD

        return run

    return Case(
        add_rms_norm(sizes).inputs,
        compute(add_rms_norm_fp8_reference),
        lambda backend: compute(ops.bind("add_rms_norm_fp8", backend)),
    )


def swiglu_fp8(sizes: Sizes) -> Case:
    """The gated activation, quantized."""

    def compute(function: Callable[..., tuple[Tensor, Tensor]]) -> Compute:
        return lambda gate_up_TG: (dequantized(function(gate_up_TG), gate_up_TG),)

    return Case(
        swiglu(sizes).inputs,
        compute(swiglu_fp8_reference),
        lambda backend: compute(ops.bind("swiglu_fp8", backend)),
    )


CASES: dict[str, Callable[[Sizes], Case]] = {
    made.__name__: made
    for made in (
        tree_attention,
        leaf_attention,
        path_attention,
        merge_states,
        label_logits,
        add_rms_norm,
        rotary_into_cache,
        swiglu,
        invariant_linear,
        quantize_rows,
        add_rms_norm_fp8,
        swiglu_fp8,
    )
}
"""All ops that run on a GPU."""


def copies(inputs: Tensors, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Copies inputs, which a computation may write to, in another dtype where one is given."""
    return [x.to(dtype or x.dtype, copy=True) for x in inputs]


def bits(x: Tensor) -> Tensor:
    """Views numbers of any dtype as bytes."""
    return x.contiguous().view(torch.uint8)


def check(case: Case, backend: str) -> list[str]:
    """Runs a case on a backend -> a line for everything that is wrong."""
    compute = case.bound(backend)
    actual = compute(*copies(case.inputs))
    exact, plain = case.reference(*copies(case.inputs, torch.float64)), case.reference(*copies(case.inputs))
    wrong = []
    for k, (found, wanted, rounded) in enumerate(zip(actual, exact, plain, strict=True)):
        error, own = row_error(found, wanted), row_error(rounded, wanted)
        limit = FACTOR[found.dtype] * (own + torch.finfo(found.dtype).eps / 2)
        if not error <= limit:
            wrong.append(f"output {k} has a row error of {error:.2g}, expected at most {limit:.2g}")
    replayed = replay(compute, case.inputs) if case.inputs[0].is_cuda else compute(*copies(case.inputs))
    if not all(torch.equal(bits(one), bits(other)) for one, other in zip(actual, replayed, strict=True)):
        wrong.append("a replay gives other bits than a launch")
    return wrong


def replay(compute: Compute, inputs: Tensors) -> Tensors:
    """Captures a computation in a CUDA graph, and replays it on fresh copies of the inputs."""
    static = copies(inputs)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        compute(*static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = compute(*static)
    for buffer, values in zip(static, inputs, strict=True):
        buffer.copy_(values)
    graph.replay()
    torch.cuda.synchronize()
    return outputs


def parser() -> argparse.ArgumentParser:
    """Makes what reads the command line."""
    found = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    found.add_argument("ops", choices=CASES, nargs="+", metavar="OP")
    found.add_argument("--backend", help="all that there are unless one is named")
    return found


def main() -> None:
    """Checks the ops of the command line on all their backends, at the sizes of all models."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = parser().parse_args()
    failed = wrong_ops(options.ops, device, options.backend)
    if failed:
        sys.exit(f"wrong: {'; '.join(failed)}")
    print("right")


def wrong_ops(names: Sequence[str], device: torch.device, only: str | None = None) -> list[str]:
    """Checks ops, and prints a line for each check -> those that are wrong."""
    failed = []
    for model in MODELS[device.type]:
        for op in names:
            torch.manual_seed(0)
            case = CASES[op](Sizes.of(model, device))
            for backend in backends_on(op, device):
                if backend == "reference" or only not in (None, backend):
                    continue
                name = f"{op} ({backend}) at the sizes of {model}"
                wrong = check(case, backend)
                print(f"{name}: {', '.join(wrong) or 'right'}", flush=True)
                failed += [f"{name}: {', '.join(wrong)}"] if wrong else []
    return failed


if __name__ == "__main__":
    main()
