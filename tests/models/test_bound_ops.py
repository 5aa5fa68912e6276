"""Layers run without checks of tables and without dispatch; what a model's own code hands to attention is checked."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.dense import dense_runner
from helpers.small_models import LABELS, score, tiny_model, tiny_runner
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface

from gram_fast import ops
from gram_fast.errors import BackendError
from gram_fast.models import transformers_runner
from gram_fast.models.transformers_runner import TransformersRunner
from gram_fast.ops import Spans
from gram_fast.scoring.engine import Engine
from gram_fast.scoring.tree import TreePass

pytestmark = pytest.mark.usefixtures("one_thread")

ROUNDS = [[[[1, 2, 3], [4, 5], [6]], [[1, 2, 3], [4, 9], [6, 8]], [[1, 2], [3], [6]]]]


class CountedOps(TorchDispatchMode):
    """Counts what torch.library dispatches of this package."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "gram_fast":
            self.found[func._opname] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often spans were checked in Python, and how often torch.library ran an op."""
    found: Counter[str] = Counter()
    check = Spans.check

    def counted_check(self: Spans, *args: Any) -> Spans:
        found["Spans.check"] += 1
        return check(self, *args)

    monkeypatch.setattr(Spans, "check", counted_check)
    with CountedOps(found):
        yield found


def test_what_is_counted_is_what_is_called(calls: Counter[str]) -> None:
    ops.swiglu(torch.ones(1, 2), backend="reference")
    TreePass.of_sequence(torch.arange(3)).spans.check(3)
    assert calls == {"swiglu": 1, "Spans.check": 1}


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_no_layer_of_the_dense_runner_checks_or_dispatches(num_layers, deterministic, tmp_path, calls) -> None:
    model = tiny_model("qwen3", num_hidden_layers=num_layers)
    model.save_pretrained(tmp_path)
    runner = dense_runner(tmp_path, model.config, deterministic=deterministic)
    calls.clear()
    passes = passes_of(runner, calls)
    # Tables of paths are made in Python, which checks their spans once a pass; the extension checks the others.
    assert calls == ({"Spans.check": passes} if deterministic else {})


@pytest.mark.parametrize("num_layers", [1, 3])
def test_no_layer_of_the_transformers_runner_checks_or_dispatches(num_layers, calls) -> None:
    runner = tiny_runner("qwen3", num_hidden_layers=num_layers)
    passes = passes_of(runner, calls)
    assert calls == {"label_logits": passes}


def passes_of(runner: Any, calls: Counter[str]) -> int:
    """Scores a few sequences -> how many passes that took."""
    number = 0
    forward = runner.forward

    def counted(*args: Any) -> Tensor:
        nonlocal number
        number += 1
        return forward(*args)

    runner.forward = counted
    score(Engine(runner, max_batch_tokens=6), [9, 9], ROUNDS)
    assert number > 1
    return number


WRONG = {
    "columns apart": (lambda q: torch.stack([q, q], dim=-1).flatten(-2)[..., ::2], "q_THE: expected a contiguous"),
    "another dtype": (lambda q: q.half(), "k_SKE: expected torch.float16"),
    "heads that do not divide": (lambda q: q[:, :3], "q_THE: expected a multiple of 2 heads, got 3"),
    "narrower heads": (lambda q: q[..., :8], "k_SKE: expected shape"),
    "fewer tokens": (lambda q: q[:, :, 1:], "q_THE: expected 12 tokens, got 11"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_queries_of_a_models_own_code_are_checked(wrong, monkeypatch) -> None:
    change, message = WRONG[wrong]

    def attend(module: Any, query: Tensor, *args: Any, **options: Any) -> Any:
        return transformers_runner._attend(module, change(query), *args, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, transformers_runner._ATTENTION, attend)
    with pytest.raises(ValueError, match=message):
        score(Engine(tiny_runner("qwen3"), 64), [9, 9], ROUNDS)


def test_a_negative_scale_of_a_models_own_code_is_refused() -> None:
    runner = tiny_runner("qwen3")
    runner.model.model.layers[1].self_attn.scaling = -0.5
    with pytest.raises(ValueError, match=r"^scale: expected a positive number, got -0\.5$"):
        score(Engine(runner, 64), [9, 9], ROUNDS)


def test_heads_wider_than_the_configuration_says_are_refused(monkeypatch) -> None:
    model = tiny_model("llama", head_dim=264)
    model.config.head_dim = 16
    runner = TransformersRunner(model, LABELS, "triton")
    with pytest.raises(BackendError, match="heads of up to 256 columns, got 264"):
        score(Engine(runner, 64), [9, 9], ROUNDS)


def test_an_output_embedding_of_another_dtype_is_refused() -> None:
    model = tiny_model("qwen3").bfloat16()
    model.lm_head.float()
    with pytest.raises(ValueError, match=r"label_weight_2D: expected torch\.bfloat16, got torch\.float32"):
        score(Engine(TransformersRunner(model, LABELS, "auto"), 64), [9, 9], ROUNDS)
