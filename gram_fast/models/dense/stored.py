"""Tensors of a checkpoint as plain numbers, those too that are FP8 with one factor a block, as in Qwen3.

Shape letters: O rows and D columns of a weight, P and Q rows and columns of its blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gram_fast.errors import InputError

_SCALES = "_scale_inv"
_FP8 = "F8_E4M3"
_SCALE_DTYPES = ("F32", "BF16", "F16")


def block_sizes(config: Any) -> tuple[int, int] | None:
    """Rows and columns of the blocks of a checkpoint's FP8 weights; None where they are not said.

    `config`: of the checkpoint, with a `quantization_config`.
    """
    settings = config.quantization_config
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    sizes = settings.get("weight_block_size")
    is_fp8 = settings.get("quant_method") == "fp8" and settings.get("fmt", "e4m3") == "e4m3"
    if not is_fp8 or not isinstance(sizes, list | tuple) or len(sizes) != 2:
        return None
    return tuple(sizes) if all(type(size) is int and size > 0 for size in sizes) else None


@dataclass(frozen=True)
class StoredTensors:
    """Tensors of opened safetensors files by name. A weight of FP8 has its factors beside it in NAME_scale_inv."""

    tensors: Mapping[str, Any]
    block: tuple[int, int] | None
    """Rows and columns of a block of FP8 numbers with one factor."""

    @classmethod
    def of(cls, tensors: Mapping[str, Any], config: Any) -> "StoredTensors":
        """The tensors of a checkpoint with this configuration."""
        is_quantized = getattr(config, "quantization_config", None) is not None
        return cls(tensors, block_sizes(config) if is_quantized else None)

    @property
    def scales(self) -> set[str]:
        """Names of the factors of FP8 weights."""
        return {key + _SCALES for key in self.tensors if self._is_fp8(key) and key + _SCALES in self.tensors}

    @property
    def problem(self) -> str | None:
        """The reason why weights cannot be read as plain numbers, or None when they can."""
        for key in filter(self._is_fp8, self.tensors):
            if self.block is None or key + _SCALES not in self.tensors or not key.endswith("_proj.weight"):
                return f"its tensor {key!r} is FP8: expected that of weights of products alone, in blocks with factors"
            if (dtype := self.tensors[key + _SCALES].get_dtype()) not in _SCALE_DTYPES:
                return f"its tensor {key + _SCALES!r} is stored as {dtype}, expected one of {', '.join(_SCALE_DTYPES)}"
        return None

    def check_shape(self, key: str, expected: list[int], where: str) -> None:
        """Raises InputError unless a tensor has the shape, and its factors that of its blocks."""
        shapes = {key: expected}
        if self._is_fp8(key) and self.block is not None:
            shapes[key + _SCALES] = [-(-size // part) for size, part in zip(expected, self.block, strict=True)]
        for name, shape in shapes.items():
            if (found := self.tensors[name].get_shape()) != shape:
                raise InputError(f"{where}: {name}: expected shape {shape}, got {found}")

    def read(self, key: str, part: tuple[slice, ...], device: torch.device) -> Tensor:
        """A part of a tensor: as it is stored, on the CPU; of FP8 numbers their products with the factors in float32.

        These are made on `device`, of the whole tensor.
        """
        if not self._is_fp8(key):
            stored: Tensor = self.tensors[key][part]
            return stored
        assert self.block is not None, "no problem was found"
        values_OD, scales_PQ = (self.tensors[name][:].to(device).float() for name in (key, key + _SCALES))
        return times_blocks(values_OD, scales_PQ, self.block)[part]

    def _is_fp8(self, key: str) -> bool:
        return bool(self.tensors[key].get_dtype() == _FP8)


def times_blocks(values_OD: Tensor, scales_PQ: Tensor, block: tuple[int, int]) -> Tensor:
    """Multiplies the numbers of each block, of so many rows and columns, by its factor; blocks at the end are cut."""
    rows, columns = values_OD.shape
    scales_OQ = scales_PQ.repeat_interleave(block[0], dim=0)[:rows]
    return values_OD * scales_OQ.repeat_interleave(block[1], dim=1)[:, :columns]
