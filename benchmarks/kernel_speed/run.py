"""How fast are the kernels on a CUDA GPU, against its own limits and against other implementations?

    python -m benchmarks.kernel_speed.run [--forests NAME ...] [--heads MODEL ...] [--rivals NAME ...]
        [--shapes MxNxWARPSxSTAGES ...] [--data FILE] [--output FILE]

Measures attention over forests (shapes.py) beside every rival that is installed (rivals.py), then attention of the
leaves' last tokens and the memory-bound ops (ops.py), at the sizes of each model of --heads. FlexAttention, which is
compiled for every forest, comes last. --shapes are launch shapes of our Triton kernel beside the one that it takes:
query rows and keys of a block, warps, stages. FILE is what benchmarks/groups.py reads; without --data, the forest of
real responses is left out.

Every time is the median of launches replayed from a CUDA graph, with the caches flushed before each. TFLOP/s count
4 * E * H operations for every query and key that it sees, also for a rival that computes more. The device's limits, a
bfloat16 matrix product and a copy, are measured in the same run. Ours is checked against float64 on a sample of tokens,
a rival against ours. A backend of ours that raises, is wrong or cannot run there is a failure: it is named at the end,
and the exit code is 1. The last line is JSON, which --output also keeps in a file while it grows.

Without a GPU it runs on the CPU, on a tiny forest: to try the benchmark out, not to measure.

Not called kernels.py: `import kernels` anywhere would find it, and transformers does that.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from rich.console import Console

from benchmarks.environment import environment
from benchmarks.kernel_speed.clock import Clock, ceilings, clock_on
from benchmarks.kernel_speed.exactness import error_against, exact_rows, is_right, row_error, sample_of
from benchmarks.kernel_speed.ops import OpCase, op_cases
from benchmarks.kernel_speed.options import REAL, read_options
from benchmarks.kernel_speed.report import FAILED, OURS, Report, Row
from benchmarks.kernel_speed.rivals import (
    RIVALS,
    SLOW_TO_START,
    Prepared,
    Problem,
    random_problem,
    tree_attention,
    tree_attention_in,
)
from benchmarks.kernel_speed.shapes import (
    FORESTS,
    Forest,
    attention_flops,
    heads_of,
    leaf_bytes,
    real_round_robin,
)
from benchmarks.random_judge import SHAPES
from gram_fast import ops
from gram_fast.errors import one_line
from gram_fast.kernels.compilation import LaunchShape
from gram_fast.ops.backends import is_interpreted, op_module

TOKENS = {"cuda": (16384, 256), "cpu": (8,)}
"""Of a pass, for the memory-bound ops, by kind of device."""


def attention_row(problem: Problem, name: str, seconds: float, error: float) -> Row:
    """Makes the row of one way to compute attention of all tokens."""
    flops = attention_flops(problem.forest.num_scores, problem.heads)
    return {"op": "tree_attention", "name": name, "error": error, "seconds": seconds, "tflops": flops / seconds / 1e12}


def problem_row(op: str, name: str, why: str) -> Row:
    """Makes the row of what was not timed, with the reason."""
    return {"op": op, "name": name, "problem": why}


def guarded(op: str, name: str, measure: Callable[[], Row], prefix: str = "") -> Row:
    """Makes one measurement, or a row that says why there is none, so that the others go on."""
    try:
        return measure()
    except Exception as error:
        return problem_row(op, name, prefix + one_line(error))
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measure_ours(problem: Problem, clock: Clock, shapes: Sequence[LaunchShape]) -> Iterator[Row]:
    """Measures our attention of all tokens, as it is launched and in other launch shapes."""
    tokens = sample_of(problem.forest.num_tokens)
    exact_NHE = exact_rows(problem, tokens)

    def measure(name: str, prepare: Callable[[Problem], Prepared]) -> Row:
        run = prepare(problem)
        error = row_error(run.launch()[tokens], exact_NHE)
        if not is_right(error):
            raise ValueError(f"row error {error:.2g}")
        return attention_row(problem, name, clock.seconds(run.launch), error)

    ways: dict[str, Callable[[Problem], Prepared]] = {OURS: tree_attention}
    for shape in shapes:
        name = f"{OURS}, {shape.block_m}x{shape.block_n}x{shape.num_warps}x{shape.num_stages}"
        ways[name] = partial(tree_attention_in, shape=shape)
    for name, way in ways.items():
        yield guarded("tree_attention", name, partial(measure, name, way), FAILED)


def measure_rivals(problem: Problem, clock: Clock, names: Sequence[str]) -> Iterator[Row]:
    """Measures rivals that give the same as our attention of all tokens, which must be right."""
    expected_THE = tree_attention(problem).launch()

    def measure(name: str) -> Row:
        made = RIVALS[name](problem)
        error = error_against(made.flatten(made.launch()), made.rows, expected_THE)
        if not is_right(error):
            raise ValueError(f"differs from ours, row error {error:.2g}")
        return attention_row(problem, name, clock.seconds(made.launch), error)

    for name in names:
        yield guarded("tree_attention", name, partial(measure, name))


def measure_leaves(problem: Problem, clock: Clock) -> list[Row]:
    """Measures attention of the leaves' last tokens, backend by backend."""
    spans, leaf_rows = ops.Spans(*problem.forest.tables), problem.forest.tree_pass.leaf_rows
    q_LHE = problem.q[leaf_rows.to(problem.device)]
    sample = sample_of(len(leaf_rows))
    exact_NHE = exact_rows(problem, leaf_rows[sample].tolist())

    def measure(backend: str) -> Row:
        tables, attend = (
            ops.LeafTables.of(spans, leaf_rows, backend, problem.device),
            ops.bind("leaf_attention", backend),
        )

        def launch() -> Any:
            return attend(q_LHE, problem.k, problem.v, tables, problem.scale)

        error = row_error(launch()[sample], exact_NHE)
        if not is_right(error):
            raise ValueError(f"row error {error:.2g}")
        num_bytes = leaf_bytes(problem.forest, problem.heads)
        return bytes_row("leaf_attention", backend, num_bytes, clock.seconds(launch)) | {"error": error}

    backends = [name for name in backends_on("leaf_attention", problem.device) if name != "reference"]
    return [guarded("leaf_attention", backend, partial(measure, backend), FAILED) for backend in backends]


def bytes_row(op: str, name: str, num_bytes: int, seconds: float) -> Row:
    """Makes the row of a memory-bound op."""
    return {"op": op, "name": name, "bytes": num_bytes, "seconds": seconds, "gbytes": num_bytes / seconds / 1e9}


def measure_op(case: OpCase, device: torch.device, dtype: torch.dtype, clock: Clock) -> list[Row]:
    """Measures an op on every backend, first the one that "auto" takes."""
    run = case.prepare(device, dtype)

    def measure(backend: str) -> Row:
        return bytes_row(case.op, backend, case.num_bytes, clock.seconds(partial(run, backend)))

    return [guarded(case.op, name, partial(measure, name), FAILED) for name in backends_on(case.op, device)]


def backends_on(op: str, device: torch.device) -> list[str]:
    """Backends that an op has for a device, first the one that "auto" takes; one that cannot run there is a failure."""
    backends = op_module(op).BACKENDS
    left_out = () if is_interpreted() else ("triton",)
    if device.type == "cuda":
        left_out = backends.cpu_only
    return [name for name in reversed(backends.names) if name not in left_out]


def title_of(problem: Problem) -> str:
    """Describes a problem in one line."""
    forest, heads = problem.forest, problem.heads
    flops = attention_flops(forest.num_scores, heads)
    return (
        f"{forest.name}; heads of {heads.model} ({heads.num_heads}/{heads.num_kv_heads}, {heads.width}); "
        f"{forest.num_tokens:,} tokens, {len(forest.paths):,} leaves, {flops / 1e12:.2f} TFLOP"
    )


class BenchmarkRun:
    """Measures everything that was asked for on one device, and reports it as it comes."""

    def __init__(self, device: torch.device, clock: Clock, report: Report, rivals: Sequence[str]) -> None:
        self._device, self._clock, self._report = device, clock, report
        # What the interpreter of Triton computes on a CPU, too.
        self._dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
        self._first = [name for name in rivals if name not in SLOW_TO_START]
        self._last = [name for name in rivals if name in SLOW_TO_START]

    def attention(self, forest: Forest, model: str, shapes: Sequence[LaunchShape]) -> None:
        """Measures attention of all tokens and of the last ones."""
        problem = self._problem(forest, model)
        title = title_of(problem)
        self._report.add(title, measure_ours(problem, self._clock, shapes))
        self._report.add(title, measure_leaves(problem, self._clock))
        if title in self._report.measured:
            self._report.add(title, measure_rivals(problem, self._clock, self._first))

    def memory_bound_ops(self, model: str) -> None:
        """Measures the ops that are bound by memory."""
        sizes = SHAPES[model]
        for tokens in TOKENS[self._device.type]:
            for case in op_cases(heads_of(model), sizes.hidden, sizes.intermediate, tokens):
                title = f"{case.op}: {case.shape}"
                self._report.add(title, measure_op(case, self._device, self._dtype, self._clock))

    def slow_rivals(self, forest: Forest, model: str) -> None:
        """Measures the rivals that are slow to start, where ours is right."""
        problem = self._problem(forest, model)
        if self._last and title_of(problem) in self._report.measured:
            self._report.add(title_of(problem), measure_rivals(problem, self._clock, self._last))

    def everything(self, options: argparse.Namespace) -> None:
        """Measures what was asked for, what matters most first."""
        forests = [real_round_robin(options.data, 16) if name == REAL else FORESTS[name]() for name in options.forests]
        for model in options.heads:
            for forest in forests:
                self.attention(forest, model, options.shapes)
        for model in options.heads:
            self.memory_bound_ops(model)
        for model in options.heads:
            for forest in forests:
                self.slow_rivals(forest, model)

    def _problem(self, forest: Forest, model: str) -> Problem:
        return random_problem(forest, heads_of(model), self._device, self._dtype)


def main() -> None:
    """Measures everything, and prints the results."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = read_options(device, __doc__.partition("\n")[0])
    console, clock = Console(width=180), clock_on(device)
    found = ceilings(clock, device)
    console.print(f"ceilings: {found['tflops']:,.3g} TFLOP/s, {found['gbytes']:,.0f} GB/s")
    report = Report(environment() | {"benchmark": "kernel_speed", "ceilings": found}, options.output, console)
    run = BenchmarkRun(device, clock, report, options.rivals)
    try:
        run.everything(options)
    except KeyboardInterrupt:
        console.print("stopped before the end")
    console.print("; ".join(report.headlines), soft_wrap=True)
    print(json.dumps(report.record))
    if report.failed:
        sys.exit(f"{len(report.failed)} kernels of ours failed: {', '.join(report.failed)}")


if __name__ == "__main__":
    main()
