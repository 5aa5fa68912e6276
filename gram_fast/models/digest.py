"""Digests of a loaded checkpoint, by which a later run tells whether it has the same judge."""

import hashlib
from typing import Any

import torch

from gram_fast.models.named_weights import named_weights
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
    """Digest of a sample of every weight of a runner's model."""
    found = hashlib.sha256()
    for _, tensor in sorted(named_weights(model), key=lambda named: named[0]):
        flat = tensor.detach().reshape(-1)
        # An odd step, so that the sample of a matrix is not one column.
        sample = flat[:: max(1, len(flat) // _SAMPLE) | 1].contiguous()
        found.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        found.update(sample.view(torch.uint8).cpu().numpy().tobytes())
    return found.hexdigest()[:16]
