"""Loads a judge's model and tokenizer with transformers, from a folder or the Hugging Face hub."""

import logging
import os
from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from gram_fast.errors import BackendError, InputError, UnsupportedModelError, first_line
from gram_fast.text.prompts import LABELS, PairTemplate, preset_names

log = logging.getLogger(__name__)

# Where a checkpoint's config.json keeps the prompt that it was trained with.
_RECORD = "gram_fast"

Device = str | torch.device
_DEVICES = "auto, cpu, cuda, cuda:N or cuda:all"


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


def find_devices(device: Device | Sequence[Device]) -> list[torch.device]:
    """The devices of that name or those names, one for each replica of a judge.

    Args:
        device: a torch device or its name, "auto" (CUDA where there is a GPU, else the CPU), "cuda:all" (every GPU that
            torch sees), or several of these: a list, or names with commas between them. The CPU may be named more than
            once: such replicas share its cores and gain nothing, but show on any machine what several devices do.

    Raises InputError for no device, one GPU twice and CPU beside GPU; BackendError for a device that is not there.
    """
    if isinstance(device, str):
        device = [name.strip() for name in device.split(",")]
    found = [one for name in (device if isinstance(device, Sequence) else [device]) for one in _named(name)]
    if not found:
        raise InputError(f"device: expected at least one, got {device!r}")
    if len(found) > 1:
        found = [_with_number(one) for one in found]
        _check_replicas(found)
        log.info("devices: %s", ", ".join(map(str, found)))
    return found


def _check_replicas(devices: Sequence[torch.device]) -> None:
    # They would hold weights of different types, so that an answer would depend on where it was computed.
    if len(kinds := sorted({one.type for one in devices})) > 1:
        raise InputError(f"device: expected replicas on devices of one kind, got {' and '.join(kinds)}")
    twice = [str(one) for one in devices if one.type == "cuda" and devices.count(one) > 1]
    if twice:
        raise InputError(f"device: expected every GPU once, got {twice[0]!r} {twice.count(twice[0])} times")


def _with_number(device: torch.device) -> torch.device:
    """The GPU that "cuda" is here: each thread has a current one of its own."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _named(device: Device) -> list[torch.device]:
    """The devices that one name stands for."""
    if device == "auto":
        return [torch.device("cuda" if torch.cuda.is_available() else "cpu")]
    if device == "cuda:all":
        if not torch.cuda.is_available():
            raise BackendError("device 'cuda:all' is not there: torch sees 0 CUDA GPUs")
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise BackendError(f"there is no device {device!r}: expected {_DEVICES}") from None
    if found.type not in ("cpu", "cuda"):
        raise BackendError(f"device {str(found)!r} is not supported: expected {_DEVICES}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise BackendError(f"device {str(found)!r} is not there: torch sees {torch.cuda.device_count()} CUDA GPUs")
    return [found]


def find_dtype(dtype: str | torch.dtype, device: torch.device) -> str | torch.dtype:
    """What to ask transformers for: "auto" is float32 on the CPU, the checkpoint's own dtype elsewhere."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.float16, torch.bfloat16):
        raise InputError(f"dtype: expected auto, float32, float16 or bfloat16, got {dtype!r}")
    return found  # type: ignore[no-any-return]
