"""Checks whether prefix sharing scores an architecture exactly, for both runners and for training."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from gram_fast.errors import UnsupportedModelError
from gram_fast.models.output import OutputTransform
from gram_fast.ops.checks import DTYPES
from gram_fast.ops.tables import Window

# Arguments of transformers' attention functions that change the result: those that tree_attention has, and others.
_KNOWN_ARGUMENTS = ("softcap", "s_aux")
_FOREIGN_ARGUMENTS = ("sinks", "position_bias", "head_mask", "alibi")

# Kinds of layers that mix tokens without attention: recurrences, short convolutions, and either beside attention.
_LINEAR = {"linear_attention", "conv", "hybrid"}
_WITHOUT_ATTENTION = {"linear_attention", "conv", "mlp", "moe"}


def check_dtype(dtype: torch.dtype) -> None:
    """Raises UnsupportedModelError unless the ops take the dtype."""
    if dtype not in DTYPES:
        raise UnsupportedModelError(f"expected a model in float32, float16 or bfloat16, got {dtype}")


def layer_configs(config: Any) -> list[Any]:
    """The configuration of each layer: in some families, as Gemma 4, layers differ in their sizes."""
    is_heterogeneous = getattr(config, "is_heterogeneous", False)
    return list(config.per_layer_config) if is_heterogeneous else [config] * config.num_hidden_layers


def head_dim(config: Any) -> int:
    """Width of one attention head's keys, in columns; of the widest, where layers differ."""
    return max(map(_head_dim, layer_configs(config)))


def _is_latent(config: Any) -> bool:
    """Whether keys have a part that is rotated, which the heads share, and one that is not."""
    return getattr(config, "qk_nope_head_dim", None) is not None


def bytes_per_slot(config: Any, dtype: torch.dtype) -> int:
    """Memory of one token's keys and values in all layers, by the configuration, in bytes."""
    layers = [
        layer for layer, kind in zip(layer_configs(config), layer_types(config), strict=True)
        if kind not in _WITHOUT_ATTENTION
    ]  # fmt: skip
    return int(2 * sum(_kv_heads(layer) * _head_dim(layer) for layer in layers) * dtype.itemsize)


def _kv_heads(layer: Any) -> int:
    # Latent attention: keys and values of every head, made of the latent ones, and values as wide as keys.
    grouped = None if _is_latent(layer) else getattr(layer, "num_key_value_heads", None)
    return int(grouped or layer.num_attention_heads)


def _head_dim(layer: Any) -> int:
    if _is_latent(layer):
        return int(layer.qk_nope_head_dim + layer.qk_rope_head_dim)
    return int(getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads)


def layer_types(config: Any) -> list[str | None]:
    """The kind of each layer; None where a configuration names none."""
    return getattr(config, "layer_types", None) or [None] * config.num_hidden_layers


def attention_layers(config: Any) -> int:
    """Number of layers with attention."""
    return sum(kind not in _WITHOUT_ATTENTION for kind in layer_types(config))


def linear_layers(config: Any) -> int:
    """Number of layers that mix tokens without attention, beside it or in its place."""
    return sum(kind in _LINEAR for kind in layer_types(config))


def attention_span(config: Any) -> tuple[int, str]:
    """Most tokens of a sequence that are scored exactly, and the reason for that limit.

    Up to a length, rotary embeddings that change with it stay the same. Raises UnsupportedModelError when a layer is
    neither attention over keys and values, full or over a window of them, nor a mixer of tokens that states can be
    kept of.
    """
    known = {"full_attention", "sliding_attention", "chunked_attention", *_LINEAR, *_WITHOUT_ATTENTION}
    kinds = set(getattr(config, "layer_types", None) or ())
    if "recurrent" in (getattr(config, "layers_block_type", None) or ()):
        kinds.add("recurrent")
    refused = f"model type {config.model_type!r} cannot be scored by prefix sharing"
    if getattr(config, "num_attention_heads", None) is None or (kinds and kinds <= _WITHOUT_ATTENTION):
        raise UnsupportedModelError(f"{refused}: it has no attention, whose keys and values could be shared")
    if foreign := sorted(kinds - known):
        raise UnsupportedModelError(f"{refused}: it has {', '.join(foreign)} layers, which are not known here")
    # Of "vision" attention is bidirectional among tokens of an image.
    is_bidirectional = getattr(config, "use_bidirectional_attention", None) not in (None, False, "vision")
    if getattr(config, "is_encoder_decoder", False) or is_bidirectional:
        raise UnsupportedModelError(f"model type {config.model_type!r} is not a causal decoder")
    limits = [(getattr(config, "max_position_embeddings", None), "max_position_embeddings")]
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in rope.values() if all(isinstance(v, dict) for v in rope.values()) else [rope]:
        if parameters.get("rope_type") in ("dynamic", "longrope"):
            original = parameters.get("original_max_position_embeddings") or config.max_position_embeddings
            limits.append((original, f"its {parameters['rope_type']} rotary embedding; beyond, it changes with length"))
    finite = [(limit, reason) for limit, reason in limits if limit]
    return min(finite) if finite else (2**31 - 1, "no limit known")


def plain_attention_span(config: Any) -> tuple[int, str]:
    """Most tokens for which attention is plain and causal in every layer, and the reason for that limit.

    As `attention_span`, but windows count: up to their size sliding and chunked attention equal plain attention. Raises
    UnsupportedModelError as `attention_span`, where scores or logits have a soft cap, and for layers without attention.
    """
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None):
            raise UnsupportedModelError(f"model type {config.model_type!r} has no plain attention: it sets {name}")
    if others := sorted(set(filter(None, layer_types(config))) & (_LINEAR | _WITHOUT_ATTENTION)):
        raise UnsupportedModelError(
            f"model type {config.model_type!r} has {', '.join(others)} layers, expected plain attention in all"
        )
    limits = [attention_span(config)]
    for window in set(filter(None, layer_windows(config))):
        what = "attention chunk" if window.is_chunked else "sliding window"
        limits.append((window.size, f"its {what}; beyond, attention is not plain"))
    return min(limits)


def layer_windows(config: Any) -> list[Window | None]:
    """The window of each layer that has one, by the configuration."""
    # Mistral does not read use_sliding_window.
    has_window = getattr(config, "use_sliding_window", True) or config.model_type == "mistral"
    sizes = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    found = []
    for kind, layer in zip(layer_types(config), layer_configs(config), strict=True):
        kind = kind or ("sliding_attention" if has_window else "full_attention")
        size = getattr(layer, sizes.get(kind, ""), None)
        found.append(Window(size, kind == "chunked_attention") if size else None)
    return found


def plain_output_embedding(model: Any) -> nn.Module:
    """The output embedding of a model whose logits are its product with the last hidden state, for training.

    Raises UnsupportedModelError where there is none, or where the logits are scaled or capped.
    """
    config = model.config.get_text_config(decoder=True)
    if not (transform := OutputTransform.of(config)).is_plain:
        raise UnsupportedModelError(f"model type {config.model_type!r} cannot be trained: its logits have {transform}")
    if model.base_model is model:
        raise UnsupportedModelError(f"{type(model).__name__} has no base model that gives hidden states")
    return output_embedding(model)


def base_of(model: Any) -> Any:
    """The base of a model, which gives hidden states. Raises UnsupportedModelError where there is none."""
    # Llama 4's does not stand where the class says.
    base = model.base_model if model.base_model is not model else getattr(model, "model", None)
    if base is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no base model that gives hidden states")
    if "position_ids" not in signature(base.forward).parameters:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be scored by prefix sharing: it takes no position_ids"
        )
    return base


def output_embedding(model: Any) -> nn.Module:
    """The output embedding of a model. Raises UnsupportedModelError where there is none."""
    head: nn.Module | None = model.get_output_embeddings()
    if head is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no output embedding to read label logits from")
    return head


def plain_attention(model: Any) -> str:
    """Which of transformers' own attention functions does what the layers ask: sdpa drops sinks and soft caps."""
    has_sinks = any("sink" in name for name, _ in model.named_parameters())
    config = model.config.get_text_config(decoder=True)
    return "eager" if has_sinks or getattr(config, "attn_logit_softcapping", None) else "sdpa"


def check_output(model: Any, base: nn.Module) -> None:
    """Raises UnsupportedModelError when weights stand between the last hidden state and the output embedding."""
    known = {id(weight) for part in (base, model.get_output_embeddings()) for weight in part.parameters()}
    between = [name for name, weight in model.named_parameters() if id(weight) not in known]
    if between:
        raise UnsupportedModelError(
            f"{type(model).__name__} has weights between its last hidden state and its output embedding: {between[0]!r}"
        )


def check_label_ids(label_ids: Sequence[int], rows: int) -> None:
    """Raises UnsupportedModelError unless the output embedding, of so many rows, has the label tokens."""
    if max(label_ids) >= rows:
        raise UnsupportedModelError(
            f"the labels are tokens {label_ids[0]} and {label_ids[1]}, but the model has logits of {rows} tokens: the "
            "tokenizer is another model's"
        )


def check_plain_attention(module: nn.Module, key: Tensor, value: Tensor, options: dict[str, Any]) -> None:
    """Raises UnsupportedModelError when a layer asks attention for anything but plain causal attention."""
    _check_arguments(module, options, _KNOWN_ARGUMENTS)
    check_attention(module, key, value, options)


def check_attention(module: nn.Module, key: Tensor, value: Tensor, options: dict[str, Any]) -> None:
    """Raises UnsupportedModelError when a layer asks for attention that `tree_attention` has not.

    It has windows, sinks (`s_aux`) and soft caps.
    """
    _check_arguments(module, options, _FOREIGN_ARGUMENTS)
    name = type(module).__name__
    if options.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedModelError(f"{name} cannot be scored by prefix sharing: its attention is not causal")
    if key.shape[-1] != value.shape[-1]:
        raise UnsupportedModelError(f"{name} has keys of width {key.shape[-1]} and values of {value.shape[-1]}")


def _check_arguments(module: nn.Module, options: dict[str, Any], foreign: Sequence[str]) -> None:
    for argument in foreign:
        if options.get(argument) is not None:
            name = type(module).__name__
            raise UnsupportedModelError(f"{name} cannot be scored exactly: its attention uses {argument}")
