"""Writes a small Qwen3-shaped judge for offline use: random weights, a real tokenizer and chat template.

    python examples/make_small_judge.py [FOLDER]

Prints the folder, by default one in the user's cache. The weights are random (fixed seed): the judge runs through
every line of the package, and its verdicts mean nothing.
"""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

ROOT = Path(__file__).resolve().parent.parent

# The splitting rule of Qwen2 and Qwen3.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking -%}
<think>

</think>

{% endif -%}
{%- endif -%}"""


def make_tokenizer(texts: list[str], vocab_size: int = 8192) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Qwen's splitting rule, special tokens and thinking switch, trained on `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 5, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def repository_texts() -> list[str]:
    """Text of this repository: its pages, presets and sources, in a fixed order."""
    patterns = (
        "*.md",
        "docs/*.md",
        "gram_fast/presets/*.txt",
        "gram_fast/*.py",
        "kernels/*.py",
        "csrc/*.cpp",
        "csrc/*.h",
    )
    paths = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    return [path.read_text("utf-8") for path in paths]


def make_small_judge(folder: Path, texts: list[str]) -> None:
    """Writes model and tokenizer in transformers' format into `folder`."""
    tokenizer = make_tokenizer(texts)
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


def cached_small_judge() -> Path:
    """The folder of the small judge in the user's cache, made on first use and again when the texts change."""
    texts = repository_texts()
    recipe = hashlib.sha256("\0".join([Path(__file__).read_text("utf-8"), *texts]).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gram_fast"
    folder = cache / f"small-judge-{recipe}"
    if not folder.exists():
        # Written beside and renamed, so that an interrupted run leaves nothing that looks whole.
        unfinished = cache / f".unfinished-{recipe}-{os.getpid()}"
        make_small_judge(unfinished, texts)
        try:
            unfinished.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(unfinished)
    return folder


if __name__ == "__main__":
    if len(sys.argv) > 1:
        make_small_judge(Path(sys.argv[1]), repository_texts())
        print(sys.argv[1])
    else:
        print(cached_small_judge())
