"""Rows as GRAM writes them: prompt and responses are got back from the frames around them."""

import pytest
from helpers.records import END_A, END_B, GRAM, START_A, START_B, read, texts, write
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.errors import InputError
from gram_fast.text.prompts import SLOTS, PairTemplate
from gram_fast.training.data.gram_rows import extract_slots, stage_1_answers, stage_1_prompt

SMALL = st.text("ab\n{} ", max_size=5)
TEMPLATES = st.builds(
    lambda literals, slots: PairTemplate(tuple(literals), tuple(slots)),
    st.lists(SMALL, min_size=4, max_size=4),
    st.permutations(SLOTS),
)


def ways(template, text):
    """All values, in the order of the template, that fill it to `text`; by trying every place."""
    begin, second, third, end = template.literals
    body = text[len(begin) : len(text) - len(end)]
    if begin + body + end != text:
        return []
    return [
        (body[:i], body[i + len(second) : j], body[j + len(third) :])
        for i in range(len(body) + 1)
        if body.startswith(second, i)
        for j in range(i + len(second), len(body) + 1)
        if body.startswith(third, j)
    ]


@given(template=TEMPLATES, values=st.tuples(SMALL, SMALL, SMALL), tail=st.sampled_from(["", " ", "\n "]))
@settings(deadline=None, max_examples=300)
def test_what_fills_any_template_is_got_back_unless_the_text_is_ambiguous(template, values, tail):
    filled = template.fill(*values)
    possible = ways(template, filled)
    tail = tail if template.literals[3].strip() else ""
    if len(possible) == 1:
        slots = extract_slots(template, filled + tail, "text")
        assert tuple(slots[slot] for slot in SLOTS) == values
    else:
        with pytest.raises(InputError, match=r"^text: expected the judge's template, found .* in more than one way$"):
            extract_slots(template, filled + tail, "text")


@given(template=TEMPLATES, text=st.text("ab\n{} ", max_size=12))
@settings(deadline=None, max_examples=300)
def test_text_that_no_values_fill_to_is_refused(template, text):
    if template.literals[3].strip():
        stripped = PairTemplate((*template.literals[:3], template.literals[3].rstrip()), template.slots)
        possible = ways(stripped, text.rstrip())
    else:
        possible = ways(template, text)
    if len(possible) == 1:
        slots = extract_slots(template, text, "text")
        assert tuple(slots[slot] for slot in template.slots) == possible[0]
    else:
        with pytest.raises(InputError, match=r"^text: expected the judge's template, "):
            extract_slots(template, text, "text")


@given(prompt=st.text("x\\n\n "), a=st.text("x\\n\n "), b=st.text("x\\n\n "))
@settings(deadline=None, max_examples=150)
def test_stage_1_texts_are_got_back_from_their_frames(prompt, a, b):
    assert stage_1_prompt(f"[User Question]\n{prompt}\n\n", "instruction") == prompt
    assert stage_1_answers(f"{START_A}\n{a}\n{END_A}\n\n{START_B}\n{b}\n{END_B}", "output") == (a, b)


@pytest.mark.parametrize(
    ("instruction", "output"),
    [
        ("[User Question]\np", f"{START_A}\na{END_A}\n\n{START_B}\nb{END_B}\n"),
        (r"[User Question]\np\n\n", rf"{START_A}\na{END_A}\n\n{START_B}\nb\n{END_B}"),
    ],
)
def test_stage_1_as_its_readme_and_its_cleaning_script_write_it(tmp_path, instruction, output):
    path = write(tmp_path / "x.jsonl", {"instruction": instruction, "input": "", "output": output})
    assert texts(read(path)) == [("p", "a", "b", None)]


def test_stage_1_with_an_input_is_read_as_one_text(tmp_path):
    output = f"{START_A}\na\n{END_A}\n\n{START_B}\nb\n{END_B}"
    row = {"instruction": "[User Question]\nDo:\n\n", "input": "it", "output": output}
    moved = {"instruction": "", "input": "[User Question]\nDo:\n\n\nit", "output": output}
    assert texts(read(write(tmp_path / "x.jsonl", row, moved))) == 2 * [("Do:\n\n\nit", "a", "b", None)]


def test_stage_2_with_an_input_is_read_as_one_text(tmp_path):
    head, _, tail = GRAM.fill("p", "a", "b").partition("\n[User")
    path = write(tmp_path / "x.jsonl", {"instruction": head, "input": f"[User{tail}", "output": "B\n"})
    assert texts(read(path)) == [("p", "a", "b", "B")]


def test_stage_2_is_taken_apart_with_the_template_given(tmp_path):
    own = PairTemplate.parse("2: {response_b}\n1: {response_a}\nfor {input}")
    path = write(tmp_path / "x.jsonl", {"instruction": own.fill("p \n", "a", "b"), "output": "A"})
    assert texts(read(path, own)) == [("p \n", "a", "b", "A")]
    with pytest.raises(InputError, match="template, which begins with 'Please act as an impartial judge"):
        read(path)
