"""What does a served judge give its clients, in and out of its capacity, against a server of one call at a time?

    python -m benchmarks.serving [--model small] [--clients 16] [--seconds 20] [--soak 60] [--output FILE]

Two servers in processes of their own, over loopback: `gram-fast serve`, and the naive one, the same web framework
around `judge.compare`, which has the judge to itself for each request. The same requests go to both:

- closed loop: so many clients, each of which asks again once it has its answer: throughput, latency, CPU seconds and
  tokens computed a comparison;
- open loop: requests that come at random times, at half, all and twice what the closed loop of `gram-fast serve` gave:
  latency from when a request was due, to an answer or a refusal, and how many were refused.

Then `gram-fast serve` alone has 64 clients of all kinds of requests for --soak seconds: every answer is compared with
that of a judge in this process, and the server's memory is read over it.

Requests are pairs of `PROMPTS` prompts with `RESPONSES` responses each, of random words. Prints a table and one line of
JSON, which --output keeps in a file.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.environment import environment
from gram_fast import PairwiseJudge

PROMPTS, RESPONSES = 24, 8
PROMPT_WORDS, RESPONSE_WORDS = 60, 40
WORDS = Path(__file__).read_text("utf-8").split()
SOAK_CLIENTS = 64
# A float32 sum in another order.
TOLERANCE = 1e-4

Request = tuple[str, dict[str, Any]]
"""Path and body."""


def groups_of(seed: int) -> list[tuple[str, list[str]]]:
    """Prompts with their responses."""
    rng = random.Random(seed)

    def text(words: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(words // 2, words)))

    return [(text(PROMPT_WORDS), [text(RESPONSE_WORDS) for _ in range(RESPONSES)]) for _ in range(PROMPTS)]


def pairs_of(groups: Sequence[tuple[str, list[str]]], rng: random.Random) -> Iterator[Request]:
    """Comparisons of two random responses to a random prompt, without end."""
    while True:
        prompt, responses = rng.choice(groups)
        a, b = rng.sample(responses, 2)
        yield "/v1/compare", {"prompt": prompt, "a": a, "b": b}


def mixed(groups: Sequence[tuple[str, list[str]]], rng: random.Random) -> Iterator[Request]:
    """Requests of all kinds, small and large, without end."""
    for pair in pairs_of(groups, rng):
        prompt, responses = rng.choice(groups)
        some = rng.sample(responses, rng.randint(2, RESPONSES))
        yield rng.choice(
            [
                pair,
                pair,
                ("/v1/rank", {"prompt": prompt, "responses": some}),
                ("/v1/best_of_n", {"prompt": prompt, "responses": some}),
                ("/v1/rewards", {"prompts": [prompt] * 2, "groups": [some, responses[:2]]}),
                ("/rerank", {"query": prompt, "documents": some}),
            ]
        )


def numbers_in(path: str, answer: Any) -> list[float]:
    """What an answer says, in the order of the request."""
    if path == "/v1/compare":
        return [answer["p"]]
    if path == "/v1/rewards":
        return [value for group in answer["rewards"] for value in group]
    if path == "/rerank":
        return [result["relevance_score"] for result in sorted(answer["results"], key=lambda r: r["index"])]
    return list(answer["scores"])


def expected_of(judge: PairwiseJudge, path: str, body: dict[str, Any]) -> list[float]:
    """The same of a judge in this process."""
    if path == "/v1/compare":
        return [judge.compare(**body).p]
    if path == "/v1/rewards":
        return [value for group in judge.rewards(**body) for value in group]
    if path == "/v1/best_of_n":
        return list(judge.best_of_n(**body).scores)
    if path == "/rerank":
        from scipy.special import expit

        scores = judge.rank(body["query"], body["documents"], scores="bradley_terry").scores
        return [float(value) for value in expit(scores)]
    return list(judge.rank(**body).scores)


@contextmanager
def running(*command: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server, its address, which it logs, and its process."""
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=surroundings) as process:
        assert process.stderr is not None
        url = next(found[0] for line in process.stderr if (found := re.search(r"http://[\d.]+:\d+", line)))
        threading.Thread(target=_drain, args=(process.stderr,), daemon=True).start()
        try:
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()


def _drain(log: Any) -> None:
    """Reads on, so that the server need not wait to write."""
    with contextlib.suppress(ValueError):  # closed
        for _ in log:
            pass


def serve_naively(model: str) -> None:
    """The naive server: one call at a time."""
    import uvicorn
    from fastapi import Body, FastAPI

    judge, lock = PairwiseJudge.from_pretrained(model), threading.Lock()
    app = FastAPI()

    @app.post("/v1/compare")
    def compare(prompt: str = Body(), a: str = Body(), b: str = Body()) -> dict[str, Any]:
        with lock:
            result = judge.compare(prompt, a, b)
        return {"p": result.p, "stats": vars(result.stats)}

    uvicorn.run(app, port=0, access_log=False, http="h11")


class Load:
    """What came of requests."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.tokens = self.comparisons = self.refused = self.failed = 0

    async def ask(self, client: httpx.AsyncClient, request: Request, due: float) -> Any:
        """Sends a request that was due at a time, and notes what it took."""
        path, body = request
        response = await client.post(path, json=body)
        self.seconds.append(time.perf_counter() - due)
        self.refused += response.status_code == 503
        self.failed += response.status_code not in (200, 503)
        if response.status_code != 200:
            return None
        answer = response.json()
        self.tokens += answer.get("stats", {}).get("tokens_computed", 0)
        self.comparisons += answer.get("stats", {}).get("comparisons", 0)
        return answer

    def percentiles(self) -> dict[str, float]:
        """Milliseconds within which half, 95 and 99 of a hundred requests had their answers."""
        cuts = statistics.quantiles(self.seconds, n=100) if len(self.seconds) > 1 else self.seconds * 99
        return {f"p{k}_ms": round(1000 * cuts[k - 1], 1) for k in (50, 95, 99)}


def a_client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None))


async def closed_loop(
    url: str, clients: int, seconds: float, requests: Callable[[int], Iterator[Request]], check: Any = None
) -> Load:
    """So many clients ask, each when it has its answer, for so many seconds."""
    load, end = Load(), time.perf_counter() + seconds

    async def work(number: int) -> None:
        async with a_client(url) as client:
            for request in requests(number):
                if (now := time.perf_counter()) > end:
                    return
                answer = await load.ask(client, request, now)
                if check is not None and answer is not None:
                    check(request, answer)

    await asyncio.gather(*[work(number) for number in range(clients)])
    return load


async def open_loop(url: str, per_second: float, seconds: float, requests: Iterator[Request]) -> Load:
    """Requests come at random times, whoever still waits."""
    load, rng, tasks = Load(), random.Random(0), []
    async with a_client(url) as client:
        due = end = time.perf_counter()
        end += seconds
        while (due := due + rng.expovariate(per_second)) < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(load.ask(client, next(requests), due)))
        await asyncio.gather(*tasks)
    return load


def measured(url: str, process: psutil.Process, options: argparse.Namespace, rates: Sequence[float]) -> dict[str, Any]:
    """Measures a server; `rates` of the open loop in requests a second, none: shares of what the closed loop gave."""
    groups = groups_of(0)
    asyncio.run(closed_loop(url, 2, 2, lambda n: pairs_of(groups, random.Random(-n))))  # everything is loaded
    before, began = sum(process.cpu_times()[:2]), time.perf_counter()
    load = asyncio.run(closed_loop(url, options.clients, options.seconds, lambda n: pairs_of(groups, random.Random(n))))
    wall, cpu = time.perf_counter() - began, sum(process.cpu_times()[:2]) - before
    count = len(load.seconds)
    found: dict[str, Any] = {
        "requests": count,
        "failed": load.failed,
        "per_second": count / wall,
        "cpu_ms_a_request": 1000 * cpu / count,
        "tokens_a_comparison": load.tokens / load.comparisons,
        **load.percentiles(),
        "open": [],
    }
    for rate in rates or [share * found["per_second"] for share in (0.5, 1.0, 2.0)]:
        load = asyncio.run(open_loop(url, rate, options.seconds, pairs_of(groups, random.Random(7))))
        found["open"].append(
            {
                "per_second": rate,
                "requests": len(load.seconds),
                "refused": load.refused,
                "failed": load.failed,
                **load.percentiles(),
            }
        )
    return found


def soaked(url: str, process: psutil.Process, judge: PairwiseJudge, seconds: float) -> dict[str, Any]:
    """Has many clients ask everything, compares every answer, and reads the memory of the server."""
    groups, memory = groups_of(1), []
    known: dict[str, list[tuple[Request, list[float]]]] = {}

    def check(request: Request, answer: Any) -> None:
        key = json.dumps(request)
        known.setdefault(key, []).append((request, numbers_in(request[0], answer)))
        if sum(len(answers) for answers in known.values()) % 200 == 0:
            memory.append(process.memory_info().rss / 2**20)

    load = asyncio.run(closed_loop(url, SOAK_CLIENTS, seconds, lambda n: mixed(groups, random.Random(n)), check))
    worst = 0.0
    for answers in known.values():
        (path, body), _ = answers[0]
        expected = expected_of(judge, path, body)
        for _, found in answers:
            assert len(found) == len(expected), "an answer of another request"
            worst = max(worst, *(abs(x - y) for x, y in zip(found, expected, strict=True)))
    assert worst < TOLERANCE, f"an answer that is {worst} from that of a judge in this process"
    return {
        "clients": SOAK_CLIENTS,
        "requests": len(load.seconds),
        "answers": sum(len(answers) for answers in known.values()),
        "failed": load.failed,
        "refused": load.refused,
        "worst_difference": worst,
        **load.percentiles(),
        "memory_mib": [round(value) for value in memory[:: max(1, len(memory) // 12)]],
    }


def main() -> None:
    """Measures both servers, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--soak", type=float, default=60)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--naive", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.naive:
        serve_naively(options.model)
        return
    with running(sys.executable, "-m", "gram_fast", "serve", "-m", options.model, "--port", "0") as (url, process):
        ours = measured(url, process, options, [])
        soak = soaked(url, process, PairwiseJudge.from_pretrained(options.model), options.soak)
    with running(sys.executable, "-m", "benchmarks.serving", "--naive", "--model", options.model) as (url, process):
        naive = measured(url, process, options, [at["per_second"] for at in ours["open"]])
    record = {
        "benchmark": "serving",
        "model": options.model,
        "clients": options.clients,
        "seconds": options.seconds,
        "gram_fast serve": ours,
        "naive": naive,
        "soak": soak,
    }
    print(table(ours, naive))
    print(f"{soak['clients']} clients of all kinds: {soak}")
    line = json.dumps(environment() | record)
    print(line)
    if options.output:
        options.output.write_text(line + "\n", "utf-8")


def table(ours: dict[str, Any], naive: dict[str, Any]) -> str:
    """Renders both servers as a Markdown table."""
    lines = ["| load | server | requests a second | p50, p95, p99 in ms | refused |", "|---" * 5 + "|"]
    for name, found in (("gram-fast serve", ours), ("one at a time", naive)):
        cuts = ", ".join(f"{found[f'p{k}_ms']:,.0f}" for k in (50, 95, 99))
        lines.append(f"| closed | {name} | {found['per_second']:.0f} | {cuts} | {found['failed']} |")
    for number in range(len(ours["open"])):
        for name, found in (("gram-fast serve", ours), ("one at a time", naive)):
            at = found["open"][number]
            cuts = ", ".join(f"{at[f'p{k}_ms']:,.0f}" for k in (50, 95, 99))
            lines.append(f"| open | {name} | {at['per_second']:.0f} asked | {cuts} | {at['refused']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
