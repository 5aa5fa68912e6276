"""Checkpoints of the dense families, written so that a forgotten tensor shows, and dense runners on them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

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


def store_as_fp8(folder: Path, block: tuple[int, int] = (8, 16), dtype: torch.dtype = torch.bfloat16) -> None:
    """Changes a checkpoint to one whose products have weights of FP8 with one factor a block, as Qwen3's are stored.

    Blocks at the end of rows and columns may be cut. `dtype`: of the factors.
    """
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            values_OD, scales_PQ = in_blocks(tensors[name].float(), block, dtype)
            tensors |= {name: values_OD, f"{name}_scale_inv": scales_PQ}
        save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": list(block)
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def in_blocks(weight_OD: Tensor, block: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """FP8 numbers of a weight, and their factors [P, Q]."""
    values_OD = torch.empty_like(weight_OD, dtype=torch.float8_e4m3fn)
    rows = []
    for row in range(0, weight_OD.shape[0], block[0]):
        factors = []
        for column in range(0, weight_OD.shape[1], block[1]):
            place = slice(row, row + block[0]), slice(column, column + block[1])
            factors.append((weight_OD[place].abs().max() / 400).to(dtype))
            values_OD[place] = (weight_OD[place] / factors[-1].float()).to(torch.float8_e4m3fn)
        rows.append(torch.stack(factors))
    return values_OD, torch.stack(rows)


def dense_runner(
    folder: Path,
    config: Any,
    dtype: torch.dtype = torch.float32,
    attention: str = "auto",
    *,
    device: str = "cpu",
    products: str = "auto",
    deterministic: bool = False,
    quantization: str | None = None,
) -> DenseRunner:
    model = read_dense_model(str(folder), config, LABELS, torch.device(device), dtype, quantization=quantization)
    return DenseRunner(model, config, attention, products=products, deterministic=deterministic)
