"""Proofs of the proving model: the rule between them and rationales can be reversed, and what is no proof is named."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gram_fast.errors import InputError
from gram_fast.text.prompts import PairTemplate, preset_names
from gram_fast.training.data.answers import AnswerForm
from gram_fast.training.proofs import OPENING, conclusion, prover_template, read_proof, write_proof

BODY = st.text() | st.sampled_from([OPENING, f"\n{conclusion('B')}\n", f"{OPENING}\n\n{conclusion('A')}", "\n\n", " "])
ANSWERED = [name for name in preset_names() if PairTemplate.load(name).answer_prefix]


def test_the_rule_is_that_of_the_page():
    assert write_proof("First, Response A is ... Response B is ...", "A") == (
        "Here is my justification for why the selected response is the better one.\n"
        "First, Response A is ... Response B is ...\n"
        "Thus, Response A is better."
    )


@given(BODY, st.sampled_from("AB"), st.sampled_from(ANSWERED), st.booleans(), st.sampled_from(["", "\n", " \n"]))
def test_a_proof_and_a_rationale_are_made_of_each_other(body, label, preset, in_thinking, around):
    form = AnswerForm.of(PairTemplate.load(preset), in_thinking)
    answer = form.write(body, "AB".index(label))
    proof = write_proof(form.read(answer)[0], label)
    assert read_proof(around + proof + around, label) == body
    assert form.write(read_proof(proof, label), "AB".index(label)) == answer
    assert write_proof(read_proof(proof, label), label) == proof


@given(BODY, st.sampled_from("AB"))
def test_the_proof_of_the_other_label_is_refused(body, label):
    other = "B" if label == "A" else "A"
    message = f"expected the proof that Response {other} is better, got one that ends with '{conclusion(label)}'"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        read_proof(write_proof(body, label), other)


@pytest.mark.parametrize(
    ("proof", "message"),
    [
        ("", "expected a proof, which begins with 'Here is my justification"),
        ("<think>\nx\n</think>", "and a newline, got '<think>"),
        (f"Well. {write_proof('x', 'A')}", "and a newline, got 'Well. Here"),
        (f"{OPENING} x\n{conclusion('A')}", "and a newline, got"),
        (f"{OPENING}\nx", "expected a proof, which ends with the line 'Thus, Response A is better.', got"),
        (f"{OPENING}\nx {conclusion('A')}", "expected a proof, which ends with the line"),
        (f"{OPENING}\n{conclusion('A')}", "expected a proof, which ends with the line"),
        (f"{write_proof('x', 'A')}\nReally.", "expected a proof, which ends with the line"),
    ],
)
def test_text_that_is_no_proof_is_named(proof, message):
    with pytest.raises(InputError) as caught:
        read_proof(proof, "A")
    assert message in str(caught.value)


@pytest.mark.parametrize("name", preset_names())
def test_any_judge_s_prompt_becomes_a_prover_s_that_names_the_selected_response(name):
    template = PairTemplate.load(name)
    values = ("question", "one", "two")[: len(template.slots)]
    for label in "AB":
        prover = prover_template(template, label)
        judged, asked = template.fill(*values), prover.fill(*values)
        assert asked.startswith(f"{judged}\n\n[Selected Response]\nResponse {label} is better. ")
        assert (prover.reasons, prover.answer_prefix, prover.answer_suffix) == (True, "", "")
        assert (prover.frame, prover.labels) == (template.frame, template.labels)
