"""Reads a Llama, Qwen2, Qwen3 or Mistral checkpoint from its safetensors straight into the dense runner's weights.

Every tensor goes from its shard to its place in the fused weight on the device; the host holds one tensor at a time.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gram_fast.dense_model import DenseLayer, DenseModel, DenseShape
from gram_fast.errors import InputError, first_line

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types that the dense runner knows."""

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


def dense_problem(config: Any) -> str | None:
    """Why the dense runner cannot run a model of this configuration, or None when it can."""
    if config.model_type not in FAMILIES:
        return f"model type {config.model_type!r} is none of {', '.join(FAMILIES)}"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act!r}, expected 'silu'"
    if getattr(config, "quantization_config", None) is not None:
        return "its weights are quantized"
    if (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0) != 1.0:
        return "it rotates a part of a head only"
    return None


def find_files(name: str, **hub: Any) -> list[Path]:
    """The safetensors files of a folder, or of a name on the hub, in the order of their names.

    `hub`: revision and token as in transformers. Raises InputError when there are none.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json"], **hub))
        except Exception as error:  # huggingface_hub raises anything for a name that is not there
            raise InputError(f"cannot load {name!r} from the hub: {first_line(error)}") from error
    if (folder / _INDEX).exists():
        names = sorted(set(json.loads((folder / _INDEX).read_text("utf-8"))["weight_map"].values()))
    else:
        names = [_SINGLE]
    files = [folder / file for file in names]
    if missing := [file.name for file in files if not file.exists()]:
        raise InputError(f"checkpoint {name!r}: expected the file {missing[0]}")
    return files


def read_dense_model(
    name: str, config: Any, label_ids: tuple[int, int], device: torch.device, dtype: torch.dtype, **hub: Any
) -> DenseModel:
    """The model of a checkpoint on its device.

    Args:
        name: a folder with safetensors, or a name on the hub.
        config: its configuration, one for which `dense_problem` is None.
        label_ids: the label tokens, whose rows of the output embedding are read.
        device, dtype: of the weights.
        hub: revision and token as in transformers.

    Raises InputError when there is no such checkpoint, or when it lacks a tensor or has one that the architecture does
    not know, naming it.
    """
    model, places = _empty_model(config, device, dtype)
    output = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    missing = {*places, output}
    with ExitStack() as files:
        for key, tensor in _tensors(find_files(name, **hub), files):
            if key == output:
                for row, label in enumerate(label_ids):
                    model.label_weight_2D[row].copy_(tensor[label : label + 1][0])
                missing.discard(key)
            if key in places:
                place = places[key]
                if list(place.shape) != tensor.get_shape():
                    raise InputError(
                        f"checkpoint {name!r}: {key}: expected shape {list(place.shape)}, got {tensor.get_shape()}"
                    )
                place.copy_(tensor[:])
                missing.discard(key)
            elif key != output and not key.endswith("rotary_emb.inv_freq") and key != "lm_head.weight":
                raise InputError(f"checkpoint {name!r} has a weight that {config.model_type} does not know: {key!r}")
    if missing:
        raise InputError(
            f"checkpoint {name!r} lacks {len(missing)} weights of {config.model_type}, first {min(missing)!r}"
        )
    return model


def _tensors(files: list[Path], stack: ExitStack) -> Iterator[tuple[str, Any]]:
    """(name, slice of the file) of every tensor, shard by shard."""
    for file in files:
        try:
            shard = stack.enter_context(safe_open(file, framework="pt", device="cpu"))
        except (SafetensorError, OSError) as error:
            raise InputError(f"cannot load weights from {str(file)!r}: {first_line(error)}") from error
        for key in shard.keys():  # noqa: SIM118 - no mapping
            yield key, shard.get_slice(key)


def _empty_model(config: Any, device: torch.device, dtype: torch.dtype) -> tuple[DenseModel, dict[str, Tensor]]:
    """A model without values, and where each tensor of a checkpoint belongs in it."""
    shape = DenseShape(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        norm_eps=config.rms_norm_eps,
    )
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
