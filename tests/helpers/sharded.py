"""One process of two: trains a tiny model sharded by FSDP2 over gloo and writes its gradients.

python sharded.py OBJECTIVE tied|untied FILE, launched by torch.distributed.run. Parameters are sharded as
accelerate's fsdp2.yaml does it: a unit for every layer, the root for embeddings and the last norm.
"""

import os
import sys

import numpy as np
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from gram_fast.training import objectives
from gram_fast.training.data.sequences import TokenizedPair, collate
from gram_fast.training.packed_attention import PACKED_ATTENTION
from helpers.small_models import tiny_model


def model_with(objective: str, tied: bool):
    """A model and its objective; untied, the output embedding is a parameter of its own."""
    model = tiny_model("qwen3", tie_word_embeddings=tied).requires_grad_(True)
    model.set_attn_implementation(PACKED_ATTENTION)
    loss = (
        objectives.language_modelling(model)
        if objective == "language"
        else objectives.label_preference(model, (5, 7), 0.1)
    )
    objectives.set_objective(model, loss)
    return model


def batch(rank: int, objective: str):
    """Two sequences of a rank, and how much they ask for."""
    lengths = np.array([7 + rank, 4])
    ids = np.random.default_rng(rank).integers(0, 96, lengths.sum())
    if objective == "language":
        return collate([TokenizedPair(ids, lengths, np.array([3, 4]), ids[4:6])])
    return collate([TokenizedPair(ids, lengths, lengths.cumsum() - 1, np.array([0, 1]))])


def main(objective: str, tied: str, path: str) -> None:
    """Writes the sharded gradients, gathered, from rank 0."""
    mesh = init_device_mesh("cpu", (2,))
    model = model_with(objective, tied == "tied")
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # FSDP means over ranks: the sum over both is divided by the count of one.
    model(**batch(distributed.get_rank(), objective), num_items_in_batch=2)["loss"].backward()
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters() if isinstance(p.grad, DTensor)}
    if distributed.get_rank() == 0:
        torch.save(gradients, path)
    distributed.barrier()
    # Leave as the interpreter stands: gloo's threads may still let go of the last tensors, and one that does so while
    # the interpreter shuts down aborts the process (torch 2.13: 4 of 75 runs on a loaded machine).
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
