"""Inputs of the memory-bound ops for benchmarks/kernel_speed/run.py, and the fewest bytes that each must move.

Shape letters: T packed tokens, D model width, H query heads, K key/value heads, E head width, F feed-forward width,
L leaves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernel_speed.shapes import Heads
from gram_fast import ops


@dataclass(frozen=True)
class OpCase:
    """One op at one shape, with activations of two bytes an element."""

    op: str
    shape: str
    num_bytes: int
    """Every input read once, every output written once."""
    prepare: Callable[[torch.device, torch.dtype], Callable[[str], Any]]
    """(device, dtype of activations) -> a function that runs the op with the backend of that name."""


def merge_states(tokens: int, heads: Heads) -> OpCase:
    """Describes the merge of two partial attention results."""
    rows, width = tokens * heads.num_heads, heads.width

    def prepare(device: torch.device, dtype: torch.dtype) -> Callable[[str], Any]:
        shape = (tokens, heads.num_heads)
        out_THE, lse_TH = torch.randn(*shape, width, device=device), torch.randn(shape, device=device)
        other_THE, other_TH = torch.randn_like(out_THE).to(dtype), torch.randn_like(lse_TH)
        return lambda backend: ops.merge_states(out_THE, lse_TH, other_THE, other_TH, backend=backend)

    shape = f"T = {tokens}, H = {heads.num_heads}, E = {width}"
    return OpCase("merge_states", shape, rows * (width * (4 + 2 + 4) + 3 * 4), prepare)


def label_logits(leaves: int, width: int) -> OpCase:
    """Describes the final norm and the two label logits of leaves."""

    def prepare(device: torch.device, dtype: torch.dtype) -> Callable[[str], Any]:
        hidden_TD = torch.randn(leaves, width, device=device, dtype=dtype)
        rows_L = torch.randperm(leaves, device=device)
        label_2D = torch.randn(2, width, device=device, dtype=dtype)
        norm_D = torch.ones(width, device=device, dtype=dtype)
        return lambda backend: ops.label_logits(hidden_TD, rows_L, label_2D, norm_D, 1e-6, backend=backend)

    return OpCase("label_logits", f"L = {leaves}, D = {width}", leaves * (2 * width + 8 + 8) + 3 * 2 * width, prepare)


def add_rms_norm(tokens: int, width: int) -> OpCase:
    """Describes the sum of residual and update with its norm."""

    def prepare(device: torch.device, dtype: torch.dtype) -> Callable[[str], Any]:
        residual_TD, x_TD = (torch.randn(tokens, width, device=device, dtype=dtype) for _ in range(2))
        weight_D = torch.ones(width, device=device, dtype=dtype)
        return lambda backend: ops.add_rms_norm(residual_TD, x_TD, weight_D, 1e-6, backend=backend)

    return OpCase("add_rms_norm", f"T = {tokens}, D = {width}", 2 * width * (4 * tokens + 1), prepare)


def rotary_into_cache(tokens: int, heads: Heads) -> OpCase:
    """Describes the norm and rotation of queries and keys, with the write to the key/value buffers."""
    channels, width = heads.num_heads + 2 * heads.num_kv_heads, heads.width

    def prepare(device: torch.device, dtype: torch.dtype) -> Callable[[str], Any]:
        def normal(count: int) -> Tensor:
            return torch.randn(tokens, count, width, device=device, dtype=dtype)

        qkv_TCE, k_SKE, v_SKE = normal(channels), normal(heads.num_kv_heads), normal(heads.num_kv_heads)
        angles_TF = torch.rand(tokens, width // 2, device=device)
        cos_TF, sin_TF = angles_TF.cos(), angles_TF.sin()
        norm_E = torch.ones(width, device=device, dtype=dtype)
        return lambda backend: ops.rotary_into_cache(
            qkv_TCE, cos_TF, sin_TF, k_SKE, v_SKE, norm_E, norm_E, 1e-6, heads.num_heads, backend=backend
        )

    shape = f"T = {tokens}, H = {heads.num_heads}, K = {heads.num_kv_heads}, E = {width}"
    return OpCase("rotary_into_cache", shape, tokens * (2 * 2 * channels * width + 4 * width) + 2 * 2 * width, prepare)


def swiglu(tokens: int, width: int) -> OpCase:
    """Describes the gated activation."""

    def prepare(device: torch.device, dtype: torch.dtype) -> Callable[[str], Any]:
        gate_up_TG = torch.randn(tokens, 2 * width, device=device, dtype=dtype)
        return lambda backend: ops.swiglu(gate_up_TG, backend=backend)

    return OpCase("swiglu", f"T = {tokens}, F = {width}", 2 * 3 * tokens * width, prepare)


def quantize_rows(tokens: int, width: int) -> OpCase:
    """Describes the rounding of activations to FP8."""

    def prepare(device: torch.device, dtype: torch.dtype) -> Callable[[str], Any]:
        x_TD = torch.randn(tokens, width, device=device, dtype=dtype)
        return lambda backend: ops.quantize_rows(x_TD, backend=backend)

    return OpCase("quantize_rows", f"T = {tokens}, D = {width}", tokens * (3 * width + 4), prepare)


def add_rms_norm_fp8(tokens: int, width: int) -> OpCase:
    """Describes the sum of residual and update with its norm, which is quantized."""

    def prepare(device: torch.device, dtype: torch.dtype) -> Callable[[str], Any]:
        residual_TD, x_TD = (torch.randn(tokens, width, device=device, dtype=dtype) for _ in range(2))
        weight_D = torch.ones(width, device=device, dtype=dtype)
        return lambda backend: ops.add_rms_norm_fp8(residual_TD, x_TD, weight_D, 1e-6, backend=backend)

    return OpCase("add_rms_norm_fp8", f"T = {tokens}, D = {width}", tokens * (7 * width + 4) + 2 * width, prepare)


def swiglu_fp8(tokens: int, width: int) -> OpCase:
    """Describes the gated activation, which is quantized."""

    def prepare(device: torch.device, dtype: torch.dtype) -> Callable[[str], Any]:
        gate_up_TG = torch.randn(tokens, 2 * width, device=device, dtype=dtype)
        return lambda backend: ops.swiglu_fp8(gate_up_TG, backend=backend)

    return OpCase("swiglu_fp8", f"T = {tokens}, F = {width}", tokens * (5 * width + 4), prepare)


def op_cases(heads: Heads, model_width: int, feed_forward: int, tokens: int) -> list[OpCase]:
    """Lists every memory-bound op, each over `tokens` tokens of a model."""
    return [
        merge_states(tokens, heads),
        label_logits(tokens, model_width),
        add_rms_norm(tokens, model_width),
        rotary_into_cache(tokens, heads),
        swiglu(tokens, feed_forward),
        quantize_rows(tokens, model_width),
        add_rms_norm_fp8(tokens, model_width),
        swiglu_fp8(tokens, feed_forward),
    ]
