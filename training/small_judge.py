"""Makes the small judge that ships with the package, from nothing, with the project's own commands.

    python -m gram_fast.training.small_judge

Works in the folder small-judge: generates tasks (tasks.py), trains a tokenizer, runs both stages of the recipe `small`,
tests, and writes the judge in half precision with its model card into small-judge/judge. An interrupted run goes on when
the command is given again.
"""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from gram_fast.prompts import PairTemplate, preset_names
from gram_fast.training.tasks import SEEN, UNSEEN, Task, distinct_tasks, labeled_row, tasks, unlabeled_row

FOLDER = Path("small-judge")
# Pairs of each file; the tests are a hundred a kind.
UNLABELED, LABELED, VALIDATION, TEST = 480_000, 40_000, 20, 100

# The splitting rule of Qwen2 and Qwen3.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Short, so that a small model's tokens go to the task; turns are framed by special tokens, thinking has no switch.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|{{ message.role }}|>{{ message.content }}<|end|>
{%- endfor -%}
{%- if add_generation_prompt %}<|assistant|>{% endif -%}"""
VOCAB_SIZE = 4096
# 3.1 M parameters, of which 0.8 M are the embedding.
SHAPE = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def make_tokenizer(
    texts: list[str],
    vocab_size: int,
    chat_template: str,
    *,
    special: list[str],
    eos: str,
    pad: str,
    added: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Qwen's splitting rule, trained on `texts`.

    `special` tokens, and `added` ones that are not special, are part of `vocab_size`; `eos` and `pad` are of `special`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(special) - len(added),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos,
        pad_token=pad,
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def make_data(folder: Path, unlabeled: int = UNLABELED, labeled: int = LABELED) -> None:
    """Writes pretrain, finetune, validation, test-seen and test-unseen.jsonl; no prompt of a test is trained on."""
    folder.mkdir(parents=True, exist_ok=True)
    held_out = distinct_tasks(SEEN, 1, TEST + VALIDATION)
    per_kind = [held_out[start : start + TEST + VALIDATION] for start in range(0, len(held_out), TEST + VALIDATION)]
    prompts = {task.prompt for task in held_out}
    files: dict[str, tuple[Iterable[Task], Callable[[Task, random.Random], dict[str, Any]]]] = {
        "test-seen": ((task for some in per_kind for task in some[:TEST]), labeled_row),
        "validation": ((task for some in per_kind for task in some[TEST:]), labeled_row),
        "test-unseen": (distinct_tasks(UNSEEN, 2, TEST), labeled_row),
        "finetune": (islice(tasks(SEEN, 3, prompts), labeled), labeled_row),
        "pretrain": (islice(tasks(SEEN, 4, prompts), unlabeled), unlabeled_row),
    }
    for seed, (name, (of_file, row)) in enumerate(files.items()):
        rng = random.Random(seed)
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row(task, rng)) + "\n" for task in of_file)


def tokenizer_texts(data: Path) -> list[str]:
    """What the tokenizer is trained on: tasks, the presets and some plain English (Python's own help pages)."""
    with open(data / "pretrain.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, 20_000)]
    texts = ["\n".join([row["prompt"], *row["responses"]]) for row in rows]
    literals = ["".join(PairTemplate.load(preset).literals) for preset in preset_names()]
    return [*texts, *literals, *(topics[name] for name in sorted(topics)[:30])]


def make_base(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int = 0, **shape: int) -> None:
    """Writes an untrained Qwen3-shaped model and its tokenizer into `folder`."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **shape,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def small_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """The small judge's tokenizer."""
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    return make_tokenizer(texts, VOCAB_SIZE, CHAT_TEMPLATE, special=special, eos="<|end|>", pad="<|pad|>")


def _train(stage: str) -> None:
    if not (FOLDER / stage / "model.safetensors").exists():
        command = [sys.executable, "-m", "gram_fast.cli", "train", stage, "small", "resume_from_checkpoint=true"]
        subprocess.run(command, check=True)


def main() -> None:
    """Makes what is not there yet, step by step."""
    if not (FOLDER / "data" / "pretrain.jsonl").exists():
        make_data(FOLDER / "data")
    if not (FOLDER / "base").exists():
        make_base(FOLDER / "base", small_tokenizer(tokenizer_texts(FOLDER / "data")), **SHAPE)
    _train("pretrain")
    _train("finetune")


if __name__ == "__main__":
    main()
