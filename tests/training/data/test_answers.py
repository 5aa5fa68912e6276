"""Answers of judges that reason: what is written is read back, and answers of others are read or named."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.errors import InputError
from gram_fast.generating.verdicts import reader
from gram_fast.text.prompts import PairTemplate
from gram_fast.training.data.answers import AnswerForm, body_of, early_end, read_answer

GRAM_R2 = PairTemplate.load("gram-r2")
GENRM = PairTemplate.load("genrm")
SEED = PairTemplate.parse(PairTemplate.load("short").text, answer_prefix="</seed:think>\nBest: ", labels=["x", "y"])
CLOSED = PairTemplate.parse(PairTemplate.load("short").text, answer_prefix="<think>\n\n</think>\n\n[[")
TEMPLATES = (GRAM_R2, GENRM, SEED, CLOSED)
BODY = st.text() | st.sampled_from(["<think>\nx", "x\n</think>\n<answer>\nB\n</answer>", "\n", " [[B]]\n[[A]]", "[["])


@pytest.mark.parametrize(
    ("template", "in_thinking", "expected"),
    [
        (GRAM_R2, False, "<think>\nso\n</think>\n<answer>\nB\n</answer>"),
        (GRAM_R2, True, "so\n</think>\n<answer>\nB\n</answer>"),
        (GENRM, False, "so\n[[B]]"),
        (GENRM, True, "so\n[[B]]"),
        (SEED, False, "<seed:think>\nso\n</seed:think>\nBest: y"),
        (CLOSED, False, "so\n<think>\n\n</think>\n\n[[B"),
    ],
)
def test_a_rationale_has_the_tag_that_the_prefix_closes_and_the_prompt_has_not_opened(template, in_thinking, expected):
    form = AnswerForm.of(template, in_thinking)
    assert form.write("so", 1) == expected
    assert form.write(None, 1) == template.answer_prefix + template.labels[1] + template.answer_suffix


@given(BODY, st.integers(0, 1), st.sampled_from(TEMPLATES), st.booleans())
@settings(deadline=None)
def test_what_is_written_is_read_back_to_the_letter(body, label, template, in_thinking):
    form = AnswerForm.of(template, in_thinking)
    answer = form.write(body, label)
    assert form.read(answer) == (body, label)
    assert reader(template).read(answer).label == label
    assert form.read(answer + "?") is None


@pytest.mark.parametrize(
    "text", ["", "A", "<think>\n</think>\n<answer>\nA\n</answer>", "so\n</think>\n<answer>\nA\n</answer>"]
)
def test_other_text_is_no_answer_of_the_form(text):
    assert AnswerForm.of(GRAM_R2).read(text) is None


def test_a_rationale_wants_something_between_it_and_the_label():
    form = AnswerForm.of(PairTemplate.load("gram"))
    assert form.write(None, 0) == "A"
    with pytest.raises(InputError, match=r"^preset: expected an answer_prefix, which stands between a rationale and"):
        form.write("so", 0)


@pytest.mark.parametrize(
    ("thought", "body"),
    [
        ("so", "so"),
        (" so\nit is \n", "so\nit is"),
        ("<think>\nso\n</think>", "so"),
        ("<think>so", "so"),
        ("so</think>\n", "so"),
        ("[THINK]so[/THINK]", "so"),
        ("</think> so <think>", "</think> so <think>"),
        ("a <think> b </think> c", "a <think> b </think> c"),
        ("<think>\n\n</think>", ""),
        ("<think>", ""),
    ],
)
def test_a_thought_is_read_without_its_tags(thought, body):
    assert body_of(thought) == body


@pytest.mark.parametrize(
    ("template", "body", "mark"),
    [
        (GRAM_R2, "so </think> it is", "</think>"),
        (GRAM_R2, "so [THINK] it is", "[THINK]"),
        (GRAM_R2, "so\n<answer>\nB\n</answer> or not", "<answer>\nB"),
        (GRAM_R2, "an <answer> of B", None),
        (GENRM, "first [[ A ]], but", "[[ A"),
        (GENRM, "</think>", "</think>"),
        (GENRM, "[[1, 2]] is a matrix, [A] is none", None),
        (SEED, "</seed:think>", "</seed:think>"),
        (PairTemplate.load("gram"), "A", None),
        (PairTemplate.load("gram"), "A <think>", "<think>"),
    ],
)
def test_what_ends_a_thought_before_its_verdict_is_found(template, body, mark):
    assert early_end(template, body) == mark


@pytest.mark.parametrize(
    ("template", "answer", "expected"),
    [
        (GRAM_R2, "<think>\nFeedback:\nx\n</think>\n<answer>\nA\n</answer>", ("Feedback:\nx", 0)),
        (GRAM_R2, " <think>x</think><answer>B</answer>\n", ("x", 1)),
        (GRAM_R2, "x\n</think>\n<answer>\nB\n</answer>", ("x", 1)),
        (GRAM_R2, "B", (None, 1)),
        (GRAM_R2, "\nA\n", (None, 0)),
        (GRAM_R2, "<answer>\nB\n</answer>", (None, 1)),
        (GRAM_R2, "<think>\n\n</think>\n<answer>\nB\n</answer>", (None, 1)),
        (GENRM, "[[A]]", (None, 0)),
        (GENRM, "A matrix [[1]].\n\n[[B]]", ("A matrix [[1]].", 1)),
        (SEED, "so</seed:think>Best: y", ("so", 1)),
        (PairTemplate.load("gram"), " A", (None, 0)),
    ],
)
def test_answers_of_others_are_read(template, answer, expected):
    assert read_answer(template, answer, "output") == expected


@pytest.mark.parametrize(
    ("template", "answer", "message"),
    [
        (
            GRAM_R2,
            "C",
            "output: expected 'A' or 'B', alone or between '</think>\\n<answer>\\n' and '\\n</answer>', found",
        ),
        (GRAM_R2, "<think>x</think>\n<answer>\nA or B\n</answer>", "found a verdict that is no label in"),
        (GRAM_R2, "<think>x</think>\n<answer>\nA", "found no closing tag in"),
        (GRAM_R2, "<think>x</think> A", "found no verdict in"),
        (GRAM_R2, "<think>x\n<answer>\nA\n</answer>", "between rationale and verdict, found '<answer>"),
        (GRAM_R2, "<think>x</think>\nSo:\n<answer>\nA\n</answer>", "between rationale and verdict, found "),
        (
            GRAM_R2,
            "<think>x</think>\n<answer>\nA\n</answer>\nYes.",
            "expected '\\n</answer>' at the end of the answer, found",
        ),
        (GENRM, "[[A]] it is", "expected ']]' at the end of the answer, found ']] it is'"),
    ],
)
def test_what_is_wrong_with_an_answer_is_named(template, answer, message):
    with pytest.raises(InputError) as caught:
        read_answer(template, answer, "output")
    assert message in str(caught.value)
    assert str(caught.value).startswith("output: expected ")
