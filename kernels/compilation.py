"""Launch configurations of Triton kernels, and what it takes to compile one without a GPU."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LaunchShape:
    """Block sizes and warps of one launch of an attention kernel."""

    block_m: int
    """Query rows of a block."""
    block_n: int
    """Keys of a block."""
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Compilation:
    """A kernel with the argument types and constants of one launch."""

    name: str
    """Name in the table, such as "tree_attention bf16 128"."""
    kernel: Any
    """The jitted function."""
    signature: dict[str, str]
    """Triton types of the arguments that are not constants: "*bf16", "i32", "fp32"."""
    constants: dict[str, Any]
    """Values of the constexpr arguments."""
    num_warps: int
    num_stages: int
    capabilities: tuple[int, ...] = (80, 90, 100)
    """Compute capabilities, times ten, on which a launch has this configuration."""
    may_spill: bool = False
    """Whether registers are known to spill, which is correct but slow."""


TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""Triton's names of dtypes."""
