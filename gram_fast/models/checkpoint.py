"""Loads a judge's model and tokenizer with transformers, from a folder or the Hugging Face hub."""

import logging
import os
from collections.abc import Collection
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from gram_fast.errors import InputError, UnsupportedModelError, first_line
from gram_fast.text.prompts import LABELS, PairTemplate, preset_names

log = logging.getLogger(__name__)

# Where a checkpoint's config.json keeps the prompt that it was trained with.
_RECORD = "gram_fast"


def load_model(
    name: str,
    dtype: str | torch.dtype,
    *,
    kind: Any = AutoModelForCausalLM,
    new_weights: Collection[str] = (),
    **hub: Any,
) -> Any:
    """A model on the CPU; `hub`: revision, token, trust_remote_code as in transformers.

    `kind`: transformers' class for it, with keyword arguments of its own behind functools.partial. `new_weights`: names
    that the checkpoint may lack. Raises InputError when there is no such checkpoint or weights are missing.
    """
    name = _locate(name)
    try:
        model, info = kind.from_pretrained(name, dtype=dtype, output_loading_info=True, **hub)
    except Exception as error:  # transformers and safetensors raise anything for a broken file
        raise InputError(f"cannot load a causal language model from {name!r}: {first_line(error)}") from error
    if missing := sorted(set(info["missing_keys"]) - set(new_weights)):
        raise InputError(
            f"checkpoint {name!r} lacks {len(missing)} weights of {type(model).__name__}, first {missing[0]!r}"
        )
    return model


def load_config(name: str, **hub: Any) -> Any:
    """The configuration of a checkpoint. Raises InputError when there is none."""
    name = _locate(name)
    try:
        return AutoConfig.from_pretrained(name, **hub)
    except Exception as error:  # transformers raises anything for a broken file
        raise InputError(f"cannot load a model configuration from {name!r}: {first_line(error)}") from error


def load_tokenizer(name: str, **hub: Any) -> Any:
    """The tokenizer of a checkpoint. Raises UnsupportedModelError when there is none."""
    name = _locate(name)
    try:
        return AutoTokenizer.from_pretrained(name, **hub)
    except Exception as error:
        raise UnsupportedModelError(f"cannot load a tokenizer from {name!r}: {first_line(error)}") from error


def _locate(name: str) -> str:
    """A folder that is there, or what may be a name on the hub."""
    name = os.path.expanduser(name)
    if os.path.isfile(name):
        raise InputError(f"expected a checkpoint folder, {name!r} is a file")
    if name.startswith((".", "/")) and not os.path.isdir(name):
        raise InputError(f"there is no checkpoint folder {name!r}")
    return name


def find_template(preset: str, config: Any) -> PairTemplate:
    """The judge's prompt: by name or file, or for "auto" what the model's configuration records, else `gram`."""
    record = getattr(config, _RECORD, None)
    if record is None:
        return PairTemplate.load("gram" if preset == "auto" else preset)
    if not isinstance(record, dict) or not isinstance(record.get("template"), str):
        raise UnsupportedModelError(f"the checkpoint's {_RECORD} record has no 'template': name a preset")
    if record.get("labels") != list(LABELS):
        raise UnsupportedModelError(f"the checkpoint answers with {record.get('labels')}, expected {list(LABELS)}")
    recorded = PairTemplate.parse(record["template"], "the template that the checkpoint records")
    if preset == "auto":
        return recorded
    template = PairTemplate.load(preset)
    if template != recorded:
        log.warning("preset %s is not the template that the checkpoint records (%s)", preset, record.get("preset"))
    return template


def record_template(config: Any, template: PairTemplate) -> None:
    """Writes the judge's prompt and labels into the model's configuration, for `find_template`."""
    preset = next((name for name in preset_names() if PairTemplate.load(name) == template), "custom")
    setattr(config, _RECORD, {"preset": preset, "template": template.text, "labels": list(LABELS)})
