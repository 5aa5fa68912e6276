"""Many clients of all kinds of requests at once: every answer is compared, and memory is read."""

import asyncio
import json
import random
from typing import Any

import psutil

from benchmarks.serving.load import closed_loop
from benchmarks.serving.requests import Request, expected_of, groups_of, mixed, numbers_in
from gram_fast import PairwiseJudge

CLIENTS = 64
# A float32 sum in another order.
TOLERANCE = 1e-4


def soaked(url: str, process: psutil.Process, judge: PairwiseJudge, seconds: float) -> dict[str, Any]:
    """Has many clients ask everything, compares every answer, and reads the memory of the server."""
    groups, memory = groups_of(1), []
    known: dict[str, list[tuple[Request, list[float]]]] = {}

    def check(request: Request, answer: Any) -> None:
        key = json.dumps(request)
        known.setdefault(key, []).append((request, numbers_in(request[0], answer)))
        if sum(len(answers) for answers in known.values()) % 200 == 0:
            memory.append(process.memory_info().rss / 2**20)

    load = asyncio.run(closed_loop(url, CLIENTS, seconds, lambda n: mixed(groups, random.Random(n)), check))
    worst = 0.0
    for answers in known.values():
        (path, body), _ = answers[0]
        expected = expected_of(judge, path, body)
        for _, found in answers:
            assert len(found) == len(expected), "an answer of another request"
            worst = max(worst, *(abs(x - y) for x, y in zip(found, expected, strict=True)))
    assert worst < TOLERANCE, f"an answer that is {worst} from that of a judge in this process"
    return {
        "clients": CLIENTS,
        "requests": len(load.seconds),
        "answers": sum(len(answers) for answers in known.values()),
        "failed": load.failed,
        "refused": load.refused,
        "worst_difference": worst,
        **load.percentiles(),
        "memory_mib": [round(value) for value in memory[:: max(1, len(memory) // 12)]],
    }
