"""Writes a Qwen3-shaped judge of 13.5 M random weights, with a real tokenizer and chat template: one to time.

    python -m benchmarks.random_judge FOLDER

Its verdicts mean nothing. The tokenizer is trained on this repository's text, so token counts shift a little with it.
"""

import sys
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from gram_fast.training.small_judge.tokenizer import make_qwen_tokenizer

ROOT = Path(__file__).resolve().parent.parent


def repository_texts() -> list[str]:
    """Text of this repository: its pages, presets and sources, in a fixed order."""
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


def make_random_judge(folder: Path) -> None:
    """Writes model and tokenizer in transformers' format into `folder`."""
    tokenizer = make_qwen_tokenizer(repository_texts())
    config = Qwen3Config(
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1152,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    make_random_judge(Path(sys.argv[1]))
