"""Models and workloads of benchmarks/scorer/run.py, and the speed of a model's matrix products."""

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from benchmarks.groups import read_groups
from gram_fast.comparing.orders import Orders
from gram_fast.models.dense.model import DenseShape
from gram_fast.ranking.tournament import StrategyName


@dataclass(frozen=True)
class Workload:
    """The arguments of one call of the judge."""

    strategy: StrategyName | Literal["rewards", "unshared"]
    orders: Orders
    prompts: list[str]
    groups: list[list[str]]
    """For "rewards", the first response of a group is the reference; for "unshared", a pair each."""

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


def make_workloads(options: argparse.Namespace, tokenizer: Any) -> list[Workload]:
    """Makes all workloads, those of few forwards first."""
    of_one = [*options.reference, *options.knockout, *options.round_robin]
    most = max(2, *of_one, options.prompts * options.of_prompt)
    most_prompts = max(1, options.prompts, *options.unshared)
    if options.data:
        groups = read_groups(options.data)
        prompts = [prompt for prompt, _ in groups]
        responses = list(dict.fromkeys(text for _, texts in groups for text in texts))
        pairs = [(texts[0], texts[-1]) for _, texts in groups]
    else:
        prompts = random_texts(tokenizer, options.prompt_tokens, most_prompts, 0)
        responses = random_texts(tokenizer, options.response_tokens, max(most, 2 * most_prompts), 1)
        pairs = list(zip(responses[::2], responses[1::2], strict=False))
    if len(responses) < most or len(prompts) < most_prompts:
        raise ValueError(f"the data has {len(prompts)} prompts and {len(responses)} responses: too few for these sizes")

    def one_prompt(strategy: StrategyName, orders: Orders, n: int) -> Workload:
        return Workload(strategy, orders, prompts[:1], [responses[:n]])

    found = [one_prompt("reference", "ab", n) for n in options.reference]
    found += [one_prompt("knockout", "both", n) for n in options.knockout]
    found += [one_prompt("round_robin", "both", n) for n in options.round_robin]
    if options.prompts:
        of_prompts = [responses[k * options.of_prompt :][: options.of_prompt] for k in range(options.prompts)]
        found.append(Workload("rewards", "both", prompts[: options.prompts], of_prompts))
    found += [Workload("unshared", "both", prompts[:k], [list(pair) for pair in pairs[:k]]) for k in options.unshared]
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


def torch_product(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    """Makes the product by torch's matmul."""
    return lambda: x @ weight.T


def onednn_product(x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    """Makes the product by oneDNN, the weight packed beforehand for as many rows."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")  # type: ignore[no-any-return]


Products = Mapping[str, Callable[[Tensor, Tensor], Callable[[], Tensor]]]
"""Ways to multiply, by name: x [rows, columns] and weight [out, columns] -> what computes x @ weight.T when called."""


def products_on(device: torch.device) -> Products:
    """Lists the ways to multiply that are known on that kind of device."""
    found = {"torch": torch_product}
    if device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        found["onednn"] = onednn_product
    return found


class Rate(NamedTuple):
    """The speed of one of a model's products."""

    flops: float
    """FLOP/s."""
    by: str
    """The fastest way to multiply."""


def product_rate(
    make: Callable[[Tensor, Tensor], Callable[[], Tensor]],
    columns_out: tuple[int, int],
    rows: int,
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    """Measures one product made in one way -> FLOP/s, by the best of the runs of a fifth of a second."""
    columns, out = columns_out
    x, weight = (torch.randn(size, columns, device=device, dtype=dtype) for size in (rows, out))
    timer = Timer("run()", globals={"run": make(x, weight)}, num_threads=torch.get_num_threads())
    return 2 * rows * columns * out / min(timer.blocked_autorange(min_run_time=0.2).times)


def matrix_rates(
    shape: DenseShape, rows: int, device: torch.device, dtype: torch.dtype, ways: Products
) -> dict[str, Rate]:
    """Measures a layer's products in all ways -> of each the fastest."""
    found = {}
    for name, sizes in products(shape).items():
        rates = {way: product_rate(make, sizes, rows, device, dtype) for way, make in ways.items()}
        best = max(rates, key=lambda way: rates[way])
        found[name] = Rate(rates[best], best)
    return found
