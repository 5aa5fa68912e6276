"""Why a model's logits are not finite: a weight that is not, or a dtype whose range is too small."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gram_fast.scoring.runner import Runner


def why_not_finite(runner: Runner) -> str:
    """The reason, as the end of a sentence about the model of a runner whose plain logits are not finite."""
    bad = next((name for name, weight in _weights(runner.model) if not bool(weight.isfinite().all())), None)
    if runner.dtype == torch.float32:
        return f"its weight {bad!r} is not finite" if bad else "its weights are finite, but what it computes is not"
    remedy = "bfloat16 or float32" if runner.dtype == torch.float16 else "float32"
    return f"{f'its weight {bad!r} is' if bad else 'what it computes is'} not finite in {runner.dtype}: try {remedy}"


def _weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """All weights by name: of a torch module, or of the dense runner's nested dataclasses."""
    if isinstance(model, nn.Module):
        yield from model.named_parameters()
        return
    for name, value in vars(model).items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, list):
            for index, layer in enumerate(value):
                yield from ((f"{name}.{index}.{inner}", weight) for inner, weight in _weights(layer))
