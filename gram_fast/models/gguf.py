"""GGUF files: what transformers' reader makes of them is taken where it is right, and refused where it is not.

transformers reads the configuration and the weights, which it turns into floating-point numbers. Its tokenizers leave
out `tokenizer.ggml.pre`, by which llama.cpp splits text before merging, so they give other ids than the model was
trained on (two spaces before a digit, in a SmolLM file); the tokenizer is made here, of the same fields of the file.
"""

import struct
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf.reader import read_gguf_metadata
from transformers.utils import is_gguf_available

from gram_fast.errors import BackendError, InputError, UnsupportedModelError, one_line

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Values of `general.architecture` that are taken; Mistral is `llama` there."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), _BYTES])


# How text is split before merging, by `tokenizer.ggml.pre`, as the models' own tokenizer.json does.
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_SPLITS = {
    "gpt-2": _GPT2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2]),
    "qwen2": _split_by(_WORDS + r"\p{N}" + _REST),
    "llama-bpe": _split_by(_WORDS + r"\p{N}{1,3}" + _REST),
}
# Those whose tokens are taken whole where a word is one, without merging.
_IGNORE_MERGES = ("llama-bpe",)
_CONTROL, _USER_DEFINED = 3, 4
_ARRAYS = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")


def check_gguf(path: Path) -> None:
    """Raises for a GGUF file that transformers' reader gives another model of, or none.

    Raises InputError for a broken file, UnsupportedModelError for an architecture or a rotary embedding that is not
    read exactly, and BackendError where the package gguf is not installed.
    """
    metadata, names = _read(path)
    architecture = metadata["general.architecture"]
    if architecture not in ARCHITECTURES:
        expected = ", ".join(ARCHITECTURES)
        raise UnsupportedModelError(f"{str(path)!r}: architecture {architecture!r}, expected one of {expected}")
    scaling = sorted(key for key in metadata if key.startswith(f"{architecture}.rope.scaling."))
    scaling += [name for name in names if name.startswith("rope_")]
    if scaling and metadata.get(f"{architecture}.rope.scaling.type") != "none":
        raise UnsupportedModelError(
            f"{str(path)!r}: its rotary embedding is scaled ({scaling[0]}), which transformers does not read from GGUF"
        )
    if not is_gguf_available():
        raise BackendError(f"{str(path)!r} is a GGUF file, which needs the package gguf: install gram_fast[gguf]")


def read_gguf_tokenizer(path: Path) -> Any:
    """The tokenizer of a GGUF file, with its chat template.

    Raises InputError for a broken file, UnsupportedModelError for a tokenizer that is not byte-level BPE, or that
    splits text in a way that is not known here.
    """
    metadata, _ = _read(path)
    where, kind, pre = (
        f"the tokenizer of {str(path)!r}",
        *(metadata.get(f"tokenizer.ggml.{k}") for k in ("model", "pre")),
    )
    if kind != "gpt2":
        raise UnsupportedModelError(f"{where} is of the kind {kind!r}, expected 'gpt2', which is byte-level BPE")
    if pre not in _SPLITS:
        raise UnsupportedModelError(f"{where} splits text by {pre!r}, expected one of {', '.join(_SPLITS)}")
    try:
        tokens, merges = (metadata[key] for key in _ARRAYS)
        types = metadata["tokenizer.ggml.token_type"]
        model = BPE({token: i for i, token in enumerate(tokens)}, [tuple(merge.split(" ")) for merge in merges])
        model.ignore_merges = pre in _IGNORE_MERGES
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer, tokenizer.decoder = _SPLITS[pre], decoders.ByteLevel()
        if pre == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        of_kind = list(zip(tokens, types, strict=True))
        tokenizer.add_special_tokens(
            [AddedToken(t, normalized=False, special=True) for t, k in of_kind if k == _CONTROL]
        )
        tokenizer.add_tokens([AddedToken(t, normalized=False) for t, k in of_kind if k == _USER_DEFINED])
        names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
        ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
        special = {name: tokens[i] for name, i in ids.items() if i is not None}
    except Exception as error:  # a broken file may hold anything, and the tokenizers library raises Exception itself
        raise InputError(f"{where} is broken: {one_line(error)}") from error
    chat_template = metadata.get("tokenizer.chat_template")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=chat_template, **special)


def _read(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The metadata of a file, with its vocabulary and merges, and the names of its tensors."""
    try:
        metadata, names = read_gguf_metadata(str(path), _ARRAYS)
    except (ValueError, LookupError, OSError, struct.error, OverflowError, MemoryError) as error:
        raise InputError(f"cannot load {str(path)!r}: {one_line(error)}") from error
    return metadata, names
