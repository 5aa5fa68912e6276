"""How fast are the kernels on a CUDA GPU, against its own limits and against other implementations?

    python -m benchmarks.kernel_speed.run [--data FILE] [--output FILE]

Measures attention over forests (shapes.py) beside every rival that is installed (rivals.py), then attention of the
leaves' last tokens and the memory-bound ops (ops.py). FILE is what benchmarks/groups.py reads; without --data, the
forest of real responses is left out.

Every time is the median of launches replayed from a CUDA graph, with the caches flushed before each. TFLOP/s count
4 * E * H operations for every query and key that it sees, also for a rival that computes more. The GPU's limits, a
bfloat16 matrix product and a copy, are measured in the same run. Ours is checked against float64 on a sample of tokens,
a rival against ours. Ends with one line of JSON, which --output also keeps in a file while it grows.

Not called kernels.py: `import kernels` anywhere would find it, and transformers does that.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.environment import environment
from benchmarks.kernel_speed.ops import OpCase, op_cases
from benchmarks.kernel_speed.rivals import RIVALS, Problem, random_problem, tree_attention
from benchmarks.kernel_speed.shapes import QWEN3_1_7B, QWEN3_8B, Forest, Heads, attention_flops, forests, leaf_bytes
from gram_fast import ops
from gram_fast.errors import one_line
from gram_fast.ops.backends import op_module

Row = dict[str, Any]
OURS = "ours, triton"
FAILED = "FAILED: "
SAMPLE = 64
# Of the norm of one head's output. Rounding weights and output to bfloat16 costs 0.003 at most; a key too few, where a
# query sees 1,700, costs 0.015 at least in the worst of eight heads (random inputs, head width 128).
TOLERANCE = 0.01


def visible_keys(subtree_ends: NDArray[np.int64], token: int) -> Tensor:
    """Lists the packed tokens that one token sees: itself and all above it on its path."""
    return torch.from_numpy(np.flatnonzero(subtree_ends[: token + 1] > token))


def exact_rows(problem: Problem, tokens: Sequence[int]) -> Tensor:
    """Computes attention of some tokens in float64 -> [N, H, E], from the tree, without the tables of kernels."""
    found = []
    for token in tokens:
        keys = visible_keys(problem.forest.subtree_ends, token).to(problem.device)
        group = problem.heads.group
        k_XHE, v_XHE = (x[keys].double().repeat_interleave(group, dim=1) for x in (problem.k, problem.v))
        weights_HX = (torch.einsum("he,xhe->hx", problem.q[token].double(), k_XHE) * problem.scale).softmax(dim=-1)
        found.append(torch.einsum("hx,xhe->he", weights_HX, v_XHE))
    return torch.stack(found)


def row_error(actual: Tensor, expected: Tensor) -> float:
    """Finds the largest error of a head's output [.., E], relative to its norm. NaN stays NaN."""
    difference = torch.linalg.vector_norm(actual.double() - expected.double(), dim=-1)
    return float((difference / torch.linalg.vector_norm(expected.double(), dim=-1)).max())


def error_against(out_XHE: Tensor, rows_X: Tensor | None, expected_THE: Tensor, chunk: int = 8192) -> float:
    """Finds the `row_error` of a rival, whose rows are these tokens of ours, in chunks that fit into memory."""
    if rows_X is None:
        rows_X = torch.arange(len(expected_THE), device=expected_THE.device)
    if len(out_XHE) != len(rows_X):
        return float("nan")
    errors = []
    for first in range(0, len(rows_X), chunk):
        rows = rows_X[first : first + chunk]
        errors.append(row_error(out_XHE[first : first + chunk][rows >= 0], expected_THE[rows[rows >= 0]]))
    return float(np.max(errors))


def is_right(error: float) -> bool:
    """Whether an error is within tolerance; NaN is not."""
    return error <= TOLERANCE


def sample_of(count: int) -> list[int]:
    """Picks up to SAMPLE numbers below `count`, evenly, with the first and the last."""
    return sorted({int(number) for number in np.linspace(0, count - 1, min(count, SAMPLE))})


def repeats_for(seconds: float, total: float = 0.25) -> int:
    """Counts the launches that take a quarter of a second: 5 at least, 100 at most."""
    return min(max(int(total / seconds), 5), 100)


class Clock:
    """Times launches on the current CUDA device."""

    def __init__(self) -> None:
        # Several times any L2.
        self._flush = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")

    def seconds(self, launch: Callable[[], Any]) -> float:
        """Measures a launch: the median with warm code and cold caches, without the host's time."""
        replay = self._captured(launch)
        first = self._times(replay, 2)[-1]
        return statistics.median(self._times(replay, repeats_for(first)))

    def _times(self, launch: Callable[[], Any], count: int) -> list[float]:
        """Measures the seconds of `count` launches, each with cold caches."""
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]  # type: ignore[no-untyped-call]
        for start, end in events:
            self._flush.zero_()
            start.record()
            launch()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in events]

    def _captured(self, launch: Callable[[], Any]) -> Callable[[], Any]:
        """Captures a launch in a CUDA graph -> what replays it."""
        torch.cuda.empty_cache()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            launch()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launch()
        return graph.replay


def ceilings(clock: Clock) -> dict[str, float]:
    """Measures the GPU's limits: TFLOP/s of a bfloat16 matrix product, GB/s read and written by a copy."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = clock.seconds(lambda: a @ b)
    source = torch.randint(256, (2 * 2**30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = clock.seconds(lambda: target.copy_(source))
    return {"tflops": 2 * 8192**3 / product / 1e12, "gbytes": 2 * source.numel() / copy / 1e9}


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
        torch.cuda.empty_cache()


def measure_attention(problem: Problem, clock: Clock) -> list[Row]:
    """Measures attention of all tokens: ours, then every rival that gives the same."""
    tokens = sample_of(problem.forest.num_tokens)
    run = tree_attention(problem)

    def ours() -> Row:
        error = row_error(run.launch()[tokens], exact_rows(problem, tokens))
        if not is_right(error):
            raise ValueError(f"row error {error:.2g}")
        return attention_row(problem, OURS, clock.seconds(run.launch), error)

    first = guarded("tree_attention", OURS, ours, FAILED)
    if "problem" in first:
        return [first]
    expected_THE = run.launch()

    def rival(name: str) -> Row:
        made = RIVALS[name](problem)
        error = error_against(made.flatten(made.launch()), made.rows, expected_THE)
        if not is_right(error):
            raise ValueError(f"differs from ours, row error {error:.2g}")
        return attention_row(problem, name, clock.seconds(made.launch), error)

    return [first, *(guarded("tree_attention", name, partial(rival, name)) for name in RIVALS)]


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

    backends = [name for name in reversed(ops.BACKENDS["leaf_attention"]) if name != "reference"]
    return [guarded("leaf_attention", backend, partial(measure, backend), FAILED) for backend in backends]


def bytes_row(op: str, name: str, num_bytes: int, seconds: float) -> Row:
    """Makes the row of a memory-bound op."""
    return {"op": op, "name": name, "bytes": num_bytes, "seconds": seconds, "gbytes": num_bytes / seconds / 1e9}


def measure_op(case: OpCase, device: torch.device, clock: Clock) -> list[Row]:
    """Measures an op on every backend, first the one that "auto" takes."""
    run = case.prepare(device, torch.bfloat16)

    def measure(backend: str) -> Row:
        return bytes_row(case.op, backend, case.num_bytes, clock.seconds(partial(run, backend)))

    return [guarded(case.op, name, partial(measure, name), FAILED) for name in backends_on(case.op, device)]


def backends_on(op: str, device: torch.device) -> list[str]:
    """Backends that an op has for a device, first the one that "auto" takes; one that cannot run there is a failure."""
    backends = op_module(op).BACKENDS
    return [name for name in reversed(backends.names) if device.type == "cpu" or name not in backends.cpu_only]


def best_rival(rows: Sequence[Row]) -> float | None:
    """Divides the time of the fastest rival by that of our tree attention; None with nothing to compare."""
    times = {row["name"]: row["seconds"] for row in rows if row["op"] == "tree_attention" and "seconds" in row}
    ours = times.pop(OURS, None)
    return min(times.values()) / ours if ours and times else None


def results_table(title: str, rows: Sequence[Row], ceiling: dict[str, float]) -> Table:
    """Makes a table of one line for each row, with its time as a multiple of that of the op's first line."""
    table = Table(title=title, title_justify="left")
    for column in (
        "op",
        "by",
        "µs",
        "TFLOP/s",
        "GB/s",
        "of ceiling",
        "times the first",
        "row error",
        "not timed because",
    ):
        table.add_column(column, justify="left" if column in ("op", "by", "not timed because") else "right")
    first: dict[str, float] = {}
    for row in rows:
        if "problem" in row:
            table.add_row(row["op"], row["name"], *[""] * 6, row["problem"])
            continue
        rate = "tflops" if "tflops" in row else "gbytes"
        table.add_row(
            row["op"],
            row["name"],
            f"{row['seconds'] * 1e6:,.1f}",
            *(f"{row[unit]:,.0f}" if unit == rate else "" for unit in ("tflops", "gbytes")),
            f"{row[rate] / ceiling[rate]:.0%}",
            f"{row['seconds'] / first.setdefault(row['op'], row['seconds']):.2f}",
            f"{row['error']:.1e}" if "error" in row else "",
            "",
        )
    return table


class Report:
    """Prints tables as they come, and keeps the record on disk up to date in case the time runs out."""

    def __init__(self, record: Row, output: Path | None, console: Console) -> None:
        self.record = record | {"rows": []}
        self._output, self._console = output, console

    def add(self, title: str, rows: Sequence[Row]) -> None:
        """Prints the rows of one shape, and adds them to the record."""
        self._console.print(results_table(title, rows, self.record["ceilings"]))
        if (ratio := best_rival(rows)) is not None:
            self._console.print(f"the best rival takes {ratio:.2f} times as long as ours\n")
        self.record["rows"] += [{"shape": title, **row} for row in rows]
        if self._output:
            self._output.write_text(json.dumps(self.record) + "\n", "utf-8")

    @property
    def has_failed(self) -> bool:
        """Whether a kernel of ours raised or was wrong."""
        return any(row.get("problem", "").startswith(FAILED) for row in self.record["rows"])


def title_of(problem: Problem) -> str:
    """Describes a problem in one line."""
    forest, heads = problem.forest, problem.heads
    flops = attention_flops(forest.num_scores, heads)
    return (
        f"{forest.name}; heads of {heads.model} ({heads.num_heads}/{heads.num_kv_heads}, {heads.width}); "
        f"{forest.num_tokens:,} tokens, {len(forest.paths):,} leaves, {flops / 1e12:.2f} TFLOP"
    )


def main() -> None:
    """Measures everything, and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/kernel_speed/run.py needs a CUDA GPU, and torch sees none")
    console, clock, device = Console(width=180), Clock(), torch.device("cuda")
    found = ceilings(clock)
    console.print(f"ceilings: {found['tflops']:,.0f} TFLOP/s, {found['gbytes']:,.0f} GB/s")
    report = Report(environment() | {"benchmark": "kernel_speed", "ceilings": found}, arguments.output, console)
    if arguments.data is None:
        console.print("no --data: the forest of real responses is left out")
    measured = forests(arguments.data)

    def attention(forest: Forest, heads: Heads) -> None:
        problem = random_problem(forest, heads, device, torch.bfloat16)
        report.add(title_of(problem), [*measure_attention(problem, clock), *measure_leaves(problem, clock)])

    for forest in measured:
        attention(forest, QWEN3_8B)
    for tokens in (16384, 256):
        for case in op_cases(QWEN3_8B, 4096, 12288, tokens):
            report.add(f"{case.op}: {case.shape}", measure_op(case, device, clock))
    # The smaller model last: its forests are the same.
    for forest in measured[:2]:
        attention(forest, QWEN3_1_7B)
    print(json.dumps(report.record))
    if report.has_failed:
        sys.exit("a kernel of ours failed")


if __name__ == "__main__":
    main()
