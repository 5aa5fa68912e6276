"""Models and workloads of benchmarks/scorer/run.py, and the speed and exactness of a model's products."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.ops import CPU
from helpers.small_models import tiny_tokenizer

from benchmarks.random_judge import SHAPES, ModelSizes, write_random_judge
from benchmarks.scorer import shapes as shapes
from gram_fast import PairwiseJudge

pytestmark = pytest.mark.usefixtures("one_thread")


def test_random_texts_have_just_that_many_tokens() -> None:
    tokenizer = tiny_tokenizer()
    texts = shapes.random_texts(tokenizer, 9, 5, seed=0)
    assert len(set(texts)) == 5
    assert {len(tokenizer(text)["input_ids"]) for text in texts} == {9}


@pytest.mark.parametrize(
    ("name", "parameters"), [("qwen3-1.7b", 1.409e9), ("qwen3-8b", 6.946e9)], ids=["qwen3-1.7b", "qwen3-8b"]
)
def test_flops_are_those_of_the_models(name: str, parameters: float) -> None:
    hidden, intermediate, layers, heads, kv_heads, width = SHAPES[name]
    shape = shapes.DenseShape(hidden, intermediate, layers, heads, kv_heads, width, 8192, 1e-6)
    assert shapes.flops_a_token(shape) / 2 == pytest.approx(parameters, rel=1e-3)


def test_every_product_has_a_rate() -> None:
    shape = shapes.DenseShape(32, 48, 2, 4, 2, 8, 100, 1e-6)
    assert shapes.flops_a_token(shape) == 2 * 2 * (32 * 64 + 32 * 32 + 32 * 96 + 48 * 32)
    slow = {"slow": lambda x, weight: lambda: time.sleep(0.001)}
    rates = shapes.matrix_rates(shape, 16, CPU, torch.float32, shapes.products_on(CPU) | slow)
    assert set(rates) == {"qkv", "out", "gate_up", "down"}
    assert all(rate.flops > 0 for rate in rates.values())
    assert {rate.by for rate in rates.values()} <= set(shapes.products_on(CPU))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", shapes.products_on(CPU))
def test_products_are_right(way: str, dtype: torch.dtype) -> None:
    x, weight = (torch.randn(rows, 40, generator=torch.Generator().manual_seed(0)).to(dtype) for rows in (9, 24))
    expected = x.double() @ weight.double().T
    tolerance = 4 * torch.finfo(dtype).eps * (x.double().abs() @ weight.double().abs().T)
    assert (shapes.products_on(CPU)[way](x, weight)().double() - expected).abs().sub(tolerance).max() <= 0


def test_real_texts(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    row = {"prompt": "Name a city.", "responses": [f"City number {k}." for k in range(8)]}
    data.write_text(json.dumps(row) + "\n" + json.dumps({**row, "prompt": "Name two."}), "utf-8")
    sizes = {"reference": [2, 4], "knockout": [2, 4], "round_robin": [6, 5], "unshared": [2]}
    options = SimpleNamespace(data=data, prompts=2, of_prompt=4, **sizes)
    found = shapes.make_workloads(options, None)  # type: ignore[arg-type]
    assert [workload.forwards for workload in found] == [1, 2, 3, 4, 6, 12, 20, 30]
    many = next(workload for workload in found if workload.strategy == "rewards")
    assert many.prompts == ["Name a city.", "Name two."]
    assert [len(group) for group in many.groups] == [4, 4]
    pairs = next(workload for workload in found if workload.strategy == "unshared")
    assert pairs.groups == [["City number 0.", "City number 7."]] * 2
    options.prompts = 3
    with pytest.raises(ValueError, match="2 prompts and 8 responses: too few"):
        shapes.make_workloads(options, None)  # type: ignore[arg-type]


def test_a_judge_of_any_sizes_is_written(tmp_path: Path) -> None:
    write_random_judge(tmp_path, ModelSizes(32, 48, 2, 4, 2, 8), CPU, torch.bfloat16)
    judge = PairwiseJudge.from_pretrained(tmp_path, dtype=torch.float32, runner="dense")
    assert judge.comparer.runner.model.shape.num_layers == 2
