"""Settings of a preset file: labels, answer prefix, frame and variables of the chat template."""

import pytest
from helpers.small_tokenizers import tokenizer
from hypothesis import given
from hypothesis import strategies as st

from gram_fast.errors import InputError, UnsupportedModelError
from gram_fast.text.prompts import LABELS, ChatText, PairTemplate
from gram_fast.text.settings import split_front_matter
from gram_fast.text.tokens import PairTokenizer

TEXT = "Q: {input}\n\nA: {response_a}\n\nB: {response_b}\n\nBetter:"
ALL = """
labels = [" A", " B"]
answer_prefix = "</think>\\n<answer>\\n"
[chat_template_kwargs]
date_string = "26 Jul 2024"
enable_thinking = true
"""


@pytest.fixture
def load(tmp_path):
    """Loads a preset file with these bytes."""
    path = tmp_path / "mine.txt"

    def write(text):
        path.write_bytes(text.encode())
        return PairTemplate.load(str(path))

    return write


def test_settings_are_read_and_the_text_is_kept(load):
    template = load(f"+++{ALL}+++\n\n{TEXT}\n\n")
    assert template.text == f"\n{TEXT}\n\n"
    assert template.labels == (" A", " B")
    assert template.answer_prefix == "</think>\n<answer>\n"
    assert template.chat_template_kwargs == {"date_string": "26 Jul 2024", "enable_thinking": True}
    assert template.frame is None


def test_windows_line_ends_of_the_settings(load):
    assert load(f"+++\r\nanswer_prefix = '[['\r\n+++\r\n{TEXT}\r\n") == PairTemplate.parse(
        f"{TEXT}\r\n", answer_prefix="[["
    )


def test_settings_may_be_empty_and_hold_the_border_inside_a_line(load):
    assert load(f"+++\n+++\n{TEXT}") == PairTemplate.parse(TEXT)
    assert load(f"+++\nanswer_prefix = 'a+++'\n# +++\n+++\n{TEXT}").answer_prefix == "a+++"


@given(st.text().filter(lambda text: text.partition("\n")[0].rstrip("\r") != "+++"))
def test_a_file_without_settings_is_all_text(text):
    assert split_front_matter(text, "mine") == ({}, text)


@given(st.text())
def test_text_behind_settings_is_kept(text):
    assert split_front_matter(f"+++\nx = 1\n+++\n{text}", "mine") == ({"x": 1}, text)


def test_plain_template_has_the_defaults():
    template = PairTemplate.parse(TEXT)
    assert (template.labels, template.answer_prefix, template.frame) == (LABELS, "", None)
    assert template.chat_template_kwargs == {}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("labels = ['A']", "labels: expected a list of two texts that differ, found ['A']"),
        ("labels = ['A', 'A']", "labels: expected a list of two texts that differ, found ['A', 'A']"),
        ("labels = ['A', '']", "labels: expected a list of two texts that differ, found ['A', '']"),
        ("labels = [1, 2]", "labels: expected a list of two texts that differ, found [1, 2]"),
        ("labels = 'AB'", "labels: expected a list of two texts that differ, found 'AB'"),
        ("answer_prefix = 3", "answer_prefix: expected text, found 3"),
        ("frame = 'x'", "frame: expected text with {content} once, found 'x'"),
        ("frame = '{content}{content}'", "frame: expected text with {content} once, found '{content}{content}'"),
        ("chat_template_kwargs = 3", "chat_template_kwargs: expected a table of names and values, found 3"),
        ("chat_template_kwargs = {tokenize = true}", "chat_template_kwargs: expected variables of the chat template"),
        ("chat_template_kwargs = {d = 2024-07-26}", "chat_template_kwargs: d: expected a JSON value, got datetime"),
        ("frame = '{content}'\nchat_template_kwargs = {x = 1}", "a frame stands in place of the chat template"),
        (
            "label = ['A', 'B']",
            "there is no setting 'label': expected one of labels, answer_prefix, answer_suffix, ",
        ),
        ("labels", "expected TOML between the lines +++, "),
    ],
)
def test_bad_settings_are_named_in_one_sentence(load, settings, said):
    with pytest.raises(InputError) as error:
        load(f"+++\n{settings}\n+++\n{TEXT}")
    assert f"mine.txt: {said}" in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_without_an_end_are_named(load):
    with pytest.raises(InputError, match=r"mine\.txt: expected a second line \+\+\+ at the end of its settings"):
        load(f"+++\nanswer_prefix = '[['\n{TEXT}")


@pytest.mark.parametrize("name", ["qwen", "llama3", "llama2", "deepseek", "unigram"])
@pytest.mark.parametrize(
    "settings",
    [{"answer_prefix": "[["}, {"answer_prefix": "</think>\n<answer>\n"}, {"answer_prefix": "[[", "labels": ["x", "y"]}],
    ids=str,
)
def test_labels_are_read_right_behind_the_answer_prefix(name, settings):
    template = PairTemplate.parse(TEXT, **settings)
    pairs = PairTokenizer(tokenizer(name), template)
    plain = ChatText.render(PairTemplate.parse(TEXT), tokenizer(name)).fill("q", "a", "b")
    text = plain + settings["answer_prefix"]
    assert pairs.text.fill("q", "a", "b") == text
    encode = lambda text: tokenizer(name)(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    assert pairs.whole_ids([("q", "a", "b")])[0].tolist() == encode(text)
    for label, label_id in zip(template.labels, pairs.label_ids, strict=True):
        assert encode(text + label) == [*encode(text), label_id]


def test_labels_with_a_space():
    template = PairTemplate.parse(TEXT, answer_prefix="Verdict:", labels=[" A", " B"])
    pairs = PairTokenizer(tokenizer("qwen"), template)
    assert [tokenizer("qwen").decode([label]) for label in pairs.label_ids] == [" A", " B"]


def test_a_label_that_is_no_token_is_named():
    with pytest.raises(UnsupportedModelError, match="label 'Yessss' is not one token after the prompt"):
        PairTokenizer(tokenizer("qwen"), PairTemplate.parse(TEXT, labels=["Yessss", "No"]))


def test_a_template_of_one_response_is_a_verifier_s():
    template = PairTemplate.parse("Q {input} R {response} ?")
    assert template.is_verifier
    assert template.fill("q", "r") == "Q q R r ?"
    assert PairTemplate.parse(template.text) == template


def test_response_in_braces_is_text_beside_a_pair():
    text = f"{{response}}{TEXT}"
    assert PairTemplate.parse(text).fill("1", "2", "3").startswith("{response}Q: 1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{response}", r"expected \{input\} exactly once, found it 0 times"),
        ("{input}{response} {response}", r"expected \{response\} exactly once, found it 2 times"),
        ("{input}{response}{response_a}", r"expected \{response_b\} exactly once, found it 0 times"),
    ],
)
def test_a_verifier_s_slots_are_checked(text, said):
    with pytest.raises(InputError, match=rf"^mine: {said}$"):
        PairTemplate.parse(text, "mine")
