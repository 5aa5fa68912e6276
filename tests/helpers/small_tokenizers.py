"""Small tokenizers, made in memory, one per kind that checkpoints come with.

Each is trained on the fixed texts below, so it is the same in every run. `ALL` names them; `tokenizer(name)` makes each
once. Tests must not change what it returns: `tokenizer.__wrapped__(name)` makes a fresh one.
"""

import functools
import json
import warnings
from collections.abc import Callable
from importlib import resources

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gram_fast.text.tokens import PairTokenizer
from gram_fast.training.small_judge.tokenizer import QWEN_CHAT_TEMPLATE as CHATML
from gram_fast.training.small_judge.tokenizer import QWEN_SPLIT
from helpers.texts import TEMPLATES

LLAMA3_SPLIT = QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# Splits at a digit only behind white space: what stands in front of a cut changes what comes after it.
LOOKBEHIND_SPLIT = r"(?<=\s)\p{N}+|\p{L}+|[^\p{L}\s]+|\s+"

# As CHATML, without a thinking switch and without <think> tokens.
PLAIN_CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""
LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content | trim }}<|eot_id|>
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start_header_id|>assistant<|end_header_id|>

{% endif -%}"""
# As Llama 3.2: the date of today in a system turn.
DATED = (
    '{%- if date_string is not defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif -%}'
    + LLAMA3.replace(
        "{%- for message",
        "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n<|eot_id|>{%- for message",
        1,
    )
)
INST = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == "user" -%}
[INST] {{ message.content | trim }} [/INST]
{%- else -%}
{{ " " + message.content + eos_token }}
{%- endif -%}
{%- endfor -%}"""
# The names of DeepSeek's tokens have full-width bars.
_BAR = str.maketrans("|", "\uff5c")
DEEPSEEK = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == "user" -%}
<|User|>{{ message.content }}
{%- else -%}
<|Assistant|>{{ message.content }}<|end▁of▁sentence|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|Assistant|><think>

</think>
{%- endif -%}""".translate(_BAR)

PRESETS = [
    (resources.files("gram_fast") / "presets" / f"{name}.txt").read_text("utf-8") for name in ("gram", "gram-demo")
]
TEXTS = [
    *PRESETS,
    "The quick brown fox doesn't jump over the lazy dog; it's 3.14 times too tired, and we'll see 1234567 more.\n\n"
    "Answer: I think they're right. They've said so! Haven't they? (yes) [no] {maybe}...\n",
    "```python\nfor i in range(100):\n    print(f'{i}: {i * i}')\n\n\treturn None\n```\r\nDone.\r\n\r\n",
    "Größe, naïve café, 中文字符和标点。日本語の文章。 العربية نص قصير. தமிழ் மொழி. Привет, мир! 👩\u200d💻😀",
]

Make = Callable[[], PreTrainedTokenizerFast]


def wrap(tokenizer: Tokenizer, chat_template: str | None, **special: str) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers gives it to a user."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=chat_template, clean_up_tokenization_spaces=False, **special
    )


def byte_level(
    split: str | None, ignore_merges: bool = False, texts: list[str] = TEXTS, vocab_size: int = 900
) -> Tokenizer:
    """Byte-level BPE: `split` is the splitting rule, None for the one of GPT-2 that is built in."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    parts = [pre_tokenizers.Split(Regex(split), "isolated")] if split else []
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts) if split else parts[0]
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def add_chatml(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return tokenizer


def qwen() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(QWEN_SPLIT)
    tokenizer.normalizer = normalizers.NFC()
    add_chatml(tokenizer)
    # As in Qwen3: added, but not special.
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return wrap(tokenizer, CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def llama3() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(LLAMA3_SPLIT, ignore_merges=True)
    tokenizer.add_special_tokens(
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    )
    return wrap(tokenizer, LLAMA3, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def gpt2() -> PreTrainedTokenizerFast:
    return wrap(add_chatml(byte_level(None)), PLAIN_CHATML, eos_token="<|im_end|>")


def lookbehind() -> PreTrainedTokenizerFast:
    return wrap(add_chatml(byte_level(LOOKBEHIND_SPLIT)), PLAIN_CHATML, eos_token="<|im_end|>")


def deepseek() -> PreTrainedTokenizerFast:
    """The tokens that frame its turns are added, but not marked special."""
    tokenizer = byte_level(LLAMA3_SPLIT)
    bos, eos, user, assistant = (
        name.translate(_BAR) for name in ("<|begin▁of▁sentence|>", "<|end▁of▁sentence|>", "<|User|>", "<|Assistant|>")
    )
    tokenizer.add_special_tokens([bos, eos])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in (user, assistant, "<think>", "</think>")])
    return wrap(tokenizer, DEEPSEEK, bos_token=bos, eos_token=eos)


CONTROL = ["<unk>", "<s>", "</s>"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def merges_of(texts: list[str], vocab_size: int, by_word: bool) -> tuple[list[str], list[tuple[str, str]]]:
    """Vocabulary and merges of a BPE with "▁" for spaces, trained word by word or across spaces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=by_word)
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    vocab = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return vocab, [tuple(merge) for merge in model["merges"]]


def sentencepiece_bpe(texts: list[str], vocab_size: int, by_word: bool) -> Tokenizer:
    """As Llama 2 and Mistral: no pre-tokenizer, bytes for unknown characters, control tokens in the vocabulary."""
    pieces, merges = merges_of(texts, vocab_size, by_word)
    vocab = {token: number for number, token in enumerate(CONTROL + _BYTES + pieces)}
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(CONTROL)
    return tokenizer


def _lines() -> list[str]:
    # SentencePiece never sees a line end: "\n" stays out of the vocabulary and is spelled as a byte.
    return [line for text in TEXTS for line in text.splitlines() if line]


def llama2() -> PreTrainedTokenizerFast:
    tokenizer = sentencepiece_bpe(_lines(), 700, by_word=True)
    return wrap(tokenizer, INST, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def no_cut() -> PreTrainedTokenizerFast:
    """Every line of the presets has become one token, so every place in them lies inside some token."""
    # The trainer goes on until each text is one token.
    filled = [f"[INST] {text}[/INST]" for text in PRESETS]
    tokenizer = sentencepiece_bpe([*filled, *TEXTS[2:]], 20_000, by_word=False)
    return wrap(tokenizer, INST, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def metaspace_first() -> PreTrainedTokenizerFast:
    """As newer conversions of Llama 2: "▁" is put before the first text only, not behind special tokens."""
    tokenizer = sentencepiece_bpe(_lines(), 700, by_word=True)
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return wrap(tokenizer, INST, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram() -> PreTrainedTokenizerFast:
    """Its best path is a sum over the whole text: ".." + "." and "." + ".." tie, and rounding decides."""
    pieces, _ = merges_of(_lines(), 700, by_word=True)
    # Scores by rank, not from the trainer, which is not the same in every run.
    vocab = [(token, 0.0) for token in CONTROL] + [(token, -20.0) for token in _BYTES]
    vocab += [(piece, -1.0 - 0.01 * rank) for rank, piece in enumerate(reversed(pieces))]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(CONTROL)
    return wrap(tokenizer, INST, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


MAKE: dict[str, Make] = {
    "qwen": qwen,
    "llama3": llama3,
    "gpt2": gpt2,
    "deepseek": deepseek,
    "llama2": llama2,
    "metaspace_first": metaspace_first,
    "unigram": unigram,
    "no_cut": no_cut,
    "lookbehind": lookbehind,
}
ALL = list(MAKE)
# Those for which no template of these tests has a safe cut.
WHOLE = ["unigram", "no_cut", "lookbehind"]
COMPOSED = [name for name in ALL if name not in WHOLE]


@functools.cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    return MAKE[name]()


@functools.cache
def pair_tokenizer(name: str, template: str = "gram") -> PairTokenizer:
    """Made once: tests that change it make their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PairTokenizer(tokenizer(name), TEMPLATES[template])
