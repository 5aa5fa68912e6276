"""Trains byte-level BPE tokenizers with Qwen's pre-tokenization rule on given texts."""

from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# Pre-tokenization rule of Qwen2 and Qwen3.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Chat template of Qwen3 without tools.
QWEN_CHAT_TEMPLATE = """\
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
    """Trains a byte-level BPE tokenizer with Qwen's pre-tokenization rule on `texts`.

    `vocab_size` includes the `special` tokens and the `added` ones, which are not special; `eos` and `pad` are among
    the special ones.
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


def make_qwen_tokenizer(texts: list[str], vocab_size: int = 8192) -> PreTrainedTokenizerFast:
    """Trains a tokenizer with Qwen's special tokens and chat template, including its thinking switch, on `texts`."""
    return make_tokenizer(
        texts,
        vocab_size,
        QWEN_CHAT_TEMPLATE,
        special=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        added=["<think>", "</think>"],
        eos="<|im_end|>",
        pad="<|endoftext|>",
    )
