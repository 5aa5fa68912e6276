"""Texts of an answer's tokens: a token may be a part of a character, and its text may depend on where it stands."""

from collections.abc import Mapping, Sequence
from typing import Any

from gram_fast.generating.generator import Token

# What a decoder writes for bytes that are no character, or not yet.
_UNKNOWN = "\ufffd"


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens, with that of special ones."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The texts that tokens add, which join to that of all; a token that ends within a character adds nothing yet."""
    texts: list[str] = []
    begin = end = 0  # of the tokens of the last text that was whole: a decoder may treat the first token otherwise
    for k in range(len(ids)):
        before, now = decode(tokenizer, ids[begin:end]), decode(tokenizer, ids[begin : k + 1])
        is_whole = k + 1 == len(ids) or not now.endswith(_UNKNOWN)
        texts.append(now[len(before) :] if is_whole else "")
        if is_whole:
            begin, end = end, k + 1
    return texts


def tokens_of(tokenizer: Any, ids: Sequence[int], likely: Sequence[Mapping[int, float]]) -> list[Token]:
    """Makes an answer's tokens.

    Args:
        tokenizer: of the model.
        ids: of the answer.
        likely: for each token the log probabilities by id of the most likely in its place, and its own.
    """
    # Behind an ordinary token: in front, some decoders drop a space.
    (*_, anchor) = tokenizer.encode("a", add_special_tokens=False)
    start = len(decode(tokenizer, [anchor]))
    text_of = {
        token: decode(tokenizer, [anchor, token])[start:] for token in {token for each in likely for token in each}
    }
    texts = token_texts(tokenizer, ids)
    return [Token(text, _by_text(each, text_of)) for text, each in zip(texts, likely, strict=True)]


def _by_text(likely: Mapping[int, float], text_of: Mapping[int, str]) -> dict[str, float]:
    """Log probabilities by text; of several tokens with one text, such as parts of characters, the likeliest's."""
    found: dict[str, float] = {}
    for token, value in likely.items():
        found[text_of[token]] = max(value, found.get(text_of[token], value))
    return found
