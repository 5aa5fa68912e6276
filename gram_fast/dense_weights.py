"""Reads a Llama, Qwen2, Qwen3 or Mistral checkpoint from its safetensors straight into the dense runner's weights.

Every tensor goes from its shard to its place in the fused weight on the device; the host holds one tensor at a time.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from gram_fast.dense_model import DenseLayer, DenseModel, DenseShape
from gram_fast.errors import InputError, first_line

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types that the dense runner knows."""


def dense_problem(name: str, config: Any, **hub: Any) -> str | None:
    """Why the dense runner cannot run a checkpoint, or None when it can: from its configuration and its files' lists.

    `hub`: revision, token and trust_remote_code as in transformers. Raises InputError for a file that is broken.
    """
    remote_code = hub.pop("trust_remote_code", False)
    if config.model_type not in FAMILIES:
        return f"model type {config.model_type!r} is none of {', '.join(FAMILIES)}"
    if remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return "it brings code of its own"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act!r}, expected 'silu'"
    if getattr(config, "quantization_config", None) is not None:
        return "its weights are quantized"
    if (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0) != 1.0:
        return "it rotates a part of a head only"
    if _shape(config).head_dim > 256:
        return f"its heads are {_shape(config).head_dim} wide, expected at most 256"
    if _find(name, "adapter_config.json", **hub):
        return "it has an adapter beside its weights"
    with _opened(find_files(name, **hub)) as tensors:
        _, places = _empty_model(config, torch.device("meta"), torch.float32)
        missing = _needed(config, places) - set(tensors)
        unknown = {key for key in tensors if key not in places and not _is_passed_over(key)}
    if not tensors:
        return "it has no safetensors"
    if missing:
        return f"it lacks {len(missing)} weights of {config.model_type}, first {min(missing)!r}"
    return f"it has a weight that {config.model_type} does not know: {min(unknown)!r}" if unknown else None


def find_files(name: str, **hub: Any) -> list[Path]:
    """The safetensors files of a folder or of a name on the hub: one, or those of an index; none where it has others.

    `hub`: revision and token as in transformers.
    """
    if single := _find(name, "model.safetensors", **hub):
        return [single]
    index = _find(name, "model.safetensors.index.json", **hub)
    if index is None:
        return []
    files, _ = get_checkpoint_shard_files(os.path.expanduser(name), str(index), **hub)
    return [Path(file) for file in files]


def _find(name: str, file: str, **hub: Any) -> Path | None:
    found = cached_file(
        os.path.expanduser(name),
        file,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
    return Path(found) if found else None


def read_dense_model(
    name: str,
    config: Any,
    label_ids: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype | None,
    **hub: Any,
) -> DenseModel:
    """The model of a checkpoint on its device.

    Args:
        name: a folder with safetensors, or a name on the hub.
        config: its configuration.
        label_ids: the label tokens, whose rows of the output embedding are read.
        device, dtype: of the weights; None is the checkpoint's own dtype.
        hub: revision and token as in transformers.

    Raises InputError for a file that is broken and a weight of the wrong shape. `dense_problem` is None for the
    checkpoint.
    """
    with _opened(find_files(name, **hub)) as tensors:
        first = next(iter(tensors.values()))
        model, places = _empty_model(config, device, dtype or config.dtype or first[:].dtype)
        for key, place in places.items():
            shape = tensors[key].get_shape()
            if list(place.shape) != shape:
                raise InputError(f"checkpoint {name!r}: {key}: expected shape {list(place.shape)}, got {shape}")
            place.copy_(tensors[key][:])
        # Where both are stored and differ, transformers leaves a configuration's tying aside.
        output = tensors[_OUTPUT if _OUTPUT in tensors else _EMBEDDING]
        for row, label in enumerate(label_ids):
            model.label_weight_2D[row].copy_(output[label : label + 1][0])
    return model


_OUTPUT, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def _needed(config: Any, places: Collection[str]) -> set[str]:
    return {*places} if config.tie_word_embeddings else {*places, _OUTPUT}


def _is_passed_over(key: str) -> bool:
    """The output embedding is read by two rows; old checkpoints keep what is computed."""
    return key == _OUTPUT or key.endswith("rotary_emb.inv_freq")


@contextmanager
def _opened(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Slices of the files by name of tensor: nothing is read before they are indexed."""
    tensors = {}
    with ExitStack() as stack:
        for file in files:
            try:
                shard = stack.enter_context(safe_open(file, framework="pt", device="cpu"))
            except (SafetensorError, OSError) as error:
                raise InputError(f"cannot load weights from {str(file)!r}: {first_line(error)}") from error
            tensors.update({key: shard.get_slice(key) for key in shard.keys()})  # noqa: SIM118 - no mapping
        yield tensors


def _shape(config: Any) -> DenseShape:
    return DenseShape(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        norm_eps=config.rms_norm_eps,
    )


def _empty_model(config: Any, device: torch.device, dtype: torch.dtype) -> tuple[DenseModel, dict[str, Tensor]]:
    """A model without values, and where each tensor of a checkpoint belongs in it."""
    shape = _shape(config)
    # Qwen2 always has biases on its projections and none behind attention; the others say so.
    has_qkv_bias = config.model_type == "qwen2" or getattr(config, "attention_bias", False)
    has_out_bias = config.model_type != "qwen2" and getattr(config, "attention_bias", False)
    has_mlp_bias = getattr(config, "mlp_bias", False)
    has_head_norms = config.model_type == "qwen3"

    def empty(*size: int) -> Tensor:
        return torch.empty(size, dtype=dtype, device=device)

    width, queries = shape.hidden_size, shape.num_heads * shape.head_dim
    keys, inner = shape.num_kv_heads * shape.head_dim, shape.intermediate_size
    model = DenseModel(shape, empty(shape.vocab_size, width), [], empty(width), empty(2, width))
    places = {"model.embed_tokens.weight": model.embedding_VD, "model.norm.weight": model.final_norm_D}
    for index in range(shape.num_layers):
        layer = DenseLayer(
            input_norm_D=empty(width),
            qkv_weight=empty(queries + 2 * keys, width),
            qkv_bias=empty(queries + 2 * keys) if has_qkv_bias else None,
            q_norm_E=empty(shape.head_dim) if has_head_norms else None,
            k_norm_E=empty(shape.head_dim) if has_head_norms else None,
            out_weight=empty(width, queries),
            out_bias=empty(width) if has_out_bias else None,
            post_norm_D=empty(width),
            gate_up_weight=empty(2 * inner, width),
            gate_up_bias=empty(2 * inner) if has_mlp_bias else None,
            down_weight=empty(width, inner),
            down_bias=empty(width) if has_mlp_bias else None,
        )
        model.layers.append(layer)
        of_layer: dict[str, Tensor | None] = {
            "input_layernorm.weight": layer.input_norm_D,
            "post_attention_layernorm.weight": layer.post_norm_D,
            "self_attn.q_norm.weight": layer.q_norm_E,
            "self_attn.k_norm.weight": layer.k_norm_E,
            "self_attn.o_proj.weight": layer.out_weight,
            "self_attn.o_proj.bias": layer.out_bias,
            "mlp.down_proj.weight": layer.down_weight,
            "mlp.down_proj.bias": layer.down_bias,
        }
        for kind, qkv, gate_up in (
            ("weight", layer.qkv_weight, layer.gate_up_weight),
            ("bias", layer.qkv_bias, layer.gate_up_bias),
        ):
            if qkv is not None:
                parts = torch.split(qkv, [queries, keys, keys])
                of_layer |= {f"self_attn.{p}_proj.{kind}": part for p, part in zip("qkv", parts, strict=True)}
            if gate_up is not None:
                halves = gate_up.chunk(2)
                of_layer |= {f"mlp.{p}_proj.{kind}": half for p, half in zip(("gate", "up"), halves, strict=True)}
        places |= {f"model.layers.{index}.{key}": place for key, place in of_layer.items() if place is not None}
    return model, places
