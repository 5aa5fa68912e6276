"""Finds the mixers of a model, modules that mix tokens without attention, and has them compute over trees.

A mixer of transformers calls functions of its modeling file for what it does over tokens, and computes all else itself.
For the time of a pass each has a `forward` of its own: the code of its class, in whose globals these names are ours.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import nn

from gram_fast.errors import UnsupportedModelError
from gram_fast.models.linear.chosen import is_chosen
from gram_fast.models.linear.convolution import causal_conv1d
from gram_fast.models.linear.mixing import Mixing
from gram_fast.models.linear.pieces import Pieces
from gram_fast.models.linear.scan import gated_delta_rule, mamba2_scan
from gram_fast.scoring.states import StateStore

_OURS: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": causal_conv1d,
    "torch_chunk_gated_delta_rule": gated_delta_rule,
    "chunk_kimi_delta_attention": gated_delta_rule,
    "mamba2_chunk_scan": mamba2_scan,
}
# What the same code calls with a cache, or in training.
_NOT_CALLED = {
    "causal_conv1d_update",
    "torch_recurrent_gated_delta_rule",
    "recurrent_kimi_delta_attention",
    "mamba2_selective_state_update",
    "mamba2_split_conv1d_scan_combined",
}


def find_mixers(model: nn.Module) -> list[nn.Module]:
    """The mixers of a model, in order.

    Raises UnsupportedModelError for one that also mixes tokens in a way that is not known here.
    """
    mixers = []
    for module in model.modules():
        names = _mixing_names(_plain_forward(module))
        if names.isdisjoint(_OURS):
            continue
        if foreign := sorted(names - _OURS.keys() - _NOT_CALLED):
            raise UnsupportedModelError(
                f"{type(module).__name__} cannot be scored by prefix sharing: it mixes tokens by {', '.join(foreign)}"
            )
        mixers.append(module)
    return mixers


@contextmanager
def over_pieces(mixers: Sequence[nn.Module], pieces: Pieces, states: StateStore) -> Iterator[list[Mixing]]:
    """Has mixers compute over the pieces of a pass, and leaves them as they were found -> what each has called."""
    mixings = [Mixing(pieces, states, number) for number in range(len(mixers))]
    # accelerate's hooks of a module call this in place of its class's forward.
    places = ["_old_forward" if hasattr(module, "_hf_hook") else "forward" for module in mixers]
    before = [module.__dict__.get(place) for module, place in zip(mixers, places, strict=True)]
    try:
        for module, place, mixing in zip(mixers, places, mixings, strict=True):
            module.__dict__[place] = MethodType(_forward_with(_plain_forward(module), mixing), module)
        yield mixings
    finally:
        for module, place, was in zip(mixers, places, before, strict=True):
            if was is None:
                module.__dict__.pop(place, None)
            else:
                module.__dict__[place] = was


def bytes_of_states(mixers: Sequence[nn.Module], width: int, dtype: torch.dtype, device: torch.device) -> list[int]:
    """Bytes of the states of each mixer behind one token, by its forward of a token of zeros of that width."""
    found = []
    for module in mixers:
        states, token = StateStore(), torch.zeros((1, 1, width), dtype=dtype, device=device)
        with over_pieces([module], Pieces(np.array([[0, 1, 0, -1, -1, -1]])), states), torch.no_grad():
            module(token)
        found.append(states.bytes_per_state)
    return found


def _plain_forward(module: nn.Module) -> FunctionType:
    """The forward of a module's class, without what is wrapped around it."""
    return inspect.unwrap(type(module).forward)  # type: ignore[no-any-return]


@cache
def _mixing_names(forward: FunctionType) -> frozenset[str]:
    """Functions that it calls by name and that are known here, or whose code transformers chooses: all that mix."""
    names = getattr(getattr(forward, "__code__", None), "co_names", ())
    return frozenset(name for name in names if name in _OURS or is_chosen(forward.__globals__.get(name)))


def _forward_with(forward: FunctionType, mixing: Mixing) -> FunctionType:
    names = _mixing_names(forward) & _OURS.keys()
    ours = {name: partial(_OURS[name], mixing, forward.__globals__[name]) for name in names}
    clone = FunctionType(
        forward.__code__, forward.__globals__ | ours, forward.__name__, forward.__defaults__, forward.__closure__
    )
    clone.__kwdefaults__ = forward.__kwdefaults__
    return clone
