"""Bounds what a checkpoint's configuration asks for by what its files hold, before memory is taken.

A configuration is a text that anybody may have written: one wrong digit in it must not fill the memory of a machine.
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from gram_fast.errors import InputError, one_line
from gram_fast.models.files import opened

# transformers makes an object for each of these while it reads the configuration.
_PARTS = re.compile("layer|label|expert|block|depth")
_MOST_PARTS = 2**16
_LARGEST = 2**53
# Names that all configurations of transformers understand, whatever they call these sizes themselves.
_SIZES = (
    "hidden_size",
    "vocab_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
# Those that are no larger than some tensor has numbers.
_WIDTHS = ("hidden_size", "vocab_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
# Numbers of a model for each byte of its files: as many where a number has one bit.
_NUMBERS_PER_BYTE = 8


def check_numbers(values: dict[str, Any], where: str) -> None:
    """Raises InputError for an integer of a configuration, as it is in its file, that no model can have."""
    for key, value in _numbers(values):
        largest = _MOST_PARTS if _PARTS.search(key) else _LARGEST
        if isinstance(value, int) and abs(value) > largest:
            raise InputError(f"{where}: {key} is {value}, expected at most {largest}")


def check_configuration(config: Any, where: str) -> None:
    """Raises InputError for sizes below 1, and for rotary embeddings that transformers does not know."""
    has_own_code = bool(getattr(config, "auto_map", None))
    config = config.get_text_config(decoder=True)
    for name in _SIZES:
        for size in _values(config, name):
            if size < 1:
                raise InputError(f"{where}: {name} is {size}, expected at least 1")
    for inner in _values(config, "intermediate_size"):
        if inner < 0:
            raise InputError(f"{where}: intermediate_size is {inner}, expected at least 0")
    known = ("default", *ROPE_INIT_FUNCTIONS)
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in rope.values() if all(isinstance(v, dict) for v in rope.values()) else [rope]:
        rope_type = parameters.get("rope_type", "default")
        if rope_type not in known and not has_own_code:
            raise InputError(f"{where}: there is no rope_type {rope_type!r}: expected one of {', '.join(known)}")
        for name, largest in (("rope_theta", math.inf), ("factor", math.inf), ("partial_rotary_factor", 1)):
            value = parameters.get(name)
            if value is not None and not (isinstance(value, int | float) and 0 < value <= largest):
                raise InputError(f"{where}: {name} of the rotary embedding is {value!r}, expected a positive number")


def check_sizes(config: Any, files: Sequence[Path], where: str) -> None:
    """Raises InputError for sizes of a configuration that are larger than any weight of its safetensors files.

    Also for weights that are no floating-point numbers, where the model is not quantized. Nothing is checked without
    files.
    """
    with opened(files) as tensors:
        largest = max((math.prod(tensor.get_shape()) for tensor in tensors.values()), default=0)
        dtypes = {key: tensor.get_dtype() for key, tensor in tensors.items() if key.endswith(".weight")}
    if not dtypes:
        return
    text = config.get_text_config(decoder=True)
    for name in ("num_hidden_layers", *_WIDTHS):
        bound = len(tensors) if name == "num_hidden_layers" else largest
        for value in _values(text, name):
            if value > bound:
                raise InputError(f"{where}: {name} is {value}, more than the {len(tensors)} weights of its files hold")
    if getattr(config, "quantization_config", None) is None:
        for key, dtype in dtypes.items():
            if not dtype.startswith(("F", "BF")):
                raise InputError(f"{where}: {key}: expected floating-point numbers, got {dtype}")


def check_fits(config: Any, kind: Any, files: Sequence[Path], where: str) -> None:
    """Raises InputError where a configuration describes a model that its files cannot hold.

    `kind`: transformers' class of the model. Also raises like `check_sizes`, which keeps the model that is made here,
    without memory for its weights, small.
    """
    check_sizes(config, [file for file in files if file.suffix == ".safetensors"], where)
    if is_deepspeed_zero3_enabled():  # It divides the weights of every model as it is made.
        return
    size = sum(file.stat().st_size for file in files)
    try:
        with torch.device("meta"):
            model = kind.from_config(config)
        count = sum(parameter.numel() for parameter in model.parameters())
    except Exception as error:  # transformers and torch raise anything for sizes that do not fit each other
        raise InputError(f"{where}: no model can be made of its configuration: {one_line(error)}") from error
    if count > _NUMBERS_PER_BYTE * size:
        raise InputError(f"{where}: its configuration describes {count} numbers, its files have {size} bytes")


def _values(config: Any, name: str) -> set[int]:
    """The whole numbers that a configuration has for a setting: several where layers differ."""
    is_heterogeneous = getattr(config, "is_heterogeneous", False)
    found = {getattr(layer, name, None) for layer in (config.per_layer_config if is_heterogeneous else [config])}
    return {value for value in found if isinstance(value, int)}


def _numbers(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All values of nested objects and lists, each with the key it is under."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _numbers(value, name)
    elif isinstance(values, list):
        for value in values:
            yield from _numbers(value, key)
    else:
        yield key, values
