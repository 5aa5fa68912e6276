"""A tiny judge whose tokenizer knows the answers Yes and No."""

from pathlib import Path
from typing import Any

from gram_fast.text.prompts import PairTemplate
from gram_fast.training.small_judge.tokenizer import make_qwen_tokenizer
from helpers.small_models import tiny_model


def write_verifier(folder: Path) -> Path:
    """The checkpoint of a tiny random judge that has a token for every label of the presets for Qwen."""
    tokenizer = verifier_tokenizer()
    tiny_model("qwen3", vocab_size=len(tokenizer), max_position_embeddings=4096).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def verifier_tokenizer() -> Any:
    texts = ["".join(PairTemplate.load(preset).literals) for preset in ("gram", "verifier")]
    return make_qwen_tokenizer([*texts, "Yes\nNo\n" * 200], 600)
