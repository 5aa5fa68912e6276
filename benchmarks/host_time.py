"""How long does the host need for one pass of the dense runner, matrix products and attention taken out?

    python -m benchmarks.host_time [--layers 8] [--spans 16 64] [--repeats 500]

On a GPU the host launches kernels and goes on; a pass cannot be faster than the host launches it. This measures that
part without a GPU: a dense model of random weights, small enough that computing is next to nothing, runs the same pass
again and again on one CPU thread. Its matrix products and tree attention are replaced: after a first real pass they
return the tensors that this pass got. The other compiled ops (norms, rotation, activation, attention of the leaves,
label logits) run as they are.

A pass holds one prompt and as many responses as it has spans, the first of which continues the prompt's own span.
Prints the median and the minimum of the process's CPU time, a pass and a layer, and the number of Python functions that
a pass calls; the functions that stand in for the replaced kernels are not counted. Ends with one line of JSON.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.environment import environment
from benchmarks.random_judge import CPU, ModelSizes, random_model
from gram_fast.models.dense.model import Operations
from gram_fast.models.dense.runner import DenseRunner
from gram_fast.models.dense.weights import read_dense_model
from gram_fast.scoring.key_values import KeyValueStore
from gram_fast.scoring.tree import TokenTree, TreePass, plan_round

LABELS = (5, 7)
VOCAB = 512
PROMPT_TOKENS, RESPONSE_TOKENS = 24, 3


def tiny_runner(layers: int) -> DenseRunner:
    """Makes a dense runner on the CPU over a model of random weights with that many layers."""
    model = random_model(ModelSizes(64, 128, layers, 4, 2, 16), vocab_size=VOCAB)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        dense = read_dense_model(folder, model.config, LABELS, CPU, torch.float32)
    return DenseRunner(dense, model.config, "auto")


def pass_of(num_spans: int) -> TreePass:
    """Plans one pass: a prompt and `num_spans` responses, no two of which begin with the same token."""
    rng = np.random.default_rng(0)
    tree = TokenTree([1])
    tree.add_segment(rng.integers(0, VOCAB, PROMPT_TOKENS).astype(np.int32))
    for first in range(num_spans):
        tree.add_segment(np.array([first, *rng.integers(0, VOCAB, RESPONSE_TOKENS - 1)], np.int32))
    leaves = tree.add_sequences(np.array([[0, 1 + response] for response in range(num_spans)], np.int32), 1)
    budget = 1 + PROMPT_TOKENS + RESPONSE_TOKENS * num_spans
    (only,) = plan_round(tree, leaves, budget=budget, keep_limit=0, more_rounds=False).passes
    assert len(only.spans.spans_N2) == num_spans
    return only


class Replay:
    """Stands in for a function: records what it returns in one pass, then returns that again, call by call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._recorded: list[Any] = []
        self._replayed: Iterator[Any] | None = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Returns the recorded result of this call, or the function's own while recording."""
        if self._replayed is not None:
            return next(self._replayed)
        self._recorded.append(self._function(*arguments, **options))
        return self._recorded[-1]

    def start(self) -> None:
        """Ends the recording: a pass of the same calls gets the same results from now on."""
        self._replayed = itertools.cycle(self._recorded)


def with_product(operations: Operations, project: Callable[..., Any]) -> Operations:
    """The operations with another product, the one for the residual stream included."""
    return replace(operations, project=project, project_onto=lambda _, *of_product: project(*of_product))


@contextmanager
def without_products(runner: DenseRunner, run: Callable[[], Any]) -> Iterator[None]:
    """Runs once, then replaces the runner's matrix products and tree attention by what they returned."""
    operations = runner._operations
    project, attend = Replay(operations.project), Replay(runner._attention._attend)
    with (
        mock.patch.object(runner, "_operations", with_product(operations, project)),
        mock.patch.object(runner._attention, "_attend", attend),
    ):
        run()
        project.start()
        attend.start()
        yield


def count_calls(run: Callable[[], Any]) -> int:
    """Counts the Python functions that a run calls, itself and stand-ins left out."""
    calls = 0
    left_out = {Replay.__call__.__code__, getattr(run, "__code__", None)}

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code not in left_out

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


def cpu_seconds(run: Callable[[], Any]) -> float:
    """Measures the CPU time of this process during a run."""
    started = time.process_time()
    run()
    return time.process_time() - started


def measure(runner: DenseRunner, num_spans: int, repeats: int) -> dict[str, Any]:
    """Measures one pass of so many spans -> its row of the record."""
    tree_pass, store = pass_of(num_spans), KeyValueStore()
    store.reserve(tree_pass.budget)

    def run() -> None:
        runner.forward(tree_pass, store)

    with without_products(runner, run):
        for _ in range(max(repeats // 10, 1)):
            run()
        seconds = [cpu_seconds(run) for _ in range(repeats)]
        calls = count_calls(run)
    layers = runner.model.shape.num_layers
    median, least = statistics.median(seconds) * 1e6, min(seconds) * 1e6
    return {
        "spans": num_spans,
        "tokens": tree_pass.num_tokens,
        "us_per_pass": median,
        "us_per_pass_min": least,
        "us_per_layer": median / layers,
        "us_per_layer_min": least / layers,
        "python_calls": calls,
    }


def main() -> None:
    """Measures passes of every size asked for, and prints them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--spans", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--repeats", type=int, default=500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runner = tiny_runner(arguments.layers)
    rows = [measure(runner, num_spans, arguments.repeats) for num_spans in arguments.spans]
    print(f"{arguments.layers} layers; median (minimum) of {arguments.repeats} passes")
    for row in rows:
        print(
            f"{row['spans']:>4} spans: {row['us_per_pass']:8.0f} ({row['us_per_pass_min']:.0f}) us a pass, "
            f"{row['us_per_layer']:6.1f} ({row['us_per_layer_min']:.1f}) us a layer, "
            f"{row['python_calls']:,} Python calls a pass"
        )
    record = {"benchmark": "host_time", "layers": arguments.layers, "repeats": arguments.repeats}
    print(json.dumps({**environment(), **record, "threads": torch.get_num_threads(), "rows": rows}))


if __name__ == "__main__":
    main()
