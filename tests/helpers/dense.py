"""Checkpoints of the dense families, written so that a forgotten tensor shows, and dense runners on them."""

from pathlib import Path
from typing import Any

import torch

from gram_fast.models.dense.runner import DenseRunner
from gram_fast.models.dense.weights import read_dense_model
from helpers.small_models import LABELS, tiny_model


def save_in_shards(folder: Path, family: str, **more: Any) -> Any:
    """A tiny checkpoint in several shards, and its model."""
    model = tiny_model(family, **more)
    # Random biases and norms: those of a new model are zeros and ones, and would hide a missing one.
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return model


def dense_runner(
    folder: Path,
    config: Any,
    dtype: torch.dtype = torch.float32,
    attention: str = "auto",
    *,
    device: str = "cpu",
    products: str = "auto",
    deterministic: bool = False,
) -> DenseRunner:
    model = read_dense_model(str(folder), config, LABELS, torch.device(device), dtype)
    return DenseRunner(model, config, attention, products=products, deterministic=deterministic)
