"""Loads the model and configuration of a checkpoint with transformers, and finds its prompt template."""

import json
import logging
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gram_fast.errors import InputError, UnsupportedModelError, one_line
from gram_fast.models.adapters import merge_adapter
from gram_fast.models.files import find_file, find_files, find_source, read_object
from gram_fast.models.gguf import check_gguf
from gram_fast.models.sizes import check_configuration, check_fits, check_numbers
from gram_fast.text.prompts import PairTemplate, preset_names
from gram_fast.text.tokens import PairTokenizer

log = logging.getLogger(__name__)

# Key in a checkpoint's config.json under which it records the prompt that it was trained with.
_RECORD = "gram_fast"
# Beside an adapter, the same record.
_RECORD_FILE = "gram_fast.json"

ADAPT = "gram-fast train finetune factored model_name_or_path=CHECKPOINT"
"""Command that adapts a judge to read each response by itself."""

# Characters of two prompts that a message quotes from where they differ.
_EXCERPT = 24


def load_model(
    name: str,
    dtype: str | torch.dtype,
    *,
    kind: Any = AutoModelForCausalLM,
    new_weights: Collection[str] = (),
    config: Any = None,
    **hub: Any,
) -> Any:
    """Loads a model of a checkpoint onto the CPU; an adapter is merged into its base.

    Args:
        name: a folder, or a name on the hub.
        dtype: of the weights, as in transformers.
        kind: transformers' class.
        new_weights: names of weights that the checkpoint may lack.
        config: its configuration, where it has been loaded.
        hub: revision, token and trust_remote_code as in transformers, and more keyword arguments for `kind`.

    Raises InputError when there is no such checkpoint, weights are missing or have other shapes than the configuration
    says; errors of `merge_adapter`.
    """
    source = find_source(name, **hub)
    where = f"checkpoint {source.where!r}"
    config = config or load_config(source.where, **source.hub)
    files = [source.gguf] if source.gguf else find_files(source.name, **source.hub)
    if files and not getattr(config, "auto_map", None):
        check_fits(config, kind, files, where)
    try:
        model, info = kind.from_pretrained(
            source.name, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **source.options
        )
    except Exception as error:  # transformers and safetensors raise anything for a broken file
        raise InputError(f"cannot load a causal language model from {source.where!r}: {one_line(error)}") from error
    if missing := sorted(set(info["missing_keys"]) - set(new_weights)):
        raise InputError(f"{where} lacks {len(missing)} weights of {type(model).__name__}, first {missing[0]!r}")
    if mismatched := sorted(info["mismatched_keys"]):
        key, stored, expected = mismatched[0]
        raise InputError(f"{where}: {key}: expected shape {list(expected)}, got {list(stored)}")
    if unexpected := sorted(info["unexpected_keys"]):
        kind_name = type(model).__name__
        log.warning(
            "%s has %d weights that %s does not use, first %r", where, len(unexpected), kind_name, unexpected[0]
        )
    if source.adapter is None:
        return model
    return merge_adapter(model, source.adapter, revision=hub.get("revision"), token=hub.get("token"))


def load_config(name: str, **hub: Any) -> Any:
    """Loads the configuration of a checkpoint, of an adapter that of its base; `hub` as `load_model`.

    Raises InputError when there is none, and when it has sizes or a rotary embedding that no model can have.
    """
    source = find_source(name, **hub)
    where = f"checkpoint {source.where!r}"
    if source.gguf is not None:
        check_gguf(source.gguf)
    elif file := find_file(source.name, "config.json", **source.hub):
        check_numbers(read_object(file), where)
    try:
        config = AutoConfig.from_pretrained(source.name, **source.options)
    except Exception as error:  # transformers raises anything for a broken file
        raise InputError(f"cannot load a model configuration from {source.where!r}: {one_line(error)}") from error
    check_configuration(config, where)
    if source.adapter is not None and (file := find_file(source.adapter, _RECORD_FILE, **hub)):
        setattr(config, _RECORD, read_object(file))
    return config


def find_template(preset: str, config: Any, chat_template_kwargs: Mapping[str, Any] | None = None) -> PairTemplate:
    """The judge's prompt template.

    `preset`: a preset's name, a preset file, or "auto" for the template that the model's configuration records, and
    `gram` where it records none. `chat_template_kwargs` go before those of a preset file, and these before the recorded
    ones. Raises UnsupportedModelError for a record without a template, and InputError for variables of a chat template
    beside a preset with a frame.
    """
    recorded, name = _recorded_template(config)
    template = recorded if recorded and preset == "auto" else PairTemplate.load("gram" if preset == "auto" else preset)
    if recorded and _without_kwargs(template) != _without_kwargs(recorded):
        log.warning("preset %s is not the template that the checkpoint records (%s)", preset, name)
    if template.frame is not None:
        if chat_template_kwargs:
            raise InputError(f"chat_template_kwargs: preset {preset} has a frame in place of the chat template")
        return template
    kwargs = {**(recorded.chat_template_kwargs if recorded else {}), **template.chat_template_kwargs}
    return replace(template, chat_template_kwargs={**kwargs, **(chat_template_kwargs or {})})


def record_prompt(
    config: Any, tokenizer: PairTokenizer, include_reasoning: bool = False, modes: Sequence[str] = ("full",)
) -> None:
    """Records the judge's prompt in the model's configuration, where `find_template` finds it.

    Args:
        config: of the model.
        tokenizer: that of the judge's prompt.
        include_reasoning: whether texts of chat messages include their reasoning.
        modes: in which the judge was trained: "full", where response B reads A, and "factored", where neither does.
    """
    template = tokenizer.template
    presets = {name: PairTemplate.load(name) for name in preset_names()}
    same = (name for name, preset in presets.items() if _without_kwargs(preset) == _without_kwargs(template))
    record = {
        "preset": next(same, "custom"),
        "template": template.text,
        "labels": list(template.labels),
        "answer_prefix": template.answer_prefix,
        "answer_suffix": template.answer_suffix,
        "reasons": template.reasons,
        "frame": template.frame,
        "chat_template_kwargs": dict(template.chat_template_kwargs),
        "literals": list(tokenizer.text.literals),
        "include_reasoning": include_reasoning,
        "modes": list(modes),
    }
    setattr(config, _RECORD, record)


def recorded_modes(config: Any) -> tuple[str, ...]:
    """Modes that a model's configuration records to be trained in: "full", where it records none."""
    record = getattr(config, _RECORD, None)
    return tuple(record.get("modes", ("full",))) if isinstance(record, dict) else ("full",)


def records_template(config: Any, template: PairTemplate) -> bool:
    """Whether a model's configuration records that it was trained with this template."""
    recorded, _ = _recorded_template(config)
    return recorded is not None and _without_kwargs(recorded) == _without_kwargs(template)


def write_record(config: Any, folder: Path) -> None:
    """Writes what `record_prompt` recorded beside an adapter, which has no configuration of its own."""
    (folder / _RECORD_FILE).write_text(json.dumps(getattr(config, _RECORD), indent=2) + "\n", "utf-8")


def warn_of_another_prompt(config: Any, tokenizer: PairTokenizer, include_reasoning: bool) -> None:
    """Warns where the recorded template is rendered to another text than in training, and says where it differs first.

    Another chat template, date or variable does that. Warns of another `include_reasoning` than in training, too.
    """
    record: Any = getattr(config, _RECORD, None)
    trained = record.get("include_reasoning") if isinstance(record, dict) else None
    if trained not in (None, include_reasoning):
        warnings.warn(
            f"the judge was trained with include_reasoning={trained} and is used with {include_reasoning}: chat "
            "messages that have reasoning are read otherwise than in training",
            stacklevel=2,
        )
    if not records_template(config, tokenizer.template):
        return  # nothing to compare with, or find_template has said so
    if not isinstance(record.get("literals"), list):  # checkpoints of earlier versions
        return
    slots = [f"{{{slot}}}" for slot in tokenizer.text.slots]
    before, now = (
        "".join(f"{literal}{slot}" for literal, slot in zip_longest(literals, slots, fillvalue=""))
        for literals in (record["literals"], tokenizer.text.literals)
    )
    if before != now:
        at = next((k for k, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now)))
        warnings.warn(
            f"the judge's prompt is not the one that the checkpoint was trained with: at character {at} it has "
            f"{now[at : at + _EXCERPT]!r}, in training it had {before[at : at + _EXCERPT]!r}; chat_template_kwargs in "
            f"training were {record.get('chat_template_kwargs')}",
            stacklevel=2,
        )


def _recorded_template(config: Any) -> tuple[PairTemplate | None, str | None]:
    """The template that a model's configuration records and the name of its preset; None where it records none."""
    record = getattr(config, _RECORD, None)
    if record is None:
        return None, None
    if not isinstance(record, dict) or not isinstance(record.get("template"), str):
        raise UnsupportedModelError(f"the checkpoint's {_RECORD} record has no 'template': name a preset")
    names = ("labels", "answer_prefix", "answer_suffix", "reasons", "frame", "chat_template_kwargs")
    settings = {name: record[name] for name in names if record.get(name) is not None}
    try:
        template = PairTemplate.parse(record["template"], f"the checkpoint's {_RECORD} record", **settings)
    except InputError as error:
        raise UnsupportedModelError(str(error)) from None
    return template, record.get("preset")


def _without_kwargs(template: PairTemplate) -> PairTemplate:
    return replace(template, chat_template_kwargs={})
