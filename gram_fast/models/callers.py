"""A caller's model: what is inside its wrappers, and whether a judge can run that layer by layer."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedModel

from gram_fast.errors import InputError, UnsupportedModelError


def plain_model(model: nn.Module) -> Any:
    """The transformers model inside those of peft and torch.compile, with its adapters at work.

    Raises InputError for another wrapper or another model, UnsupportedModelError for learned prompts, for compiled
    layers and for weights that are divided among processes or elsewhere.
    """
    dynamo, peft = sys.modules.get("torch._dynamo"), sys.modules.get("peft")
    while not isinstance(model, PreTrainedModel):
        kind = type(model).__name__
        if dynamo and isinstance(model, dynamo.OptimizedModule):
            model = model._orig_mod
        elif peft and isinstance(model, peft.PeftModel | peft.PeftMixedModel):
            if any(config.is_prompt_learning for config in model.peft_config.values()):
                raise UnsupportedModelError(f"{kind} puts learned prompts before a text: expected adapters of weights")
            model = model.get_base_model()
        else:
            raise InputError(
                f"model: expected a transformers model, got {kind}; give what a wrapper such as "
                "DistributedDataParallel wraps, with whole weights"
            )
    _check_weights(model)
    _check_layers(model)
    return model


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Has a model compute without dropout, and leaves its modules as they were found."""
    training = [module for module in model.modules() if module.training]
    try:
        # In the `try`: an interruption right after an assignment must not leave it.
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _check_weights(model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        # A DTensor has placements; ZeRO-3 leaves nothing of a weight.
        if weight.is_meta or hasattr(weight, "placements") or not weight.numel():
            raise UnsupportedModelError(
                f"{type(model).__name__}: its weight {name} is divided among processes or is not loaded: expected "
                "whole weights on one device"
            )


def _check_layers(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if name and (module._compiled_call_impl is not None or hasattr(module, "_orig_mod")):
            raise UnsupportedModelError(
                f"{type(model).__name__}: its {name} is compiled, which runs another attention than a judge's: "
                "expected the model as it was before"
            )


# A turn for each model that several judges may have, in threads of their own. Weak: a judge does not keep its model.
_TURNS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
# A thread of the parent may have held one when the child was forked.
os.register_at_fork(after_in_child=_TURNS.clear)


def turn_of(model: nn.Module) -> AbstractContextManager[Any]:
    """The turn to run a model, which is changed for the time of a forward: one thread at a time has it."""
    return _TURNS.setdefault(model, threading.RLock())  # type: ignore[no-any-return]
