"""How a Triton kernel is launched, and what is compiled ahead of any GPU: one configuration of one kernel."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LaunchShape:
    """Block sizes and threads of one launch of an attention kernel."""

    block_m: int
    """Rows of queries."""
    block_n: int
    """Keys."""
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Compilation:
    """A kernel with the types and constants of one of its launches."""

    name: str
    """What the table calls it, as "tree_attention bf16 128"."""
    kernel: Any
    """The jitted function."""
    signature: dict[str, str]
    """Triton type of every argument that is no constant: "*bf16", "i32", "fp32"."""
    constants: dict[str, Any]
    """Values of the constexpr arguments."""
    num_warps: int
    num_stages: int
    capabilities: tuple[int, ...] = (80, 90, 100)
    """Compute capabilities for which a launch takes this configuration."""
    may_spill: bool = False
    """Whether registers are known to spill: right, but slow."""


TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""Triton's names of the dtypes."""
