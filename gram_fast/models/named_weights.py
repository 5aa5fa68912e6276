"""Weights of a runner's model by name, whichever runner it is."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def named_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """All weights by name: of a torch module, or of the dense runner's nested dataclasses."""
    if isinstance(model, nn.Module):
        # Buffers that are saved are weights, too.
        yield from ((name, value) for name, value in model.state_dict().items() if isinstance(value, Tensor))
        return
    for name, value in vars(model).items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, list):
            for index, layer in enumerate(value):
                yield from ((f"{name}.{index}.{inner}", weight) for inner, weight in named_weights(layer))
