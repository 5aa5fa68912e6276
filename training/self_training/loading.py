"""Models of one step of self-training, so that a killed run that goes on computes as one that nothing disturbed.

Which answers are written side by side, and which keys and values are at hand, changes how numbers are rounded. So
batches have a size of their own, whatever memory is free, and nothing of one call is kept for the next.
"""

from dataclasses import replace
from typing import Any

from gram_fast.devices import find_devices, find_dtype
from gram_fast.errors import InputError, one_line
from gram_fast.generating.comparer import ReasoningComparer
from gram_fast.generating.loading import reasoning_comparer_of_model
from gram_fast.generating.options import ReasoningOptions
from gram_fast.generating.transformers_generator import TransformersGenerator
from gram_fast.models.checkpoint import load_model
from gram_fast.models.options import JudgeOptions
from gram_fast.models.tokenizer import load_tokenizer
from gram_fast.scoring.surroundings import sheltered


@sheltered
def load_on_device(name: str, judge: JudgeOptions) -> Any:
    """Loads the causal language model of a checkpoint onto its device, in eval mode and without gradients.

    Device, dtype and what the hub wants are used. Raises InputError on several devices and one that has no room, and
    errors of loading.
    """
    devices = find_devices(judge.device)
    if len(devices) > 1:
        raise InputError(f"device: expected one, got {len(devices)}")
    model = load_model(name, find_dtype(judge.dtype, devices[0]), **judge.hub)
    try:
        return model.to(devices[0]).eval().requires_grad_(False)
    except RuntimeError as error:
        raise InputError(f"{name!r} cannot be moved to {devices[0]}: {one_line(error)}") from error


def load_judge(name: str, judge: JudgeOptions, options: ReasoningOptions, max_batch_tokens: int) -> ReasoningComparer:
    """Loads the comparer of a judge that reasons, whose model is one of a caller's: it keeps nothing between calls.

    `max_batch_tokens`: most tokens of prompts and answers that are written side by side. Raises errors like
    `ReasoningJudge.from_pretrained` and `load_on_device`.
    """
    model, tokenizer = load_on_device(name, judge), load_tokenizer(name, judge.tokenizer, **judge.hub)
    comparer = reasoning_comparer_of_model(model, tokenizer, judge, options)
    return replace(comparer, generator=TransformersGenerator(model, tokenizer, max_batch_tokens=max_batch_tokens))
