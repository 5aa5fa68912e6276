"""Times launches, and measures the limits that they are compared with."""

import statistics
from collections.abc import Callable
from typing import Any, Protocol

import torch

from benchmarks.timing import timed

Launch = Callable[[], Any]


class Clock(Protocol):
    """What times launches on a device."""

    def seconds(self, launch: Launch) -> float:
        """Measures a launch."""
        ...


def clock_on(device: torch.device) -> Clock:
    """Makes the clock of a device."""
    return CudaClock() if device.type == "cuda" else WallClock()


def repeats_for(seconds: float, total: float = 0.25) -> int:
    """Counts the launches that take a quarter of a second: 5 at least, 100 at most."""
    return min(max(int(total / seconds), 5), 100)


class WallClock:
    """Times launches on a CPU, where the benchmark is tried out."""

    def seconds(self, launch: Launch) -> float:
        """Measures a launch once."""
        return timed(launch)[0]


class CudaClock:
    """Times launches on the current CUDA device."""

    def __init__(self) -> None:
        # Several times any L2.
        self._flush = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")

    def seconds(self, launch: Launch) -> float:
        """Measures a launch: the median with warm code and cold caches, without the host's time."""
        replay = self._captured(launch)
        first = self._times(replay, 2)[-1]
        return statistics.median(self._times(replay, repeats_for(first)))

    def _times(self, launch: Launch, count: int) -> list[float]:
        """Measures the seconds of `count` launches, each with cold caches."""
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]  # type: ignore[no-untyped-call]
        for start, end in events:
            self._flush.zero_()
            start.record()
            launch()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in events]

    def _captured(self, launch: Launch) -> Launch:
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


def ceilings(clock: Clock, device: torch.device) -> dict[str, float]:
    """Measures the device's limits: TFLOP/s of a bfloat16 matrix product, GB/s read and written by a copy."""
    size, num_bytes = (8192, 2 * 2**30) if device.type == "cuda" else (256, 2**20)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = clock.seconds(lambda: a @ b)
    source = torch.randint(256, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = clock.seconds(lambda: target.copy_(source))
    return {"tflops": 2 * size**3 / product / 1e12, "gbytes": 2 * num_bytes / copy / 1e9}
