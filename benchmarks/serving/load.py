"""Clients: loops that ask a server, and what came of it."""

import asyncio
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import psutil

from benchmarks.serving.requests import Request
from benchmarks.serving.servers import cpu_seconds

Check = Callable[[Request, Any], None]
"""Is told every answer."""
Requests = Callable[[str, int], Iterator[Request]]
"""What a client asks, by its number, in a row of a measurement, by its name."""
SHARES = (0.5, 1.0, 2.0)
"""Rates of the open loop, of what the closed loop gave."""


class Load:
    """What came of requests."""

    def __init__(self, check: Check | None = None) -> None:
        self.seconds: list[float] = []
        self.tokens = self.comparisons = self.refused = self.failed = 0
        self._check = check

    async def ask(self, client: httpx.AsyncClient, request: Request, due: float) -> None:
        """Sends a request that was due at a time, and notes what it took."""
        path, body = request
        response = await client.post(path, json=body)
        self.seconds.append(time.perf_counter() - due)
        self.refused += response.status_code == 503
        self.failed += response.status_code not in (200, 503)
        if response.status_code != 200:
            return
        answer = response.json()
        self.tokens += answer.get("stats", {}).get("tokens_computed", 0)
        self.comparisons += answer.get("stats", {}).get("comparisons", 0)
        if self._check is not None:
            self._check(request, answer)

    @property
    def answered(self) -> int:
        """Requests that had an answer."""
        return len(self.seconds) - self.refused - self.failed

    def percentiles(self) -> dict[str, float]:
        """Milliseconds within which half, 95 and 99 of a hundred requests had their answers."""
        cuts = statistics.quantiles(self.seconds, n=100) if len(self.seconds) > 1 else self.seconds * 99
        return {f"p{k}_ms": round(1000 * cuts[k - 1], 1) for k in (50, 95, 99)}


def a_client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None))


async def closed_loop(
    url: str, clients: int, seconds: float, requests: Callable[[int], Iterator[Request]], check: Check | None = None
) -> Load:
    """So many clients ask, each when it has its answer, for so many seconds."""
    load, end = Load(check), time.perf_counter() + seconds

    async def work(number: int) -> None:
        async with a_client(url) as client:
            for request in requests(number):
                if (now := time.perf_counter()) > end:
                    return
                await load.ask(client, request, now)

    await asyncio.gather(*[work(number) for number in range(clients)])
    return load


async def open_loop(
    url: str, per_second: float, seconds: float, requests: Iterator[Request], check: Check | None = None
) -> Load:
    """Requests come at random times, whoever still waits."""
    load, rng, tasks = Load(check), random.Random(0), []
    async with a_client(url) as client:
        due = end = time.perf_counter()
        end += seconds
        while (due := due + rng.expovariate(per_second)) < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(load.ask(client, next(requests), due)))
        await asyncio.gather(*tasks)
    return load


def measured(
    url: str,
    process: psutil.Process,
    clients: int,
    seconds: float,
    requests: Requests,
    rates: Sequence[float] = (),
    check: Check | None = None,
    counter: str | None = None,
) -> dict[str, Any]:
    """Measures a server.

    `rates` of the open loop are in requests a second, none: shares of what the closed loop gave. `counter`: that of the
    tokens that the server computed (`counted`), where its answers do not say it.
    """
    asyncio.run(closed_loop(url, 2, 2, lambda n: requests("warm", n)))  # everything is loaded
    before, began, tokens = cpu_seconds(process), time.perf_counter(), _tokens(url, counter)
    load = asyncio.run(closed_loop(url, clients, seconds, lambda n: requests("closed", n), check))
    wall, cpu = time.perf_counter() - began, cpu_seconds(process) - before
    count = len(load.seconds)
    found: dict[str, Any] = {
        "requests": count,
        "failed": load.failed,
        "per_second": count / wall,
        "cpu_ms_a_request": 1000 * cpu / count,
        **_tokens_each(load, _tokens(url, counter) - tokens),
        **load.percentiles(),
        "open": [],
    }
    for rate in rates or [share * found["per_second"] for share in SHARES]:
        began, tokens = time.perf_counter(), _tokens(url, counter)
        load = asyncio.run(open_loop(url, rate, seconds, requests(f"open {len(found['open'])}", 0), check))
        found["open"].append(
            {
                "per_second": rate,
                "answered_per_second": load.answered / (time.perf_counter() - began),
                "requests": len(load.seconds),
                "refused": load.refused,
                "failed": load.failed,
                **_tokens_each(load, _tokens(url, counter) - tokens),
                **load.percentiles(),
            }
        )
    return found


def _tokens(url: str, counter: str | None) -> float:
    return 0.0 if counter is None else counted(url, counter)


def _tokens_each(load: Load, tokens: float) -> dict[str, float]:
    """Tokens computed: a request by the server's counter, else a presentation where the answers say it."""
    if tokens and load.answered:
        return {"tokens_a_request": tokens / load.answered}
    return {"tokens_a_comparison": load.tokens / load.comparisons} if load.comparisons else {}


def counted(url: str, counter: str) -> float:
    """Reads a counter of a server: its name and labels, as a pattern of those lines of `/metrics` that are summed."""
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(counter, line))


def table(servers: dict[str, dict[str, Any]]) -> str:
    """Renders what was measured of servers, by their names, as a Markdown table."""
    lines = ["| load | server | requests a second | p50, p95, p99 in ms | refused |", "|---" * 5 + "|"]
    for name, found in servers.items():
        lines.append(f"| closed | {name} | {found['per_second']:.3g} | {_cuts(found)} | {found['failed']} |")
    for row in zip(*[found["open"] for found in servers.values()], strict=True):
        for name, at in zip(servers, row, strict=True):
            lines.append(f"| open | {name} | {at['per_second']:.3g} asked | {_cuts(at)} | {at['refused']} |")
    return "\n".join(lines)


def _cuts(found: dict[str, Any]) -> str:
    return ", ".join(f"{found[f'p{k}_ms']:,.0f}" for k in (50, 95, 99))
