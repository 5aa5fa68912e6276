"""Writes a judge of Qwen3's architecture with random weights, a real tokenizer and a chat template: a model to time.

    python -m benchmarks.random_judge FOLDER

The model has 13.5 M parameters. Its verdicts mean nothing. The tokenizer is trained on this repository's text, so token
counts shift a little whenever that changes.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from gram_fast.training.small_judge.tokenizer import make_qwen_tokenizer

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


class ModelSizes(NamedTuple):
    """The sizes of a model of Qwen3's architecture."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int


SMALL = ModelSizes(hidden=384, intermediate=1152, layers=6, heads=6, kv_heads=2, head_width=64)


def repository_texts() -> list[str]:
    """Reads this repository's pages, presets and sources, in a fixed order."""
    patterns = (
        "*.md",
        "docs/*.md",
        "gram_fast/presets/*.txt",
        "gram_fast/**/*.py",
        "kernels/*.py",
        "csrc/**/*.cpp",
        "csrc/**/*.h",
    )
    paths = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    return [path.read_text("utf-8") for path in paths]


def random_model(
    sizes: ModelSizes,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    vocab_size: int = 8192,
    **special_tokens: int | None,
) -> Qwen3ForCausalLM:
    """Makes a model with random weights, the same in every run, on the device that it is to be made on."""
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_width,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        **special_tokens,
    )
    torch.manual_seed(0)
    with device:
        model: Any = Qwen3ForCausalLM._from_config(config, dtype=dtype)
    return model


def write_random_judge(
    folder: Path, sizes: ModelSizes = SMALL, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> None:
    """Writes model and tokenizer in transformers' format into `folder`."""
    tokenizer = make_qwen_tokenizer(repository_texts())
    special_tokens = {
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        "bos_token_id": None,
    }
    random_model(sizes, device, dtype, **special_tokens).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    write_random_judge(Path(sys.argv[1]))
