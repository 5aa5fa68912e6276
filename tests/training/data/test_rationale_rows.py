"""Rows of judges that reason: one's own, GRAM-RR's, GenRM's and HelpSteer3's; what is wrong with one is named."""

import json

import pytest
from helpers.records import GRAM, read, write

from gram_fast.errors import InputError
from gram_fast.text.prompts import PairTemplate
from gram_fast.training.data.check import check_data

GRAM_R2, GENRM = PairTemplate.load("gram-r2"), PairTemplate.load("genrm")
OWN = {"prompt": "p", "responses": ["a", "b"], "label": "B", "rationale": "b is right"}
ANSWER = "<think>\nb is right\n</think>\n<answer>\nB\n</answer>"
GRAM_RR = {"instruction": GRAM_R2.fill("p", "a", "b"), "input": "", "output": ANSWER}
GENRM_ROW = {
    "prompt": [{"role": "user", "content": GENRM.fill("p", "a", "b")}],
    "response": [{"role": "assistant", "content": "[[B]]"}],
}
FEEDBACK = {
    "score": 2,
    "reasoning": "@Response 2 is right.",
    "feedback1": "It is wrong.",
    "feedback2": "As response 1, but right.",
}
HELPSTEER3 = {
    "domain": "general",
    "language": "english",
    "context": [{"role": "user", "content": "p"}],
    "response1": "a",
    "response2": "b",
    "overall_preference": 2,
    "individual_preference": [FEEDBACK],
}
WRITTEN = (
    "Feedback:\nResponse A: It is wrong.\nResponse B: As Response A, but right.\n\n"
    "Comparision:\nResponse B is right.\n\nConclusion:\nResponse B is better."
)


def only(path, *rows, **options):
    return [
        (r.prompt, r.response_a, r.response_b, r.preferred, r.rationale) for r in read(write(path, *rows), **options)
    ]


@pytest.mark.parametrize(
    ("row", "label", "rationale"),
    [
        (OWN, "B", "b is right"),
        ({**OWN, "rationale": "<think>\nb is right\n</think>\n"}, "B", "b is right"),
        ({**OWN, "rationale": None}, "B", None),
        ({**OWN, "label": "A"}, "A", "b is right"),
        ({"prompt": "p", "responses": ["a", "b"]}, None, None),
        (GRAM_RR, "B", "b is right"),
        ({**GRAM_RR, "output": "A"}, "A", None),
        ({**GRAM_RR, "output": "<answer>\nA\n</answer>"}, "A", None),
        ({"instruction": GENRM.fill("p", "a", "b"), "output": "So.\n[[A]]"}, "A", "So."),
        ({"instruction": GRAM.fill("p", "a", "b"), "output": "A"}, "A", None),
        (GENRM_ROW, "B", None),
        ({"prompt": GENRM.fill("p", "a", "b"), "response": "[[A]]"}, "A", None),
        ({"prompt": GRAM_R2.fill("p", "a", "b"), "response": ANSWER}, "B", "b is right"),
        (HELPSTEER3, "B", WRITTEN),
        ({**HELPSTEER3, "overall_preference": -1}, "A", None),
        ({**HELPSTEER3, "individual_preference": [{**FEEDBACK, "score": -1}, FEEDBACK]}, "B", WRITTEN),
        ({**HELPSTEER3, "individual_preference": [{**FEEDBACK, "feedback1": " "}]}, "B", None),
        ({**HELPSTEER3, "individual_preference": None}, "B", None),
        ({**HELPSTEER3, "individual_preference": []}, "B", None),
    ],
)
@pytest.mark.parametrize("preset", ["gram", "gram-r2", "genrm"])
def test_rows_are_read_whatever_the_judge_of_the_run(row, label, rationale, preset, tmp_path):
    template = PairTemplate.load(preset)
    assert only(tmp_path / "x.jsonl", row, template=template) == [("p", "a", "b", label, rationale)]


def test_a_conversation_of_helpsteer3_is_a_prompt(tmp_path):
    said = [("user", "2 + 2?"), ("assistant", "4"), ("user", "And doubled?")]
    row = {**HELPSTEER3, "context": [{"role": role, "content": text} for role, text in said]}
    [(prompt, *_)] = only(tmp_path / "x.jsonl", row)
    assert prompt == "User: 2 + 2?\n\nAssistant: 4\n\nUser: And doubled?"


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("@Response 1 and @Response 2", "Response A and Response B"),
        ("Response 1/2 and response 2/1", "Response A/B and Response B/A"),
        ("@Response 1&2, @response 1 & 2", "Response A&B, Response A & B"),
        ("Responses 1 and 2; RESPONSES 2 or 1", "Responses A and B; Responses B or A"),
        ("response #1, Response # 2, Responses #1 and #2", "Response A, Response B, Responses A and B"),
        ("response_1's, Response-2, response1", "Response A's, Response B, Response A"),
        ("Response 1 vs. 2", "Response A vs. B"),
        ("Response 1 has 2 errors, Response 2, 1.", "Response A has 2 errors, Response B, 1."),
        ("Response 10, response 3, my_response_1", "Response 10, response 3, my_response_1"),
        ("Response 1 and 20 more", "Response A and 20 more"),
    ],
)
def test_names_of_helpsteer3_are_those_of_the_judge_s_prompt(said, named, tmp_path):
    row = {**HELPSTEER3, "individual_preference": [{**FEEDBACK, "reasoning": said}]}
    [(*_, rationale)] = only(tmp_path / "x.jsonl", row)
    assert rationale.split("Comparision:\n")[1].split("\n")[0] == named


@pytest.mark.parametrize(
    ("feedback", "missing"),
    [
        ([{"score": 2, "feedback1": "x"}], "'feedback2', 'reasoning', which are missing"),
        ([{"preference": 2}], "'score', 'feedback1', 'feedback2', 'reasoning', which are missing"),
        ("good", "a list of objects"),
        (["good"], "a list of objects"),
    ],
)
def test_feedback_under_other_names_is_said(feedback, missing, tmp_path):
    row = {**HELPSTEER3, "individual_preference": feedback}
    with pytest.warns(UserWarning, match=f"^HelpSteer3's individual_preference: expected {missing} in some rows"):
        assert only(tmp_path / "x.jsonl", row) == [("p", "a", "b", "B", None)]


TIE = {**HELPSTEER3, "overall_preference": 0}


def test_a_tie_is_left_out_and_handed_over(tmp_path):
    ties, bad = [], []
    path = tmp_path / "x.jsonl"
    assert len(only(path, HELPSTEER3, TIE, OWN, skip_bad=bad.append, on_tie=ties.append)) == 2
    assert (ties, bad) == ([f"{path} line 2"], [])
    with pytest.raises(InputError, match="line 2: overall_preference: 0 is a tie, of which nothing can be learned"):
        read(path)


def test_the_check_counts_rationales_and_ties(tmp_path):
    path = write(tmp_path / "x.jsonl", OWN, GRAM_RR, GENRM_ROW, HELPSTEER3, TIE, {"prompt": "p"}, TIE)
    report = check_data(str(path), template=GRAM, against=str(path))
    assert (report.rows, report.labeled, report.rationales, report.bad.count) == (7, 4, 3, 1)
    assert (report.ties.count, report.ties.examples) == (2, (f"{path} line 5", f"{path} line 7"))
    assert (report.rationale_characters.min, report.rationale_characters.max) == (len("b is right"), len(WRITTEN))
    assert (report.against.rows, report.against.ties.count) == (7, 2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**OWN, "label": 1}, "label: expected 'A' or 'B', the better of responses[0] and [1], got 1"),
        ({**OWN, "label": None}, "rationale: expected 'label' as well, 'A' or 'B', to which it leads"),
        (
            {**OWN, "rationale": "<think>\n</think>"},
            "rationale: expected the text of a thought, or no such field, found",
        ),
        (
            {**OWN, "rationale": "so </think> it is"},
            "rationale: expected a thought without tags of thinking and verdicts in it, found '</think>'",
        ),
        (
            {**GRAM_RR, "output": ANSWER.replace("b is", "b <think> is")},
            "rationale: expected a thought without tags of thinking and verdicts in it, found '<think>'",
        ),
        (
            {**HELPSTEER3, "individual_preference": [{**FEEDBACK, "reasoning": "<think>2"}]},
            "rationale: expected a thought without tags of thinking and verdicts in it, found '<think>'",
        ),
        ({**OWN, "rationale": ["b"]}, "rationale: expected text, got list"),
        ({**OWN, "responses": ["b", "b"]}, "responses: expected two that differ"),
        ({**GRAM_RR, "output": "C"}, "output: expected 'A' or 'B', alone or between "),
        ({**GRAM_RR, "output": ANSWER + " So it is."}, "output: expected '\\n</answer>' at the end of the answer"),
        (
            {**GRAM_RR, "instruction": GRAM_R2.literals[0] + "p"},
            "instruction: expected the judge's template, which ends",
        ),
        ({**GENRM_ROW, "prompt": GENRM_ROW["prompt"] * 2}, "prompt: expected one message, the user's, got list"),
        ({**GENRM_ROW, "response": GENRM_ROW["prompt"]}, "response: expected one message, the assistant's, got list"),
        ({**GENRM_ROW, "response": 3}, "response: expected text, got int"),
        ({**GENRM_ROW, "prompt": "Hello!"}, "prompt: expected the judge's template, which begins with"),
        (
            {**GENRM_ROW, "response": "[[C]]"},
            "response: expected 'A' or 'B', alone or between '[[' and ']]', found a ver",
        ),
        ({**HELPSTEER3, "overall_preference": 4}, "overall_preference: expected a number from -3 to 3, got 4"),
        ({**HELPSTEER3, "overall_preference": True}, "overall_preference: expected a number from -3 to 3, got True"),
        ({**HELPSTEER3, "overall_preference": None}, "expected a field 'overall_preference', found 'domain', "),
        ({**HELPSTEER3, "context": []}, "context: expected a string or a list of chat messages, got an empty list"),
        ({**HELPSTEER3, "context": None}, "expected a field 'context', found "),
        ({**HELPSTEER3, "response2": "a"}, "responses: expected two that differ"),
        ({**HELPSTEER3, "response2": 3}, "response2: expected a string or a list of chat messages, got int"),
    ],
)
def test_a_bad_row_is_named(row, message, tmp_path):
    path = write(tmp_path / "x.jsonl", json.dumps(row))
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path} line 1: {message}")


def test_a_rationale_with_a_verdict_of_the_judge_s_form_is_a_bad_row(tmp_path):
    path, bad = write(tmp_path / "x.jsonl", {**OWN, "rationale": "so [[A]], or [[1]]"}, OWN), []
    [record] = read(path, GENRM, skip_bad=bad.append)
    assert record.rationale == OWN["rationale"]
    assert [str(error) for error in bad] == [
        f"{path} line 1: rationale: expected a thought without tags of thinking and verdicts in it, found '[[A'"
    ]
    assert len(read(path, GRAM_R2)) == 2
