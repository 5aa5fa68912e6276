"""Verdicts of what a judge wrote: what counts, where the rationale ends, and what is invalid."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gram_fast.generating.verdicts import NO_CLOSING, NO_VERDICT, OVER_THE_LIMIT, UNKNOWN_VERDICT, reader
from gram_fast.text.prompts import PairTemplate

GRAM_R2 = reader(PairTemplate.load("gram-r2"))
GENRM = reader(PairTemplate.load("genrm"))
PLAIN = reader(PairTemplate.load("gram"))
VERIFIER = reader(PairTemplate.load("verifier-cot"))
THOUGHT = "<think>\nFeedback:\nA is short.\n\nConclusion:\nB.\n"


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        (f"{THOUGHT}</think>\n<answer>\nB\n</answer>", 1),
        (f"{THOUGHT}</think>\n\n<answer>A</answer>\n", 0),
        (f"{THOUGHT}</think><answer> B </answer> and more words", 1),
        (f"{THOUGHT}</think>\nSo I say:\n<answer>\nB\n</answer>", 1),
    ],
)
def test_well_formed_answers_have_their_label_and_their_thought(answer, label):
    found = GRAM_R2.read(answer)
    assert (found.label, found.problem) == (label, None)
    assert found.rationale == THOUGHT
    assert answer[found.label_at] == "AB"[label]


def test_the_last_answer_block_counts():
    answer = f"{THOUGHT}<answer>A</answer>\n</think>\n<answer>\nB\n</answer>"
    assert GRAM_R2.read(answer).label == 1
    assert GRAM_R2.read(answer).rationale == f"{THOUGHT}<answer>A</answer>\n"
    assert GRAM_R2.read(f"{THOUGHT}<answer>A</answer>\n</think>\n<answer>\nBoth\n</answer>").problem == UNKNOWN_VERDICT


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("", NO_VERDICT),
        (THOUGHT, NO_VERDICT),
        (f"{THOUGHT}</think>\n", NO_VERDICT),
        (f"{THOUGHT}</think>\n<answer>\nA", NO_CLOSING),
        (f"{THOUGHT}</think>\n<answer>\n</answer>", NO_VERDICT),
        (f"{THOUGHT}</think>\n<answer>\nA or B\n</answer>", UNKNOWN_VERDICT),
        (f"{THOUGHT}</think>\n<answer>\na\n</answer>", UNKNOWN_VERDICT),
    ],
)
def test_other_answers_have_no_label_and_say_why(answer, problem):
    found = GRAM_R2.read(answer)
    assert (found.label, found.problem) == (None, problem)
    assert found.rationale == (THOUGHT if answer else "")
    assert GRAM_R2.read(answer, is_cut=True).problem == OVER_THE_LIMIT


def test_a_limit_behind_the_verdict_does_no_harm():
    assert GRAM_R2.read(f"{THOUGHT}</think>\n<answer>\nA\n</answer> and", is_cut=True).label == 0


@pytest.mark.parametrize(
    ("answer", "label", "rationale"),
    [
        ("[[A]]", 0, ""),
        ("The matrix [[1, 2], [3, 4]] is wrong in A. [[B]]", 1, "The matrix [[1, 2], [3, 4]] is wrong in A. "),
        ("[[B]], as [[1, 2], [3, 4]] is wrong", 1, ""),
        ("[[A]] at first, but now [[B]]", 1, "[[A]] at first, but now "),
    ],
)
def test_of_brackets_the_last_with_a_label_count(answer, label, rationale):
    found = GENRM.read(answer)
    assert (found.label, found.rationale, found.problem) == (label, rationale, None)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [("A is better", NO_VERDICT), ("[[C]]", UNKNOWN_VERDICT), ("[[A", NO_CLOSING), ("[[1, 2]]", UNKNOWN_VERDICT)],
)
def test_brackets_without_a_label_are_invalid(answer, problem):
    assert GENRM.read(answer).problem == problem


def test_without_a_prefix_the_whole_answer_is_the_verdict():
    assert (PLAIN.read(" B\n").label, PLAIN.read(" B\n").label_at) == (1, 1)
    assert PLAIN.read("B is better").problem == UNKNOWN_VERDICT
    assert PLAIN.read(" ").problem == NO_VERDICT


def test_without_a_suffix_the_label_stands_right_behind_the_last_prefix():
    question = "Verification: Is the answer correct (Yes/No)?"
    steps = "Let's verify step by step. 2 + 2 is 4.\n"
    found = VERIFIER.read(f"{steps}{question} Yes")
    assert (found.label, found.rationale) == (0, steps)
    assert VERIFIER.read(f"{steps}{question} No, it is not.").label == 1
    for other in ("Yesterday", "Yes/No", "Maybe"):
        assert VERIFIER.read(f"{steps}{question} {other}").problem == UNKNOWN_VERDICT
    assert VERIFIER.read(f"{steps}{question}").problem == NO_VERDICT


def test_labels_need_not_be_words():
    signs = reader(PairTemplate.parse("{input} {response}", labels=["+", "-"], answer_prefix="Verdict:", reasons=True))
    assert [signs.read(f"So: Verdict: {sign}").label for sign in "+-"] == [0, 1]
    assert signs.read("So: Verdict: +1").problem == UNKNOWN_VERDICT


@given(st.text(), st.sampled_from("AB"), st.sampled_from(["gram-r2", "genrm"]))
def test_what_a_template_writes_is_read_back(thought, label, preset):
    template = PairTemplate.load(preset)
    answer = thought + template.answer_prefix + label + template.answer_suffix
    found = reader(template).read(answer)
    assert found.label == "AB".index(label)
    # White space at its end, or a tag within it, may belong to the prefix.
    assert thought.startswith(found.rationale)


@given(st.text(alphabet="AB[]<>/answerthink\n ", max_size=80))
def test_any_text_is_read(text):
    for one in (GRAM_R2, GENRM, PLAIN, VERIFIER):
        found = one.read(text)
        assert (found.label is None) == (found.problem is not None)
        assert text.startswith(found.rationale)
