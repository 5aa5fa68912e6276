"""Answers of servers with log probabilities: their text is the server's own, a label's token is sure or none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gram_fast.generating.openai_protocol import read_answers
from gram_fast.generating.second_step import margin_of_tokens
from gram_fast.generating.verdicts import reader
from gram_fast.text.prompts import PairTemplate

GRAM_R2 = reader(PairTemplate.load("gram-r2"))
VERIFIER = reader(PairTemplate.load("verifier-cot"))
THOUGHT = "<think>\nA is good \U0001f600, B \u00e9\n</think>\n"
LIKELY = {"A": -0.1, "B": -2.1, "Yes": -0.3, "No": -1.3}


def pieces(text, cuts=()):
    """Bytes of tokens: the four of an emoji apart, the label alone, others by three."""
    if not cuts:
        before, label, after = text.rpartition(">\nA")
        parts = [(before + label[:-1]).encode(), label[-1:].encode(), after.encode()]
        return [part[k : k + 3] for part in parts for k in range(0, len(part), 3)]
    ends = sorted({cut % len(text.encode()) for cut in cuts} | {len(text.encode())})
    return [text.encode()[a:b] for a, b in zip([0, *ends], ends, strict=False) if a < b]


def entry(piece, with_bytes):
    """A token as servers write it, whose text has U+FFFD for a part of a character."""
    text = piece.decode(errors="replace")
    own = {"token": text, "logprob": -0.1, **({"bytes": list(piece)} if with_bytes else {})}
    more = {text if other == text.strip() else other: value for other, value in LIKELY.items()}
    more = more if text in more else {}
    return {**own, "top_logprobs": [{"token": other, "logprob": value} for other, value in more.items()]}


def read(parts, *, is_chat=True, with_bytes=False, end=("<end>",), **message):
    """Reads one answer whose tokens are these bytes."""
    content = [entry(piece, with_bytes) for piece in [*parts, *(each.encode() for each in end)]]
    names = [each["token"] for each in content]
    likely = [{each["token"]: each["logprob"] for each in one["top_logprobs"]} for one in content]
    columns = {"tokens": names, "token_logprobs": [-0.1] * len(names), "top_logprobs": likely}
    choice = {"finish_reason": "stop", "logprobs": {"content": content} if is_chat else columns}
    choice |= {"message": message} if is_chat else {"text": message["content"]}
    (answer,) = read_answers({"choices": [choice]}, wants_tokens=True)
    return answer


def margin(answer, form=GRAM_R2):
    return margin_of_tokens(answer, form.read(answer.text), form.labels)


@pytest.mark.parametrize("behind", ["", "\n", " so \U0001f600\U0001f600 it is"])
@pytest.mark.parametrize(("is_chat", "with_bytes"), [(True, True), (True, False), (False, False)])
def test_parts_of_characters_neither_spoil_the_text_nor_move_the_label(is_chat, with_bytes, behind):
    text = f"{THOUGHT}<answer>\nA\n</answer>{behind}"
    answer = read(pieces(text), is_chat=is_chat, with_bytes=with_bytes, content=text)
    assert answer.text == text
    assert ("".join(token.text for token in answer.tokens) == text) == with_bytes
    assert answer.num_tokens == len(answer.tokens) + 1
    assert margin(answer) == pytest.approx(2.0)


def test_what_the_server_takes_out_of_the_text_does_not_move_the_label():
    text = f"{THOUGHT}<answer>\nA\n</answer>\n\n"
    thought, rest = text.removeprefix("<think>").split("</think>")
    tokens = pieces(text)
    for content in (rest, rest.strip()):
        for own in (tokens, [*map(str.encode, ("<|channel|>A",)), *tokens], tokens[tokens.index(b"A") - 3 :]):
            answer = read(own, content=content, reasoning_content=thought)
            assert answer.text == f"<think>{thought}</think>{content}"
            assert margin(answer) == pytest.approx(2.0)
    assert margin(read(tokens, content=text.strip(), end=())) == pytest.approx(2.0)
    assert margin(
        read([b" Yes"], content="Yes", end=()),
        reader(PairTemplate.parse("{input} {response}", labels=["Yes", "No"], reasons=True)),
    ) == pytest.approx(1.0)


def test_a_label_whose_token_is_not_sure_has_no_margin():
    text = f"{THOUGHT}<answer>\nA\n</answer>"
    tokens = pieces(text)
    assert margin(read(tokens, content=text, end=("<|A|>", "<end>"))) is None
    assert margin(read(tokens[:-1], content=text)) is None
    at = tokens.index(b"A")
    assert margin(read([*tokens[: at - 1], tokens[at - 1] + b"A", *tokens[at + 1 :]], content=text)) is None
    assert margin(read([], content=text, end=())) is None


@given(
    st.text(alphabet="AB \n\U0001f600\u00e9", max_size=20), st.lists(st.integers(0, 500), max_size=30), st.booleans()
)
def test_however_a_text_is_cut_into_tokens_a_margin_is_that_of_the_label(thought, cuts, with_bytes):
    text = f"{thought}</think>\n<answer>\nA\n</answer>{thought}"
    at = len(f"{thought}</think>\n<answer>\n".encode())
    parts, begin, own = pieces(text, [*cuts, 0]), 0, None
    for piece in parts:
        # White space before a label may be of its token.
        if begin <= at < begin + len(piece) and piece.decode(errors="replace").strip() == "A":
            own = 2.0
        begin += len(piece)
    answer = read(parts, with_bytes=with_bytes, content=text)
    assert answer.text == text
    assert margin(answer) == own


def test_a_server_may_write_bytes_or_not_of_each_token():
    found = read([b"\xf0\x9f", b"\x98", b"\x80"], with_bytes=True, content="\U0001f600")
    assert [token.text for token in found.tokens] == ["", "", "\U0001f600"]
    assert found.tokens[0].logprobs == {"\ufffd": -0.1}
    found = read([b"\xf0\x9f", b"\x98", b"\x80"], content="\U0001f600")
    assert found.text == "\U0001f600"
