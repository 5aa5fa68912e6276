"""Loads the model, configuration and tokenizer of a checkpoint with transformers, and finds its prompt template."""

import logging
import os
from collections.abc import Collection
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from gram_fast.errors import InputError, UnsupportedModelError, one_line
from gram_fast.text.prompts import LABELS, PairTemplate, preset_names

log = logging.getLogger(__name__)

# Key in a checkpoint's config.json under which it records the prompt that it was trained with.
_RECORD = "gram_fast"


def load_model(
    name: str,
    dtype: str | torch.dtype,
    *,
    kind: Any = AutoModelForCausalLM,
    new_weights: Collection[str] = (),
    **hub: Any,
) -> Any:
    """Loads a model of a checkpoint onto the CPU.

    Args:
        name: a folder, or a name on the hub.
        dtype: of the weights, as in transformers.
        kind: transformers' class; functools.partial adds keyword arguments for its `from_pretrained`.
        new_weights: names of weights that the checkpoint may lack.
        hub: revision, token and trust_remote_code as in transformers.

    Raises InputError when there is no such checkpoint or weights are missing.
    """
    name = _locate(name)
    try:
        model, info = kind.from_pretrained(name, dtype=dtype, output_loading_info=True, **hub)
    except Exception as error:  # transformers and safetensors raise anything for a broken file
        raise InputError(f"cannot load a causal language model from {name!r}: {one_line(error)}") from error
    if missing := sorted(set(info["missing_keys"]) - set(new_weights)):
        raise InputError(
            f"checkpoint {name!r} lacks {len(missing)} weights of {type(model).__name__}, first {missing[0]!r}"
        )
    return model


def load_config(name: str, **hub: Any) -> Any:
    """Loads the configuration of a checkpoint; `hub` as `load_model`. Raises InputError when there is none."""
    name = _locate(name)
    try:
        return AutoConfig.from_pretrained(name, **hub)
    except Exception as error:  # transformers raises anything for a broken file
        raise InputError(f"cannot load a model configuration from {name!r}: {one_line(error)}") from error


def load_tokenizer(name: str, **hub: Any) -> Any:
    """Loads the tokenizer of a checkpoint; `hub` as `load_model`. Raises UnsupportedModelError when there is none."""
    name = _locate(name)
    try:
        return AutoTokenizer.from_pretrained(name, **hub)
    except Exception as error:
        raise UnsupportedModelError(f"cannot load a tokenizer from {name!r}: {one_line(error)}") from error


def _locate(name: str) -> str:
    """The path of an existing folder, or a name that may be on the hub. Raises InputError for a path to neither."""
    name = os.path.expanduser(name)
    if os.path.isfile(name):
        raise InputError(f"expected a checkpoint folder, {name!r} is a file")
    if name.startswith((".", "/")) and not os.path.isdir(name):
        raise InputError(f"there is no checkpoint folder {name!r}")
    return name


def find_template(preset: str, config: Any) -> PairTemplate:
    """The judge's prompt template.

    `preset`: a preset's name, a template file, or "auto" for the template that the model's configuration records, and
    `gram` where it records none. Raises UnsupportedModelError for a record without a template or with other labels.
    """
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
    """Records the judge's template and labels in the model's configuration, where `find_template` finds them."""
    preset = next((name for name in preset_names() if PairTemplate.load(name) == template), "custom")
    setattr(config, _RECORD, {"preset": preset, "template": template.text, "labels": list(LABELS)})
