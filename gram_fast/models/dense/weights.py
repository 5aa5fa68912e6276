"""Reads the safetensors of a Llama, Qwen2, Qwen3 or Mistral checkpoint into the weights of the dense runner.

Every tensor is copied from its file to its place in the fused weight on the device; the host holds one tensor at a
time.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gram_fast.errors import BackendError
from gram_fast.models.dense.fp8 import Fp8Weight, fp8_problem, width_problem
from gram_fast.models.dense.model import DenseLayer, DenseModel, DenseShape, Projection
from gram_fast.models.dense.products import Weight
from gram_fast.models.dense.stored import StoredTensors, block_sizes
from gram_fast.models.files import find_files, find_source, opened
from gram_fast.models.supported import check_label_ids, head_dim
from gram_fast.ops.backends import MAX_HEAD_DIM
from gram_fast.ops.tables import Window
from gram_fast.scoring.processes import ALONE, Processes

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types that the dense runner supports."""


def dense_problem(name: str, config: Any, **hub: Any) -> str | None:
    """The reason why the dense runner cannot run a checkpoint, or None when it can.

    Looks at the configuration and at the names of the stored tensors. `hub`: revision, token and trust_remote_code as
    in transformers. Raises InputError for a broken file.
    """
    remote_code = hub.pop("trust_remote_code", False)
    if config.model_type not in FAMILIES:
        return f"model type {config.model_type!r} is none of {', '.join(FAMILIES)}"
    if remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return "it brings code of its own"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act!r}, expected 'silu'"
    if getattr(config, "quantization_config", None) is not None and block_sizes(config) is None:
        return "its weights are quantized, and not as FP8 in blocks"
    if (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0) != 1.0:
        return "it rotates a part of a head only"
    if head_dim(config) > MAX_HEAD_DIM:
        return f"its heads are {head_dim(config)} wide, expected at most {MAX_HEAD_DIM}"
    if getattr(config, "transformers_weights", None) is not None:
        return "its configuration names a file of weights"
    if problem := _window_problem(config):
        return problem
    source = find_source(name, **hub)
    if source.adapter is not None:
        return "it is an adapter on a base"
    if source.gguf is not None:
        return "it is a GGUF file"
    with opened(find_files(name, **hub)) as tensors:
        if not tensors:
            return "it has no safetensors"
        _, places = _empty_model(config, torch.device("meta"), torch.float32, ALONE)
        stored = StoredTensors.of(tensors, config)
        missing = _needed(config, places) - set(tensors)
        unknown = {key for key in tensors if key not in places and not _is_passed_over(key)} - stored.scales
        if problem := stored.problem:
            return problem
    if missing:
        return f"it lacks {len(missing)} weights of {config.model_type}, first {min(missing)!r}"
    return f"it has a weight that {config.model_type} does not know: {min(unknown)!r}" if unknown else None


def dense_windows(config: Any) -> list[Window | None]:
    """The window of each layer, as the family's code reads the configuration: others' settings may stand in it too."""
    if config.model_type == "mistral":
        size = config.sliding_window
        return [None if size is None else Window(size)] * config.num_hidden_layers
    if config.model_type in ("qwen2", "qwen3"):
        return [Window(config.sliding_window) if kind == _SLIDING else None for kind in config.layer_types]
    return [None] * config.num_hidden_layers


def _window_problem(config: Any) -> str | None:
    """The reason why the windows of a configuration cannot be run, or None."""
    kinds = set(config.layer_types) if config.model_type in ("qwen2", "qwen3") else set()
    if other := sorted(kinds - {_SLIDING, "full_attention"}):
        return f"it has {', '.join(other)} layers"
    size = config.sliding_window if _SLIDING in kinds or config.model_type == "mistral" else None
    if (_SLIDING in kinds or size is not None) and not (isinstance(size, int) and size > 0):
        return f"its sliding_window is {size!r}, expected a positive number of tokens"
    return None


_SLIDING = "sliding_attention"


def read_dense_model(
    name: str,
    config: Any,
    label_ids: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype | None,
    processes: Processes = ALONE,
    quantization: str | None = None,
    **hub: Any,
) -> DenseModel:
    """Reads the model of a checkpoint, or this process's part of it, onto its device.

    Args:
        name: a folder with safetensors, or a name on the hub.
        config: its configuration.
        label_ids: token ids of the two labels; of the output embedding only their rows are read.
        device, dtype: of the weights; None for the checkpoint's own dtype.
        processes: those among which heads and feed-forward width are divided. Each reads its own rows and columns.
        quantization: one of QUANTIZATIONS (fp8.py), in which the weights of products are kept: each is quantized when
            it has been read, so that no more than one is held in another dtype.
        hub: revision and token as in transformers.

    `dense_problem` must be None for the checkpoint. Weights that are stored as FP8 are multiplied by their factors in
    float32, and what that gives is rounded or quantized. Raises InputError for a broken file and a weight of the wrong
    shape, BackendError when the number of processes does not divide the heads or the width, and where quantized weights
    cannot be multiplied.
    """
    sizes = {"key/value heads": config.num_key_value_heads, "feed-forward columns": config.intermediate_size}
    for what, size in sizes.items():
        if size % processes.count:
            raise BackendError(f"{name!r} has {size} {what}: they cannot be divided among {processes.count} processes")
    with opened(find_files(name, **hub)) as tensors:
        # Before memory is taken, for which the configuration alone is no bound.
        shapes, places = _empty_model(config, torch.device("meta"), torch.float32, processes)
        expected = {key: place.whole_shape(processes) for key, place in places.items()}
        if _OUTPUT in tensors:
            expected[_OUTPUT] = expected[_EMBEDDING]
        stored = StoredTensors.of(tensors, config)
        for key, shape in expected.items():
            stored.check_shape(key, shape, f"checkpoint {name!r}")
        first = next(iter(tensors.values()))
        dtype = dtype or config.dtype or first[:].dtype
        if quantization is not None:
            _check_fp8(shapes.layers, device, dtype)
        model, places = _empty_model(config, device, dtype, processes, quantization)
        for key, place in places.items():
            place.tensor.copy_(stored.read(key, place.part_of(expected[key], processes), device))
        # transformers ignores tied embeddings in the configuration when both are stored and differ.
        output = tensors[_output_of(tensors)]
        check_label_ids(label_ids, output.get_shape()[0])
        for row, label in enumerate(label_ids):
            model.label_weight_2D[row].copy_(output[label : label + 1][0])
    return replace(model, read_output=partial(_read_output, name, **hub))


def _check_fp8(layers: Sequence[DenseLayer], device: torch.device, dtype: torch.dtype) -> None:
    """Raises BackendError when products with quantized weights of these shapes cannot run on the device."""
    shapes = {projection.weight.shape for layer in layers for projection in layer.projections}
    for problem in (fp8_problem(device, dtype), *(width_problem(shape, device) for shape in sorted(shapes))):
        if problem:
            raise BackendError(problem)


def _read_output(name: str, **hub: Any) -> Iterator[Tensor]:
    """Reads the output embedding of a checkpoint from its files -> chunks of its rows [C, D] on the CPU, in order."""
    with opened(find_files(name, **hub)) as tensors:
        output = tensors[_output_of(tensors)]
        for begin in range(0, output.get_shape()[0], _CHUNK):
            yield output[begin : begin + _CHUNK]


_OUTPUT, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
# Rows of the output embedding that are read at once, when all are: 64 MiB in 16 bits where the model is 4096 wide.
_CHUNK = 8192


def _output_of(tensors: Collection[str]) -> str:
    """Name of the output embedding's tensor: that of the input embedding where the two are tied."""
    return _OUTPUT if _OUTPUT in tensors else _EMBEDDING


@dataclass(frozen=True)
class _Place:
    """The place of a checkpoint's tensor, or of this process's part of it, in the model."""

    tensor: Weight
    divided: int | None = None
    """The dimension that is divided among processes, if any."""

    def whole_shape(self, processes: Processes) -> list[int]:
        return [
            size * processes.count if dimension == self.divided else size
            for dimension, size in enumerate(self.tensor.shape)
        ]

    def part_of(self, shape: Sequence[int], processes: Processes) -> tuple[slice, ...]:
        return tuple(
            processes.slice_of(size) if dimension == self.divided else slice(None)
            for dimension, size in enumerate(shape)
        )


def _needed(config: Any, places: Collection[str]) -> set[str]:
    return {*places} if config.tie_word_embeddings else {*places, _OUTPUT}


def _is_passed_over(key: str) -> bool:
    """Whether a tensor has no place in the model: two rows of the output embedding are read; inv_freq is computed."""
    return key == _OUTPUT or key.endswith("rotary_emb.inv_freq")


def _shape(config: Any, processes: Processes) -> DenseShape:
    return DenseShape(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size // processes.count,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads // processes.count,
        num_kv_heads=config.num_key_value_heads // processes.count,
        head_dim=head_dim(config),
        vocab_size=config.vocab_size,
        norm_eps=config.rms_norm_eps,
    )


def _empty_model(
    config: Any, device: torch.device, dtype: torch.dtype, processes: Processes, quantization: str | None = None
) -> tuple[DenseModel, dict[str, _Place]]:
    """A model with uninitialised weights, and the place of each tensor of a checkpoint in it."""
    shape = _shape(config, processes)

    def empty(*size: int) -> Tensor:
        return torch.empty(size, dtype=dtype, device=device)

    def empty_weight(outputs: int, inputs: int) -> Weight:
        return empty(outputs, inputs) if quantization is None else Fp8Weight.empty(outputs, inputs, device)

    width = shape.hidden_size
    embedding_VD, final_norm_D = empty(shape.vocab_size, width), empty(width)
    places = {_EMBEDDING: _Place(embedding_VD), "model.norm.weight": _Place(final_norm_D)}
    layers = []
    for index in range(shape.num_layers):
        layer = _empty_layer(config, shape, empty, empty_weight, is_last=index == shape.num_layers - 1)
        of_layer = _places_in(layer, shape)
        if processes.rank > 0:
            # The first process alone adds the bias of a sum over processes.
            layer.out.bias = layer.down.bias = None
            of_layer = {key: place for key, place in of_layer.items() if key not in _BIASES_OF_SUMS}
        layers.append(layer)
        places |= {f"model.layers.{index}.{key}": place for key, place in of_layer.items()}
    label_weight_2D = empty(2, width)
    return DenseModel(
        shape, embedding_VD, layers, final_norm_D, label_weight_2D, processes, quantization=quantization
    ), places


_BIASES_OF_SUMS = ("self_attn.o_proj.bias", "mlp.down_proj.bias")


def _empty_layer(
    config: Any,
    shape: DenseShape,
    empty: Callable[..., Tensor],
    empty_weight: Callable[[int, int], Weight],
    *,
    is_last: bool,
) -> DenseLayer:
    # Qwen2 always has biases on its projections and none behind attention; the others say so.
    has_qkv_bias = config.model_type == "qwen2" or getattr(config, "attention_bias", False)
    has_out_bias = config.model_type != "qwen2" and getattr(config, "attention_bias", False)
    has_mlp_bias = getattr(config, "mlp_bias", False)
    has_head_norms = config.model_type == "qwen3"
    width, queries = shape.hidden_size, shape.num_heads * shape.head_dim
    keys, inner = shape.num_kv_heads * shape.head_dim, shape.intermediate_size
    of_qkv = (queries, 2 * keys) if is_last else (queries + 2 * keys,)

    def projection(out: int, columns: int, has_bias: bool) -> Projection:
        return Projection(empty_weight(out, columns), empty(out) if has_bias else None)

    return DenseLayer(
        input_norm_D=empty(width),
        qkv=tuple(projection(out, width, has_qkv_bias) for out in of_qkv),
        q_norm_E=empty(shape.head_dim) if has_head_norms else None,
        k_norm_E=empty(shape.head_dim) if has_head_norms else None,
        out=projection(width, queries, has_out_bias),
        post_norm_D=empty(width),
        gate_up=projection(2 * inner, width, has_mlp_bias),
        down=projection(width, inner, has_mlp_bias),
    )


def _places_in(layer: DenseLayer, shape: DenseShape) -> dict[str, _Place]:
    """Places by name in a layer of a checkpoint.

    Projections to heads and to the feed-forward width are divided by rows, those back to the model width by columns.
    """
    whole: dict[str, tuple[Weight | None, int | None]] = {
        "input_layernorm.weight": (layer.input_norm_D, None),
        "post_attention_layernorm.weight": (layer.post_norm_D, None),
        "self_attn.q_norm.weight": (layer.q_norm_E, None),
        "self_attn.k_norm.weight": (layer.k_norm_E, None),
        "self_attn.o_proj.weight": (layer.out.weight, 1),
        "self_attn.o_proj.bias": (layer.out.bias, None),
        "mlp.down_proj.weight": (layer.down.weight, 1),
        "mlp.down_proj.bias": (layer.down.bias, None),
    }
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    for kind in ("weight", "bias"):
        qkv, gate_up = [getattr(projection, kind) for projection in layer.qkv], getattr(layer.gate_up, kind)
        if qkv[0] is not None:
            sizes = ([queries, keys, keys],) if len(qkv) == 1 else ([queries], [keys, keys])
            parts = [part for tensor, of in zip(qkv, sizes, strict=True) for part in tensor.split(of)]
            whole |= {f"self_attn.{p}_proj.{kind}": (part, 0) for p, part in zip("qkv", parts, strict=True)}
        if gate_up is not None:
            halves = gate_up.split([shape.intermediate_size] * 2)
            whole |= {f"mlp.{p}_proj.{kind}": (half, 0) for p, half in zip(("gate", "up"), halves, strict=True)}
    return {key: _Place(tensor, divided) for key, (tensor, divided) in whole.items() if tensor is not None}
