"""Why a model's logits are not finite: a weight that is not, or a dtype whose range is too small."""

import torch

from gram_fast.models.named_weights import named_weights
from gram_fast.scoring.runner import Runner


def why_not_finite(runner: Runner) -> str:
    """The reason, as the end of a sentence about the model of a runner whose plain logits are not finite."""
    # torch cannot ask numbers of FP8.
    weights = (
        (name, weight.float() if weight.itemsize == 1 else weight) for name, weight in named_weights(runner.model)
    )
    bad = next((name for name, weight in weights if not bool(weight.isfinite().all())), None)
    if runner.dtype == torch.float32:
        return f"its weight {bad!r} is not finite" if bad else "its weights are finite, but what it computes is not"
    remedy = "bfloat16 or float32" if runner.dtype == torch.float16 else "float32"
    return f"{f'its weight {bad!r} is' if bad else 'what it computes is'} not finite in {runner.dtype}: try {remedy}"
