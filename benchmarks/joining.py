"""What do many small calls cost, from threads, from tasks and packed, and rewards that are asked for one by one?

    python -m benchmarks.joining [--prompts 28] [--each 8] [--threads 16] [--repeats 7] [--model FOLDER] [--output FILE]

Calls of one comparison each, `each` of every prompt (sort six numbers), made
- one after another, in one thread;
- from threads, each call with the judge to itself (joining switched off: what it would cost without);
- from threads as they are: calls that wait for the judge at the same time are scored together;
- from as many asyncio tasks, by `asyncio.to_thread`, whose own pool has a few threads more than there are cores;
- by one packed call of `compare_many`.
Then the rewards of a group of `each` responses to every prompt, by one packed call of `judge.rewards`, and by a task a
response that waits at a `Rendezvous`.

Every way is run once a repeat, in turn, so that whatever else the machine does meets all alike. Prints the median and
the least of the process's CPU seconds, the median of the wall time and of what a single call took, and passes of the
model. Ends with one line of JSON, which --output keeps in a file.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.environment import environment
from gram_fast import SMALL_JUDGE, PairwiseJudge, Rendezvous
from gram_fast.comparing.label_comparer import LabelComparer

Row = tuple[str, str, str]
NUMBERS = 6


def rows_of(prompts: int, each: int) -> list[Row]:
    """Makes pairs of distinct responses, `each` to every prompt."""
    rng, rows = random.Random(0), []
    for _ in range(prompts):
        numbers = rng.sample(range(100), NUMBERS)
        for _ in range(each):
            a, b = (", ".join(map(str, rng.sample(numbers, NUMBERS))) for _ in "ab")
            rows.append((f"Sort from smallest to largest: {', '.join(map(str, numbers))}", a, b))
    return rows


class Calls:
    """Makes the same calls in every way, and notes how long each took and how many passes there were."""

    def __init__(self, judge: PairwiseJudge, rows: list[Row], each: int, threads: int) -> None:
        assert isinstance(judge.comparer, LabelComparer)
        self.judge, self.comparer = judge, judge.comparer
        self.rows, self.each, self.threads = rows, each, threads
        self.seconds: list[float] = []
        self.passes = 0

    def compare(self, row: Row) -> None:
        """One small call."""
        started = time.perf_counter()
        self.judge.compare(*row)
        self.seconds.append(time.perf_counter() - started)

    def one_after_another(self) -> None:
        """In this thread."""
        for row in self.rows:
            self.compare(row)

    def from_threads(self) -> None:
        """Calls that wait go together."""
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(self.compare, self.rows))

    def from_threads_apart(self) -> None:
        """Every call has a turn of its own."""
        with mock.patch.object(self.comparer.engine._turns, "_fits", return_value=False):
            self.from_threads()

    def from_tasks(self) -> None:
        """As many at a time as there are threads in the event loop's own pool."""

        async def gather() -> None:
            await asyncio.gather(*(asyncio.to_thread(self.compare, row) for row in self.rows))

        asyncio.run(gather())

    def packed(self) -> None:
        """One call."""
        self.judge.compare_many([prompt for prompt, _, _ in self.rows], [(a, b) for _, a, b in self.rows])

    def rewards(self) -> None:
        """One call for all groups."""
        starts = range(0, len(self.rows), self.each)
        groups = [[a for _, a, _ in self.rows[start : start + self.each]] for start in starts]
        self.judge.rewards([self.rows[start][0] for start in starts], groups)

    def rendezvous(self) -> None:
        """A task a response."""

        async def gather() -> None:
            with Rendezvous(self.judge, size=self.each, timeout=600) as rendezvous:
                waiting = (rendezvous.reward_async(k // self.each, row[0], row[1]) for k, row in enumerate(self.rows))
                await asyncio.gather(*waiting)

        asyncio.run(gather())

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts the passes of the model."""
        runner = self.comparer.runner
        own = runner.forward

        def forward(*given: Any) -> Any:
            self.passes += 1
            return own(*given)

        with mock.patch.object(runner, "forward", forward):
            yield


def measure(judge: PairwiseJudge, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs all ways `repeats` times in turn -> their rows of the record."""
    calls = Calls(judge, rows_of(arguments.prompts, arguments.each), arguments.each, arguments.threads)
    ways: list[Callable[[], None]] = [
        calls.one_after_another,
        calls.from_threads_apart,
        calls.from_threads,
        calls.from_tasks,
        calls.packed,
        calls.rewards,
        calls.rendezvous,
    ]
    cpu: dict[str, list[float]] = {way.__name__: [] for way in ways}
    wall: dict[str, list[float]] = {way.__name__: [] for way in ways}
    of_call: dict[str, list[float]] = {way.__name__: [] for way in ways}
    passes: dict[str, list[int]] = {way.__name__: [] for way in ways}
    calls.one_after_another()  # warms up
    for _ in range(arguments.repeats):
        for way in ways:
            calls.seconds, calls.passes = [], 0
            with calls.counted():
                started, wall_started = time.process_time(), time.perf_counter()
                way()
                cpu[way.__name__].append(time.process_time() - started)
                wall[way.__name__].append(time.perf_counter() - wall_started)
            of_call[way.__name__] += calls.seconds
            passes[way.__name__].append(calls.passes)
    return [
        {
            "way": name,
            "calls": len(of_call[name]) // arguments.repeats or 1,
            "cpu_seconds": statistics.median(cpu[name]),
            "cpu_seconds_min": min(cpu[name]),
            "seconds": statistics.median(wall[name]),
            "ms_per_call": statistics.median(of_call[name]) * 1e3 if of_call[name] else None,
            "passes": statistics.median(passes[name]),
        }
        for name in cpu
    ]


def main() -> None:
    """Measures all ways, and prints them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=28)
    parser.add_argument("--each", type=int, default=8)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--model", default=SMALL_JUDGE)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = measure(PairwiseJudge.from_pretrained(arguments.model), arguments)
    count = arguments.prompts * arguments.each
    print(f"{count} comparisons, or rewards of {arguments.prompts} groups; median of {arguments.repeats} (least)")
    for row in rows:
        of_call = f", {row['ms_per_call']:6.1f} ms a call" if row["ms_per_call"] is not None else ""
        cpu = f"{row['cpu_seconds']:6.2f} ({row['cpu_seconds_min']:.2f}) CPU s"
        print(f"{row['way']:>20}: {cpu}, {row['seconds']:6.2f} s, {row['passes']:5.0f} passes{of_call}")
    settings = {name: getattr(arguments, name) for name in ("prompts", "each", "threads", "repeats")}
    record = {
        **environment(),
        "benchmark": "joining",
        **settings,
        "torch_threads": torch.get_num_threads(),
        "rows": rows,
    }
    line = json.dumps(record)
    print(line)
    if arguments.output:
        arguments.output.write_text(f"{line}\n", "utf-8")


if __name__ == "__main__":
    main()
