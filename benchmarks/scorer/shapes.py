"""The models and workloads of benchmarks/scorer/run.py, and the floor that a model's matrix products set."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import Timer
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.groups import read_groups
from benchmarks.random_judge import make_random_judge, repository_texts
from gram_fast.comparing.preference import Orders
from gram_fast.models.dense.model import DenseShape
from gram_fast.training.small_judge.tokenizer import make_qwen_tokenizer

SHAPES = {  # hidden, intermediate, layers, heads, key/value heads, head width
    "qwen3-0.6b": (1024, 3072, 28, 16, 8, 128),
    "qwen3-1.7b": (2048, 6144, 28, 16, 8, 128),
    "qwen3-8b": (4096, 12288, 36, 32, 8, 128),
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
    """One call of the judge."""

    strategy: str
    orders: Orders
    prompts: list[str]
    groups: list[list[str]]
    """For "rewards", the first response of a group is the reference."""

    @property
    def n(self) -> int:
        return len(self.groups[0])

    @property
    def forwards(self) -> int:
        """Pairs times orders."""
        pairs = self.n * (self.n - 1) // 2 if self.strategy == "round_robin" else self.n - 1
        return len(self.prompts) * pairs * (2 if self.orders == "both" else 1)

    @property
    def name(self) -> str:
        many = f"{len(self.prompts)} prompts, " if len(self.prompts) > 1 else ""
        return f"{self.strategy}, {many}n = {self.n}, {'both orders' if self.orders == 'both' else 'one order'}"

    @property
    def smallest(self) -> "Workload":
        """One comparison of it."""
        return Workload(self.strategy, self.orders, self.prompts[:1], [self.groups[0][:2]])


def write_checkpoint(shape: str, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Random weights, made where they are fast to make, and a tokenizer."""
    if shape == "small":
        return make_random_judge(folder)
    tokenizer = make_qwen_tokenizer(repository_texts())
    hidden, intermediate, layers, heads, kv_heads, width = SHAPES[shape]
    config = Qwen3Config(
        vocab_size=8192,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with device:
        model = Qwen3ForCausalLM._from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def random_texts(tokenizer: Any, num_tokens: int, count: int, seed: int) -> list[str]:
    """`count` texts of random words, each of exactly `num_tokens` tokens."""
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
    """All workloads, those of few forwards first."""
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
    """(columns in, columns out) of the products of one layer."""
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    return {
        "qkv": (shape.hidden_size, queries + 2 * keys),
        "out": (queries, shape.hidden_size),
        "gate_up": (shape.hidden_size, 2 * shape.intermediate_size),
        "down": (shape.intermediate_size, shape.hidden_size),
    }


def flops_a_token(shape: DenseShape) -> int:
    return 2 * shape.num_layers * sum(columns * out for columns, out in products(shape).values())


def matrix_rates(shape: DenseShape, rows: int, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """FLOP/s of each product, the best of a third of a second of runs."""
    found = {}
    for name, (columns, out) in products(shape).items():
        x, weight = (torch.randn(size, columns, device=device, dtype=dtype) for size in (rows, out))
        timer = Timer("x @ weight.T", globals={"x": x, "weight": weight}, num_threads=torch.get_num_threads())
        found[name] = 2 * rows * columns * out / min(timer.blocked_autorange(min_run_time=0.3).times)
    return found
