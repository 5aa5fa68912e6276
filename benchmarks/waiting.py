"""Do two threads pay for passes of few tokens on a CPU, and how should the threads wait for each other?

    python -m benchmarks.waiting [--tokens 16 64 256 1024] [--busy 0] [--repeats 15] [--alone]

A pass of the dense runner, in float32, of so many tokens, half of them a prompt, on one and on two threads in turn. A
thread of OpenMP that waits for the others spins for a while (libgomp's default), or sleeps at once
(OMP_WAIT_POLICY=passive), or spins only as often as GOMP_SPINCOUNT says; OpenMP reads both once, so that each is
measured in a process of its own, if asked for beside `--busy` other processes that compute without end.

`--alone`, for root: while a pass is timed, its threads run before those of all other processes, which a shared machine
needs for figures of an idle one. Prints medians of wall-clock and of CPU milliseconds a pass, all threads together, and
ends with one line of JSON.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np

POLICIES: dict[str, dict[str, str]] = {
    "spinning": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "1,000 spins": {"GOMP_SPINCOUNT": "1000"},
    "10,000 spins": {"GOMP_SPINCOUNT": "10000"},
    "100,000 spins": {"GOMP_SPINCOUNT": "100000"},
}
# Those of the judge that ships with the package, and of SmolLM2-135M.
SHAPES = {"small judge": (192, 512, 6, 6, 2, 32), "SmolLM2-135M": (576, 1536, 30, 9, 3, 64)}
THREADS = (1, 2)
VOCAB = 512
# A block of passes takes at least this many seconds: more than the grain of the process's clock.
BLOCK_SECONDS = 0.03


def pass_of(num_tokens: int) -> Any:
    """Plans one pass of so many tokens: half of them a prompt, behind it responses of at most 16 tokens."""
    from gram_fast.scoring.tree import TokenTree, plan_round

    rng = np.random.default_rng(0)
    tree = TokenTree([1])
    tree.add_segment(rng.integers(0, VOCAB, num_tokens // 2 - 1).astype(np.int32))
    responses = max(2, num_tokens // 32)
    for first in range(responses):
        rest = rng.integers(0, VOCAB, num_tokens // 2 // responses - 1)
        tree.add_segment(np.array([first, *rest], np.int32))
    leaves = tree.add_sequences(np.array([[0, 1 + response] for response in range(responses)], np.int32), 1)
    (only,) = plan_round(tree, leaves, budget=num_tokens, keep_limit=0, more_rounds=False).passes
    assert only.num_tokens == num_tokens
    return only


def spin_forever() -> NoReturn:
    while True:
        pass


@contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """Has so many other processes keep the cores busy."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=spin_forever, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()


@contextmanager
def alone(is_asked: bool) -> Iterator[None]:
    """Has the kernel run the threads of this process before all others."""
    if not is_asked:
        yield
        return
    set_policy(os.SCHED_FIFO, 1)
    try:
        yield
    finally:
        set_policy(os.SCHED_OTHER, 0)


def set_policy(policy: int, priority: int) -> None:
    for thread in os.listdir("/proc/self/task"):
        os.sched_setscheduler(int(thread), policy, os.sched_param(priority))


def measure(runner: Any, num_tokens: int, repeats: int, is_alone: bool) -> Iterator[dict[str, Any]]:
    """Times one pass of so many tokens -> a row for each number of threads."""
    import torch

    from gram_fast.scoring.key_values import KeyValueStore

    tree_pass, store = pass_of(num_tokens), KeyValueStore()
    store.reserve(tree_pass.budget)
    wall: dict[int, list[float]] = {threads: [] for threads in THREADS}
    cpu: dict[int, list[float]] = {threads: [] for threads in THREADS}
    for repeat in range(repeats + 1):
        for threads in THREADS:
            torch.set_num_threads(threads)
            with alone(is_alone):
                runner.forward(tree_pass, store)
                started, cpu_started, passes = time.perf_counter(), time.process_time(), 0
                while (elapsed := time.perf_counter() - started) < BLOCK_SECONDS or not passes:
                    runner.forward(tree_pass, store)
                    passes += 1
                used = time.process_time() - cpu_started
            torch.set_num_threads(1)
            if repeat:  # the first block warms up
                wall[threads].append(elapsed / passes)
                cpu[threads].append(used / passes)
    for threads in THREADS:
        yield {
            "tokens": num_tokens,
            "threads": threads,
            "ms": 1e3 * statistics.median(wall[threads]),
            "cpu_ms": 1e3 * statistics.median(cpu[threads]),
        }


def measure_policy(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures all passes in this process -> the rows of the record."""
    import tempfile

    import torch

    from benchmarks.random_judge import CPU, ModelSizes, random_model
    from gram_fast.models.dense.runner import DenseRunner
    from gram_fast.models.dense.weights import read_dense_model

    torch.set_num_threads(1)  # until a pass is timed: on busy cores two that spin take minutes to make a model
    rows = []
    for shape, sizes in SHAPES.items():
        model = random_model(ModelSizes(*sizes), vocab_size=VOCAB)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            dense = read_dense_model(folder, model.config, (5, 7), CPU, torch.float32)
        runner = DenseRunner(dense, model.config, "auto")
        with busy_cores(arguments.busy):
            for num_tokens in arguments.tokens:
                found = measure(runner, num_tokens, arguments.repeats, arguments.alone)
                rows += [{"shape": shape, **row} for row in found]
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Prints a line for each pass, with wall-clock and CPU milliseconds on one and on two threads."""
    for row in rows:
        if row["threads"] == THREADS[0]:
            print(f"{row['policy']:>14}, {row['shape']}, {row['tokens']:>5} tokens:", end="")
        end = "\n" if row["threads"] == THREADS[-1] else ";"
        print(f"  {row['threads']} threads {row['ms']:8.2f} ms, {row['cpu_ms']:8.2f} of the CPU", end=end, flush=True)


def main() -> None:
    """Measures every policy in a process of its own, and prints what they found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--policy", choices=POLICIES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.policy:
        print(json.dumps(measure_policy(arguments)))
        return
    rows: list[dict[str, Any]] = []
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    for policy, variables in POLICIES.items():
        command = [sys.executable, "-m", "benchmarks.waiting", *sys.argv[1:], "--policy", policy]
        done = subprocess.run(command, env={**kept, **variables}, stdout=subprocess.PIPE, text=True, check=True)
        found = [{"policy": policy, **row} for row in json.loads(done.stdout)]
        show(found)
        rows += found
    from benchmarks.environment import environment

    asked = {name: getattr(arguments, name) for name in ("repeats", "busy", "alone")}
    record = {"benchmark": "waiting", **asked, "load_average": os.getloadavg()[0]}
    print(json.dumps({**environment(), **record, "rows": rows}))


if __name__ == "__main__":
    main()
