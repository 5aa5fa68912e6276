"""Checks whether prefix sharing scores an architecture exactly, for both runners and for training."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gram_fast.errors import UnsupportedModelError
from gram_fast.ops.checks import DTYPES

# Arguments of transformers' attention functions that change the result, and that tree_attention does not have.
_FOREIGN_ARGUMENTS = ("softcap", "s_aux", "sinks", "position_bias", "head_mask", "alibi")


def check_dtype(dtype: torch.dtype) -> None:
    """Raises UnsupportedModelError unless the ops take the dtype."""
    if dtype not in DTYPES:
        raise UnsupportedModelError(f"expected a model in float32, float16 or bfloat16, got {dtype}")


def head_dim(config: Any) -> int:
    """Width of one attention head, in columns."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def bytes_per_slot(config: Any, dtype: torch.dtype) -> int:
    """Memory of one token's keys and values in all layers, by the configuration, in bytes."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * head_dim(config) * dtype.itemsize)


def attention_span(config: Any) -> tuple[int, str]:
    """Most tokens of a sequence for which attention is plain and causal, and the reason for that limit.

    Up to a length, sliding and chunked attention equal plain attention, and rotary embeddings that change with the
    length stay the same. Raises UnsupportedModelError when a layer is not attention of one of these kinds.
    """
    known = {"full_attention", "sliding_attention", "chunked_attention"}
    layer_types = set(getattr(config, "layer_types", None) or ())
    if "recurrent" in (getattr(config, "layers_block_type", None) or ()):
        layer_types.add("recurrent")
    refused = f"model type {config.model_type!r} cannot be scored by prefix sharing"
    if getattr(config, "num_attention_heads", None) is None:
        raise UnsupportedModelError(f"{refused}: it has no attention, whose keys and values could be shared")
    if foreign := sorted(layer_types - known):
        raise UnsupportedModelError(f"{refused}: it has {', '.join(foreign)} layers, expected plain attention")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None):
            raise UnsupportedModelError(f"model type {config.model_type!r} cannot be scored exactly: it sets {name}")
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "use_bidirectional_attention", False):
        raise UnsupportedModelError(f"model type {config.model_type!r} is not a causal decoder")
    limits = [(getattr(config, "max_position_embeddings", None), "max_position_embeddings")]
    if "sliding_attention" in layer_types or (not layer_types and getattr(config, "use_sliding_window", True)):
        limits.append((getattr(config, "sliding_window", None), "its sliding window; beyond, attention is not plain"))
    if "chunked_attention" in layer_types:
        limits.append((config.attention_chunk_size, "its attention chunk; beyond, attention is not plain"))
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in rope.values() if all(isinstance(v, dict) for v in rope.values()) else [rope]:
        if parameters.get("rope_type") in ("dynamic", "longrope"):
            original = parameters.get("original_max_position_embeddings") or config.max_position_embeddings
            limits.append((original, f"its {parameters['rope_type']} rotary embedding; beyond, it changes with length"))
    finite = [(limit, reason) for limit, reason in limits if limit]
    return min(finite) if finite else (2**31 - 1, "no limit known")


def plain_output_embedding(model: Any) -> nn.Module:
    """The output embedding of a model whose logits are its product with the last hidden state.

    Raises UnsupportedModelError where there is none, or where the logits are scaled.
    """
    head: nn.Module | None = model.get_output_embeddings()
    config = model.config.get_text_config(decoder=True)
    if model.base_model is model:
        raise UnsupportedModelError(f"{type(model).__name__} has no base model that gives hidden states")
    for name in ("logits_scaling", "logit_scale"):
        if getattr(config, name, 1) not in (None, 1, 1.0):
            raise UnsupportedModelError(f"model type {config.model_type!r} scales its logits by {name}")
    if head is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no output embedding to read label logits from")
    return head


def check_label_ids(label_ids: Sequence[int], rows: int) -> None:
    """Raises UnsupportedModelError unless the output embedding, of so many rows, has the label tokens."""
    if max(label_ids) >= rows:
        raise UnsupportedModelError(
            f"the labels are tokens {label_ids[0]} and {label_ids[1]}, but the model has logits of {rows} tokens: the "
            "tokenizer is another model's"
        )


def check_plain_attention(module: nn.Module, key: Tensor, value: Tensor, options: dict[str, Any]) -> None:
    """Raises UnsupportedModelError when a layer asks attention for anything but plain causal attention."""
    name = type(module).__name__
    for argument in _FOREIGN_ARGUMENTS:
        if options.get(argument) is not None:
            raise UnsupportedModelError(f"{name} cannot be scored exactly: its attention uses {argument}")
    if options.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedModelError(f"{name} cannot be scored by prefix sharing: its attention is not causal")
    if key.shape[-1] != value.shape[-1]:
        raise UnsupportedModelError(f"{name} has keys of width {key.shape[-1]} and values of {value.shape[-1]}")
