"""Models and workloads of benchmarks/scorer/run.py, and the speed of a model's matrix products."""

import argparse
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import Timer

from benchmarks.groups import read_groups
from benchmarks.random_judge import SMALL, ModelSizes
from gram_fast.comparing.orders import Orders
from gram_fast.models.dense.model import DenseShape

SHAPES = {
    "small": SMALL,
    "qwen3-0.6b": ModelSizes(1024, 3072, 28, 16, 8, 128),
    "qwen3-1.7b": ModelSizes(2048, 6144, 28, 16, 8, 128),
    "qwen3-8b": ModelSizes(4096, 12288, 36, 32, 8, 128),
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"shape": "small", "tokens": 64, "n": [2, 8, 32], "round_robin": 6, "prompts": 4, "of_prompt": 4},
    "cuda": {
        "shape": "qwen3-1.7b",
        "tokens": 512,
        "n": [2, 8, 64, 256],
        "round_robin": 16,
        "prompts": 32,
        "of_prompt": 8,
    },
}


@dataclass(frozen=True)
class Workload:
    """The arguments of one call of the judge."""

    strategy: str
    orders: Orders
    prompts: list[str]
    groups: list[list[str]]
    """For "rewards", the first response of a group is the reference."""

    @property
    def n(self) -> int:
        """Responses of each prompt."""
        return len(self.groups[0])

    @property
    def forwards(self) -> int:
        """Forwards of the call: pairs times orders."""
        pairs = self.n * (self.n - 1) // 2 if self.strategy == "round_robin" else self.n - 1
        return len(self.prompts) * pairs * (2 if self.orders == "both" else 1)

    @property
    def name(self) -> str:
        """The strategy with its sizes, for tables and records."""
        many = f"{len(self.prompts)} prompts, " if len(self.prompts) > 1 else ""
        return f"{self.strategy}, {many}n = {self.n}, {'both orders' if self.orders == 'both' else 'one order'}"

    @property
    def smallest(self) -> "Workload":
        """The same call with a single pair."""
        return Workload(self.strategy, self.orders, self.prompts[:1], [self.groups[0][:2]])


def random_texts(tokenizer: Any, num_tokens: int, count: int, seed: int) -> list[str]:
    """Makes `count` texts of random words, each of exactly `num_tokens` tokens."""
    candidates = [" " + token[1:] for token in sorted(tokenizer.get_vocab()) if re.fullmatch("[Ġ▁][a-z]{2,}", token)]
    ids = tokenizer(candidates, add_special_tokens=False)["input_ids"]
    words = [word for word, of_word in zip(candidates, ids, strict=True) if len(of_word) == 1]
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(words, num_tokens)) for _ in range(count)]
    lengths = {len(of_text) for of_text in tokenizer(texts, add_special_tokens=False)["input_ids"]}
    if lengths != {num_tokens}:
        raise ValueError(
            f"random words of this tokenizer make {min(lengths)} to {max(lengths)} tokens, not {num_tokens}"
        )
    return texts


def make_workloads(options: argparse.Namespace, defaults: dict[str, Any], tokenizer: Any) -> list[Workload]:
    """Makes all workloads, those of few forwards first."""
    most = max(*options.n, defaults["round_robin"], options.prompts * defaults["of_prompt"])
    if options.data:
        groups = read_groups(options.data)
        prompts = [prompt for prompt, _ in groups]
        responses = list(dict.fromkeys(text for _, texts in groups for text in texts))
    else:
        prompts = random_texts(tokenizer, options.prompt_tokens, options.prompts, 0)
        responses = random_texts(tokenizer, options.response_tokens, most, 1)
    if len(responses) < most or len(prompts) < options.prompts:
        raise ValueError(f"the data has {len(prompts)} prompts and {len(responses)} responses: too few for these sizes")

    def one_prompt(strategy: str, orders: Orders, n: int) -> Workload:
        return Workload(strategy, orders, prompts[:1], [responses[:n]])

    found = [one_prompt("round_robin", "both", defaults["round_robin"])]
    for n in options.n:
        found += [one_prompt("reference", "ab", n), one_prompt("knockout", "both", n)]
    cut = range(0, options.prompts * defaults["of_prompt"], defaults["of_prompt"])
    of_prompts = [responses[first : first + defaults["of_prompt"]] for first in cut]
    found.append(Workload("rewards", "both", prompts[: options.prompts], of_prompts))
    return sorted(found, key=lambda workload: workload.forwards)


def products(shape: DenseShape) -> dict[str, tuple[int, int]]:
    """Lists the matrix products of one layer: columns in, columns out."""
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    return {
        "qkv": (shape.hidden_size, queries + 2 * keys),
        "out": (queries, shape.hidden_size),
        "gate_up": (shape.hidden_size, 2 * shape.intermediate_size),
        "down": (shape.intermediate_size, shape.hidden_size),
    }


def flops_a_token(shape: DenseShape) -> int:
    """Counts the FLOP of one token's matrix products in all layers."""
    return 2 * shape.num_layers * sum(columns * out for columns, out in products(shape).values())


def matrix_rates(shape: DenseShape, rows: int, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Measures the FLOP/s of each product: the best of the runs of a third of a second."""
    found = {}
    for name, (columns, out) in products(shape).items():
        x, weight = (torch.randn(size, columns, device=device, dtype=dtype) for size in (rows, out))
        timer = Timer("x @ weight.T", globals={"x": x, "weight": weight}, num_threads=torch.get_num_threads())
        found[name] = 2 * rows * columns * out / min(timer.blocked_autorange(min_run_time=0.3).times)
    return found
