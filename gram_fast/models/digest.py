"""Digests of a loaded checkpoint, by which a later run tells whether it has the same judge."""

import hashlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gram_fast.text.digest import digest

# Elements of each tensor that are read: training moves all of a tensor, so that a sample of it tells checkpoints apart,
# and reading all would take as long as loading.
_SAMPLE = 1024
# Keys of a configuration that say where and by what it was loaded.
_NOT_COMPARED = {"_name_or_path", "transformers_version", "_attn_implementation_autoset"}


def config_digest(config: Any) -> str:
    """Digest of a configuration of transformers, without where it is from and which version read it."""
    return digest({key: str(value) for key, value in config.to_diff_dict().items() if key not in _NOT_COMPARED})


def weights_digest(model: Any) -> str:
    """Digest of a sample of every tensor of a runner's model: a module, or a dataclass of tensors."""
    found = hashlib.sha256()
    for tensor in _tensors(model):
        flat = tensor.detach().reshape(-1)
        # An odd step, so that the sample of a matrix is not one column.
        sample = flat[:: max(1, len(flat) // _SAMPLE) | 1].contiguous()
        found.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        found.update(sample.view(torch.uint8).cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from (tensor for _, tensor in sorted(value.state_dict().items()))
    elif isinstance(value, list):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
