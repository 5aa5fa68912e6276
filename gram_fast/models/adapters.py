"""Merges an adapter of peft into its base, and checks that the merged model says what both said together."""

from typing import Any

import torch
from torch import nn

from gram_fast.errors import BackendError, InputError, NumericalError, UnsupportedModelError, one_line

# Largest |logit| difference that rounding the merged weights explains, per unit of the logits' size (at least 1).
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_NUM_IDS = 16


def load_adapted(base: Any, adapter: str, **hub: Any) -> Any:
    """Puts an adapter on its base model, which is changed -> peft's model of both.

    Args:
        base: the base model of transformers, on the CPU.
        adapter: folder or name on the hub.
        hub: revision and token as in transformers.

    Raises BackendError where peft is not installed, InputError for an adapter that is broken or another base's.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise BackendError(f"{adapter!r} is an adapter, which needs peft: install gram_fast[train]") from error
    try:
        return PeftModel.from_pretrained(base, adapter, **hub)
    except Exception as error:  # peft, safetensors and torch raise anything for a broken file
        raise InputError(f"cannot load adapter {adapter!r}: {one_line(error)}") from error


def merge_adapted(adapted: Any) -> Any:
    """Merges the adapter of peft's model into its base -> the base, changed.

    An adapter on an input embedding leaves the output embedding alone: where the two are tied, the output embedding
    gets weights of its own. Raises UnsupportedModelError for an adapter of a kind that cannot be merged.
    """
    base = adapted.get_base_model()
    if head := head_of_adapted_embedding(base):
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        base.config.tie_word_embeddings = False
    try:
        return adapted.merge_and_unload()
    except Exception as error:
        kind = adapted.active_peft_config.peft_type
        raise UnsupportedModelError(f"an adapter of type {kind} cannot be merged: {one_line(error)}") from error


def merge_adapter(base: Any, adapter: str, **hub: Any) -> Any:
    """Merges an adapter into its base model, and checks that the result says what both say -> the base, changed.

    Raises like `load_adapted` and `merge_adapted`, and NumericalError where the merged model is another one.
    """
    adapted = load_adapted(base, adapter, **hub)
    ids = torch.arange(min(_NUM_IDS, base.config.get_text_config(decoder=True).vocab_size), device=base.device)[None]
    with torch.no_grad():
        expected = adapted.eval()(input_ids=ids).logits
    model = merge_adapted(adapted)
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits
    difference, size = float((logits - expected).abs().max()), max(1.0, float(expected.abs().max()))
    if not difference <= _TOLERANCES.get(expected.dtype, 1e-1) * size:
        raise NumericalError(f"adapter {adapter!r} merges into another model: its logits differ by {difference:.1e}")
    return model


def head_of_adapted_embedding(model: Any) -> Any:
    """The output embedding where it is tied to an input embedding with adapters, else None."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or not isinstance(embedding, BaseTunerLayer):
        return None
    return head if embedding.get_base_layer().weight is head.weight else None
