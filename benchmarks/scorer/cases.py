"""Times contenders on workloads for benchmarks/scorer/run.py, each within its share of the time that is left."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np
import torch

from benchmarks.scorer.report import Row
from benchmarks.scorer.rivals import TextPair
from benchmarks.scorer.shapes import Workload
from benchmarks.timing import timed
from gram_fast import ForwardStats
from gram_fast.comparing.orders import shown

Preferences = dict[TextPair, float]
"""P(i better than j) of pairs."""


@dataclass(frozen=True)
class Measured:
    """The measurement of one contender on one workload."""

    seconds: float
    runs: int
    size: int | None
    """Rows of a batch or tokens of a pass."""
    tokens: int
    extrapolated: bool
    peak_bytes: int | None
    preferences: Preferences


@dataclass
class Case:
    """A workload and what was measured of it so far."""

    workload: Workload
    asked: list[TextPair] = field(default_factory=list)
    stats: ForwardStats | None = None
    plain: Preferences = field(default_factory=dict)
    matrix_flops: float | None = None
    """FLOP/s of the model's fastest product just before or after ours ran."""
    measured: dict[str, Measured] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """The preferences that one run gave, and the tokens that it took."""

    preferences: Preferences
    tokens: int
    stats: ForwardStats | None = None


@dataclass
class Contender:
    """One way to get from text to preferences: the judge with some options, or a rival."""

    name: str
    answer: Callable[[Workload, Sequence[TextPair], int], Answer]
    sizes: Callable[[Workload], list[int]]
    comes_first: bool = False
    """Whether it gets all its repeats while there is time, whatever its share."""
    is_scaled: bool = False
    """Whether it may run a part of the pairs once, its time scaled up to all of them."""
    is_elsewhere: bool = False
    """Whether it runs in a process of its own, whose memory torch does not see here."""
    seconds_a_forward: float | None = None


class Allowance:
    """Divides the time that is left among the measurements to come, in proportion to their forwards."""

    def __init__(self, end: float, forwards: int) -> None:
        """`end`: when everything must be over, by time.perf_counter; `forwards`: those of all measurements."""
        self._end, self._to_come = end, forwards

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self._end - time.perf_counter()

    def next_share(self, forwards: int) -> float:
        """Takes the share of the next measurement, in seconds: at least one, so that short ones can be repeated."""
        share = self.left * forwards / self._to_come
        self._to_come -= forwards
        return max(share, 1.0)


def warm_up(contender: Contender, case: Case, size: int) -> float:
    """Measures the seconds of one forward, after a run that compiles and allocates."""
    for _ in range(2):
        seconds, _ = timed(lambda: contender.answer(case.workload.smallest, case.asked[:1], size))
    return seconds / len(shown(0, 1, case.workload.orders))


def plan(contender: Contender, case: Case, share: float, left: float) -> tuple[list[int], list[TextPair]]:
    """Chooses the sizes and the pairs to run: all, or what fits into the contender's share of the time.

    Where not all sizes fit, the one that is fastest on a sample is run; where not all pairs fit, a contender that is
    scaled runs the first ones. Raises TimeoutError where the run would not end in the time that is left.
    """
    if left <= 0:
        raise TimeoutError("no time is left")
    sizes, pairs = contender.sizes(case.workload), case.asked
    if contender.seconds_a_forward is None:
        contender.seconds_a_forward = warm_up(contender, case, sizes[0])
    once = contender.seconds_a_forward * case.workload.forwards
    if contender.is_scaled and once > share:
        pairs = pairs[: max(1, int(len(pairs) * share / once))]
        once *= len(pairs) / len(case.asked)
    if once > left:
        raise TimeoutError(f"would take about {once:.3g} s, {left:.3g} s are left")
    if len(sizes) > 1 and once * len(sizes) > share:
        sizes = [fastest_size(contender, case, sizes, share / (2 * once * len(sizes)))]
    return sizes, pairs


def fastest_size(contender: Contender, case: Case, sizes: list[int], part: float) -> int:
    """Finds the size that is fastest on an evenly spread part (0 to 1) of the pairs, enough for the largest batch."""
    count = max(int(part * len(case.asked)), max(sizes))
    sample = case.asked[:: max(1, len(case.asked) // count)]
    return min(sizes, key=lambda size: timed(partial(contender.answer, case.workload, sample, size))[0])


def runs_of(
    run: Callable[[int], Answer], sizes: list[int], repeats: int, share: float
) -> tuple[int, list[float], Answer]:
    """Runs every size once and the fastest again while there is time -> that size, its seconds, its last answer."""
    first = {size: timed(partial(run, size)) for size in sizes}
    size = min(first, key=lambda size: first[size][0])
    times, answer = [first[size][0]], first[size][1]
    spent = sum(seconds for seconds, _ in first.values())
    while len(times) < repeats and spent + times[-1] < share:
        seconds, answer = timed(partial(run, size))
        times.append(seconds)
        spent += seconds
    return size, times, answer


def measure(contender: Contender, case: Case, allowance: Allowance, repeats: int) -> None:
    """Measures a contender on a case. The first one is ours: its pairs are what all others are asked."""
    share, left = allowance.next_share(case.workload.forwards), allowance.left
    share = left if contender.comes_first else share
    sizes, pairs = plan(contender, case, share, left)
    on_gpu = torch.cuda.is_available() and not contender.is_elsewhere
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    run = partial(contender.answer, case.workload, pairs)
    size, times, answer = runs_of(run, sizes, 1 if contender.is_scaled else repeats, share)
    if case.stats is None:
        case.asked, case.stats = list(answer.preferences), answer.stats
    is_part = contender.is_scaled and len(pairs) < len(case.asked)
    scale = case.stats.tokens_unshared / answer.tokens if is_part and case.stats else 1.0
    case.measured[contender.name] = Measured(
        seconds=statistics.median(times) * scale,
        runs=len(times),
        size=size or None,
        tokens=round(answer.tokens * scale),
        extrapolated=is_part,
        peak_bytes=torch.cuda.max_memory_allocated() if on_gpu else None,
        preferences=answer.preferences,
    )
    contender.seconds_a_forward = case.measured[contender.name].seconds / case.workload.forwards


def rows_of(case: Case, flops: int, ours: str) -> list[Row]:
    """Makes the record's rows of a workload; `ours` is the contender that the others are compared with."""
    if case.stats is None or case.matrix_flops is None:
        return []
    stats, workload = case.stats, case.workload
    floor = min(stats.tokens_tree, stats.tokens_computed) * flops / case.matrix_flops
    common: Row = {
        "workload": workload.name,
        "strategy": workload.strategy,
        "orders": workload.orders,
        "prompts": len(workload.prompts),
        "n": workload.n,
        "forwards": stats.comparisons,
        "tokens_unshared": stats.tokens_unshared,
        "tokens_tree": stats.tokens_tree,
        "floor_seconds": floor,
        "matrix_flops": case.matrix_flops,
        "spread": max(case.plain.values()) - min(case.plain.values()) if case.plain else None,
    }
    rows = []
    for name, measured in case.measured.items():
        row = {key: value for key, value in asdict(measured).items() if key != "preferences"}
        differences = [
            abs(p - measured.preferences[key]) for key, p in case.plain.items() if key in measured.preferences
        ]
        rows.append(
            {
                **common,
                "name": name,
                **row,
                "share_of_floor": floor / measured.seconds,
                "times_ours": measured.seconds / case.measured[ours].seconds,
                "difference": float(np.max(differences)) if differences else None,
                "checked": len(differences),
            }
        )
    return rows
