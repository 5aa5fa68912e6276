"""Checks that a tokenizer reads text as it is: against another reading of the same file, and by a round trip.

Scores of a tokenizer that drops white space look like any others: plain forwards, to which they are compared, read the
same ids.
"""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tokenizers import Tokenizer

from gram_fast.errors import UnsupportedModelError, one_line

# The first word is left out of comparisons: whether a space is put before a text is an option.
_FIRST = "Sample"
_PLAIN = (
    f'{_FIRST} text: It\'s 3.14, not 1234567 - is it so? (yes) [no] {{maybe}}; "quoted", A/B = 50% & <x> @ #1 *ok*\n'
    "Yes. They'll see, WE'VE said: abcdefghijklm nopqrstuvwxyz\n\nABCDEFGHIJKLM NOPQRSTUVWXYZ 0123456789!"
)
_OTHER = (
    "a  b", "a    b", "a\tb", "a\r\nb", "a\n\n\nb", "def f(x):\n    return x_1 + 2\n\n", "€ £ §", "x² ½",
    "Größe naïve café", "Ελληνικά", "Привет мир", "中文字符和标点。", "日本語の文章。カタカナ", "한국어 문장",
    "العربية نص ١٢٣", "עברית", "हिन्दी", "தமிழ் மொழி", "ไทย", "😀 ok 🎉", "\u2018q\u2019 \u2013 \u2026",
)  # fmt: skip
_SAMPLES = [_PLAIN, *(f"{_FIRST} {text}" for text in _OTHER)]

# Copying a tokenizer takes time and memory with its highest id, as if it had all lower ones: some 2 s for this many.
# Those of large models have 300,000.
_MAX_IDS = 2**24


def check_ids(highest: int) -> None:
    """Raises UnsupportedModelError where a tokenizer's highest token id is out of all proportion."""
    if highest >= _MAX_IDS:
        raise UnsupportedModelError(f"the tokenizer has token id {highest}: expected ids below {_MAX_IDS}")


def is_panic(error: BaseException) -> bool:
    """Whether the error is a panic of the tokenizers library's Rust code, which is no Exception."""
    return type(error).__name__ == "PanicException"


@contextmanager
def tokenizer_errors(doing: str) -> Iterator[None]:
    """Turns what the tokenizers library raises into UnsupportedModelError: "the tokenizer cannot {doing}: ..."."""
    try:
        yield
    except BaseException as error:
        # The library raises nothing narrower than Exception itself.
        if type(error) is not Exception and not is_panic(error):
            raise
        raise UnsupportedModelError(f"the tokenizer cannot {doing}: {one_line(error)}") from error


def read_alike(one: Any, other: Any) -> bool:
    """Whether two fast tokenizers of transformers give sample texts, but for their first word, the same ids."""
    merges = [getattr(t.backend_tokenizer.model, "ignore_merges", None) for t in (one, other)]
    return merges[0] == merges[1] and _readings(one) == _readings(other)


def _readings(tokenizer: Any) -> list[list[int]] | None:
    """Ids of the samples behind the first word; None where they cannot be encoded."""
    try:
        with tokenizer_errors("encode text"):
            encoded = tokenizer(_SAMPLES, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    except UnsupportedModelError:
        return None
    rows = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [[i for i, (_, end) in zip(ids, ends, strict=True) if end > len(_FIRST)] for ids, ends in rows]


def check_round_trip(tokenizer: Tokenizer, original: Tokenizer) -> str | None:
    """Encodes and decodes samples of text -> what does not come back, as a sentence; None where all does.

    `tokenizer` encodes, `original`, of which it is a copy, decodes; without a decoder nothing is tried. Case, accents
    and Unicode's compatible forms may change. Raises UnsupportedModelError where plain English is not the same
    afterwards: its spaces, newlines, letters, digits or punctuation.
    """
    if original.decoder is None:
        return None

    def back(text: str) -> str:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return str(original.decode(ids, skip_special_tokens=False))

    with tokenizer_errors("read back text"):
        plain = back(_PLAIN)
        others = [back(sample)[len(_FIRST) :].lstrip(" ") for sample in _SAMPLES[1:]]
    if _folded(plain) != _folded(_PLAIN):
        same = next(k for k in range(len(_PLAIN)) if _folded(plain)[k : k + 1] != _folded(_PLAIN)[k : k + 1])
        shown = slice(max(0, same - 20), same + 20)
        raise UnsupportedModelError(
            f"the tokenizer does not keep text: {_PLAIN[shown]!r} comes back as {plain[shown]!r}, so that the model "
            "would not read what the responses say"
        )
    lost = [(text, other) for text, other in zip(_OTHER, others, strict=True) if _folded(text) != _folded(other)]
    if not lost:
        return None
    text, other = lost[0]
    return f"the tokenizer changes {len(lost)} of {len(_OTHER)} samples of text, first {text!r} to {other!r}"


def _folded(text: str) -> str:
    """The text without case, marks and compatible forms, which normalizers may drop, and without spaces around it."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(char for char in decomposed if unicodedata.category(char)[0] != "M").casefold().strip(" ")
