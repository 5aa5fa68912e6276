"""Texts of tokens join to that of all of them, whatever a tokenizer does at the beginning and within characters."""

import pytest
from helpers.small_tokenizers import ALL, tokenizer

from gram_fast.generating.token_texts import decode, token_texts, tokens_of

TEXT = "Größe 日本語 👩\u200d💻😀 it's [[A]] so.\n\n  <answer>B</answer>"


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_texts_join(name: str, left_out: int) -> None:
    made = tokenizer(name)
    for text in (TEXT, TEXT[::-1], "👩👩"):
        ids = made.encode(text, add_special_tokens=False)
        ids = ids[left_out : len(ids) - left_out]
        texts = token_texts(made, ids)
        assert len(texts) == len(ids)
        assert "".join(texts) == decode(made, ids)


@pytest.mark.parametrize("name", ["qwen", "llama2"])
def test_a_label_is_found_by_its_text_wherever_it_stands(name: str) -> None:
    made = tokenizer(name)
    ids = made.encode("so [[A]] it", add_special_tokens=False)
    other = made.encode("[[B", add_special_tokens=False)[-1]
    tokens = tokens_of(made, ids, [{token: -0.1, other: -2.0} for token in ids])
    for token in tokens:
        assert "B" in token.logprobs
        assert token.text in token.logprobs or token is tokens[0]
    assert {"A": -0.1, "B": -2.0} in [dict(token.logprobs) for token in tokens]


def test_of_tokens_with_one_text_the_likeliest_counts() -> None:
    made = tokenizer("qwen")
    first, second, *_ = made.encode("👩", add_special_tokens=False)
    (token,) = tokens_of(made, [first], [{second: -1.0, first: -3.0}])
    assert token.logprobs == {"\ufffd": -1.0}
