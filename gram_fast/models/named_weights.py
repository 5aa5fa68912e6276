"""Weights of a runner's model by name, whichever runner it is."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from gram_fast.models.dense.fp8 import Fp8Weight
from gram_fast.models.dense.model import Projection


def named_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """All weights by name: of a torch module, or of the dense runner's nested dataclasses."""
    if isinstance(model, nn.Module):
        # Buffers that are saved are weights, too.
        yield from ((name, value) for name, value in model.state_dict().items() if isinstance(value, Tensor))
        return
    for name, value in vars(model).items():
        if isinstance(value, Tensor):
            # Packed for oneDNN, its numbers are the same in another order.
            yield name, value.to_dense() if value.is_mkldnn else value
        elif isinstance(value, Projection | Fp8Weight):
            yield from ((f"{name}.{inner}", weight) for inner, weight in named_weights(value))
        elif isinstance(value, list | tuple):
            for index, part in enumerate(value):
                yield from ((f"{name}.{index}.{inner}", weight) for inner, weight in named_weights(part))
