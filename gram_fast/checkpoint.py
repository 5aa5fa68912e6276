"""Loads a judge's model and tokenizer with transformers, from a folder or the Hugging Face hub."""

import os
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from gram_fast.errors import BackendError, InputError, UnsupportedModelError, first_line


def load_checkpoint(
    name: str,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
) -> tuple[nn.Module, Any]:
    """The model in eval mode on its device, and the tokenizer. As PairwiseJudge.from_pretrained, errors too."""
    target = find_device(device)
    hub: dict[str, Any] = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
    wanted = find_dtype(dtype, target)
    name = os.path.expanduser(name)
    if os.path.isfile(name):
        raise InputError(f"expected a checkpoint folder, {name!r} is a file")
    if name.startswith((".", "/")) and not os.path.isdir(name):
        raise InputError(f"there is no checkpoint folder {name!r}")
    try:
        model, info = AutoModelForCausalLM.from_pretrained(name, dtype=wanted, output_loading_info=True, **hub)
    except Exception as error:  # transformers and safetensors raise anything for a broken file
        raise InputError(f"cannot load a causal language model from {name!r}: {first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise InputError(
            f"checkpoint {name!r} lacks {len(missing)} weights of {type(model).__name__}, first {missing[0]!r}"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **hub)
    except Exception as error:
        raise UnsupportedModelError(f"cannot load a tokenizer from {name!r}: {first_line(error)}") from error
    return model.to(target).eval().requires_grad_(False), tokenizer


def find_device(device: str | torch.device) -> torch.device:
    """The device of that name, "auto" being CUDA where there is a GPU. Raises BackendError when it is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise BackendError(f"there is no device {device!r}: expected auto, cpu, cuda or cuda:N") from None
    if found.type not in ("cpu", "cuda"):
        raise BackendError(f"device {str(found)!r} is not supported: expected auto, cpu, cuda or cuda:N")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise BackendError(f"device {str(found)!r} is not there: torch sees {torch.cuda.device_count()} CUDA GPUs")
    return found


def find_dtype(dtype: str | torch.dtype, device: torch.device) -> str | torch.dtype:
    """What to ask transformers for: "auto" is float32 on the CPU, the checkpoint's own dtype elsewhere."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.float16, torch.bfloat16):
        raise InputError(f"dtype: expected auto, float32, float16 or bfloat16, got {dtype!r}")
    return found  # type: ignore[no-any-return]
