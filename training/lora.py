"""Low-rank adapters: put on a model before training, merged into a newly loaded copy of it afterwards.

A merge is checked: the merged model has the loss of the trained one on the same pairs, up to rounding.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.pytorch_utils import Conv1D

from gram_fast.errors import InputError, NumericalError
from gram_fast.models.adapters import head_of_adapted_embedding
from gram_fast.training.config import ALL_LINEAR, LoraOptions

log = logging.getLogger(__name__)

# Operations of a decoder layer, one after the other, that round their result.
_ROUNDINGS = 12
# Standard deviations that the loss may move by rounding: models with weights of 20 times the usual size moved by 7.
_DEVIATIONS = 8


def add_adapters(model: Any, options: LoraOptions, modules_to_save: list[str] | None = None) -> Any:
    """Puts adapters on a model; `modules_to_save` are trained whole besides.

    Warns where an input embedding is adapted to which the output embedding is tied. Raises InputError where the output
    embedding itself is adapted and for layers that the model lacks; peft raises ValueError or TypeError for options
    that cannot be.
    """
    from peft import LoraConfig, get_peft_model

    head = model.get_output_embeddings()
    values = asdict(options)
    if layers := options.layers_to_transform:
        count = model.config.get_text_config(decoder=True).num_hidden_layers
        if max(layers) >= count:
            raise InputError(
                f"lora.layers_to_transform: expected layers from 0 to {count - 1}, as the model has {count}, got "
                f"{max(layers)}"
            )
        if options.target_modules == ALL_LINEAR:
            values["target_modules"] = _names_of_linear(model.base_model)
    # No task type: peft's task wrappers pass arguments to the forward that the objective does not take.
    adapted = get_peft_model(model, LoraConfig(**values, modules_to_save=modules_to_save))
    if head is not None and model.get_output_embeddings() is not head:
        raise InputError("lora.target_modules names the output embedding, which the objectives read without adapters")
    if tied := head_of_adapted_embedding(model):
        log.warning(
            "lora.target_modules names the input embedding, to which the output embedding is tied: the result holds "
            "both, %.0f MB more; to keep them tied, leave it out",
            tied.weight.nbytes / 1e6,
        )
    return adapted


def _names_of_linear(model: nn.Module) -> list[str]:
    """The last parts of the names of all linear modules: peft chooses layers only among a list of such names."""
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))
    return sorted({name.rpartition(".")[2] for name in linear})


def trained_loss(trainer: Trainer, batch: Mapping[str, Tensor]) -> float:
    """The loss of the model in training; every process calls it with the same batch, since weights may be sharded."""
    trainer.model_wrapped.eval()
    loss, _, _ = trainer.prediction_step(trainer.model_wrapped, dict(batch), prediction_loss_only=True)
    return float(loss)  # type: ignore[arg-type]


@torch.no_grad()
def check_merged(merged: Any, batch: Mapping[str, Tensor], expected: float, eps: float, folder: Path) -> None:
    """Raises NumericalError where the loss of a merged model, whose objective is set, is not the expected one.

    `eps` is that of the coarsest type in which one of the two was computed, `folder` that of the adapters. An operation
    on hidden states has an error with the standard deviation eps / sqrt(12), or that of summing float32 products, and
    independent errors add up as a random walk from layer to layer.
    """
    config = merged.config.get_text_config(decoder=True)
    operation = max(eps / math.sqrt(12), torch.finfo(torch.float32).eps * math.sqrt(config.hidden_size))
    deviation = operation * math.sqrt(_ROUNDINGS * config.num_hidden_layers) * max(1.0, expected)
    loss = float(merged(**batch)["loss"])
    if not abs(loss - expected) <= _DEVIATIONS * deviation:
        raise NumericalError(
            f"the merged model has the loss {loss:.6g} on the first pairs, expected the trained one's {expected:.6g} "
            f"up to {_DEVIATIONS * deviation:.1g}: it was not written, the training is in the adapter {str(folder)!r}"
        )


def rounding(trainer: Trainer, dtype: torch.dtype) -> float:
    """The eps of the coarsest type that a trained model with weights of type `dtype` computes in."""
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(trainer.accelerator.mixed_precision, dtype)
    # TF32 has as many bits of mantissa as float16.
    product = torch.float16 if trainer.args.tf32 else dtype
    return max(torch.finfo(kind).eps for kind in (dtype, mixed, product))
