"""Rationales of the generated tasks: what they claim is so, and the checker finds what is not."""

import random
import re
from itertools import islice, pairwise
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import gram_fast
from gram_fast.training.small_judge.chatter import Chatter
from gram_fast.training.small_judge.choice_kinds import (
    contains,
    contains_number,
    count,
    count_numbers,
    exact_words,
    longer,
    month,
)
from gram_fast.training.small_judge.format_kinds import list_format
from gram_fast.training.small_judge.number_kinds import (
    above,
    addition,
    below,
    buying,
    extreme,
    giving,
    is_larger,
    larger,
    more,
    subtraction,
    weight,
)
from gram_fast.training.small_judge.order_kinds import sort_up
from gram_fast.training.small_judge.passage_kinds import fact, price, table, who
from gram_fast.training.small_judge.rationales import CLAIMS, check_rationale, is_right, rationale, read_answer
from gram_fast.training.small_judge.task import make_task
from gram_fast.training.small_judge.tasks import SEEN, UNSEEN, labeled_row, reasoned_row, tasks
from gram_fast.training.small_judge.wordings import every

KINDS = (*SEEN, *UNSEEN)


def of_kinds(*kinds):
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.__name__)


each_kind = of_kinds(*KINDS)


def drawn(kind, count, seed=0):
    """Tasks in all wordings, some of them among random words."""
    return islice(tasks((kind,), seed, split=every, chatter=Chatter(0.4, 0.3)), count)


def rows(kind, count):
    rng = random.Random(1)
    return [(task, reasoned_row(task, rng)) for task in drawn(kind, count)]


def checked(task, row, body):
    return check_rationale(task, *row["responses"], body)


@each_kind
def test_all_claims_are_true_and_lead_to_the_label(kind):
    for task, row in rows(kind, 100):
        assert checked(task, row, row["rationale"]) == [], row
        assert row["rationale"].endswith(f"\n{row['label']} is better.")
        assert [task.is_right(response) for response in row["responses"]] == [row["label"] == "A", row["label"] == "B"]


@each_kind
def test_of_two_right_or_two_wrong_responses_none_is_named(kind):
    rng = random.Random(2)
    for task in drawn(kind, 40):
        for responses, verdict in ((task.right, "right"), (task.wrong, "wrong")):
            a, b = rng.choices(responses, k=2)
            body = rationale(task, a, b)
            assert check_rationale(task, a, b, body) == []
            assert re.findall(r": (right|wrong)$", body, re.M) == [verdict] * 2
            assert "better" not in body
            named = check_rationale(task, a, b, f"{body}\nA is better.")
            assert named == ["conclusion", "consistency"]


@each_kind
def test_answers_are_read_in_every_wording(kind):
    for task in drawn(kind, 20):
        problem = task.problem
        for answer in (problem.right, *problem.wrong):
            for wording in {*problem.answers, *task.answers}:
                response = problem.response(answer, wording)
                assert read_answer(task, response) == answer, response
                assert is_right(task, response) == task.is_right(response) == (answer == problem.right)


def swap(body, one, other):
    return body.replace(one, "\0").replace(other, one).replace("\0", other)


def in_one_line(problem, answer):
    if problem.any_words:
        return f"{len(answer)} words"
    return ", ".join(answer) if isinstance(answer, list) else answer.replace("\n", " / ")


def other_answer(task, body):
    return re.sub("Answer: .*", lambda _: f"Answer: {in_one_line(task.problem, task.problem.wrong[0])}", body)


def verdicts_swapped(task, body):
    a, b = re.findall(r": (right|wrong)$", body, re.M)
    return re.sub(r"^(B: .*): \w+$", rf"\1: {a}", re.sub(r"^(A: .*): \w+$", rf"\1: {b}", body, flags=re.M), flags=re.M)


def conclusion_flipped(task, body):
    return swap(body, "A is better.", "B is better.")


def quotes_swapped(task, body):
    *before, a, b, conclusion = body.split("\n")
    (a, of_a), (b, of_b) = (line[3:].rsplit(": ", 1) for line in (a, b))
    return "\n".join([*before, f"A: {b}: {of_a}", f"B: {a}: {of_b}", conclusion])


def verdicts_and_conclusion_flipped(task, body):
    return conclusion_flipped(task, verdicts_swapped(task, body))


def no_conclusion(task, body):
    return body.rpartition("\n")[0]


def no_answer(task, body):
    return re.sub("Answer: .*\n", "", body)


def nothing_of_a(task, body):
    return re.sub("(?m)^A: .*\n", "", body)


def cut_too_early(task, body):
    return re.sub("(?m)^B: .*: ", "B:  ...: ", body)


def other_working(task, body):
    return f"So\n{body}"


def twice(task, body):
    return f"{body}\n{body}"


MISTAKES = {
    other_answer: {"answer"},
    no_answer: {"answer"},
    quotes_swapped: {"quote A", "quote B"},
    cut_too_early: {"quote B"},
    verdicts_swapped: {"verdict A", "verdict B", "consistency"},
    nothing_of_a: {"quote A", "verdict A", "consistency"},
    conclusion_flipped: {"conclusion", "consistency"},
    no_conclusion: {"conclusion", "consistency"},
    verdicts_and_conclusion_flipped: {"verdict A", "verdict B", "conclusion"},
    other_working: {"working"},
    twice: {"working"},
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_found_and_nothing_else(mistake):
    for kind in KINDS:
        for task, row in rows(kind, 10):
            assert set(checked(task, row, mistake(task, row["rationale"]))) == MISTAKES[mistake], row


@of_kinds(sort_up, exact_words)
def test_what_is_missing_is_false(kind):
    for task, row in rows(kind, 5):
        nothing = checked(task, row, "")
        assert nothing == [claim for claim in CLAIMS if claim != "working" or task.problem.working]
        assert checked(task, row, f"So\n{row['label']} is better.") == [c for c in CLAIMS if c != "conclusion"]


def test_another_form_of_what_is_true_is_true():
    task = make_task(sort_up, random.Random(0))
    right, wrong = (", ".join(answer) for answer in (task.problem.right, task.problem.wrong[0]))
    body = rationale(task, right, wrong)
    assert " ...: wrong" in body
    whole = re.sub(r"(?m)^B: .*(?=: wrong)", f"B: {wrong}", body)
    for other in (whole, body.replace(", ", " "), body.replace("ascending", " ascending ")):
        assert other != body
        assert check_rationale(task, right, wrong, other) == []


def test_any_words_are_right_if_they_are_as_many():
    for task in drawn(exact_words, 30):
        asked = len(task.problem.right)
        same, one_more = (" ".join(["yonder"] * n) for n in (asked, asked + 1))
        body = rationale(task, same, one_more)
        assert body.endswith("A is better.")
        assert check_rationale(task, same, one_more, body) == []
        cut = body.replace(f", {asked + 1} yonder: wrong", " ...: wrong")
        assert check_rationale(task, same, one_more, cut) == ["quote B"]
        miscounted = body.replace(f"Answer: {asked}", f"Answer: {asked + 1}")
        assert check_rationale(task, same, one_more, miscounted) == ["answer"]


@of_kinds(sort_up, list_format, fact, exact_words)
@given(a=st.text(max_size=20), b=st.text(" ,.:/\nABrightwong", max_size=30))
def test_responses_in_no_wording_are_quoted_too(kind, a, b):
    task = make_task(kind, random.Random(0))
    for first, second in ((a, b), (b, task.right[0]), (f"{task.right[0]} {a}", b)):
        assert check_rationale(task, first, second, rationale(task, first, second)) == []


def numbers(text):
    return [int(n) for n in re.findall(r"-?\d+", text)]


@of_kinds(addition, subtraction, buying, giving)
def test_sums_are_worked_out_column_by_column(kind):
    for task in drawn(kind, 200):
        asked, columns = task.problem.working.split(": ")
        right = int(task.problem.right)
        assert sum(numbers(asked)) == right
        ones, tens = (equation.split("=") for equation in columns.split(", "))
        for terms, result in (ones, tens):
            assert sum(numbers(terms)) == int(result) >= 0
        assert int(tens[1] + ones[1][-1]) == right


@of_kinds(larger, is_larger, extreme, more, weight, month, longer)
def test_comparisons_rise(kind):
    for task in drawn(kind, 100):
        _, compared = task.problem.working.split(": ")
        sizes = [numbers(thing)[0] for thing in compared.split("<")]
        assert all(one < other for one, other in pairwise(sizes))
        assert len(sizes) > 1


@of_kinds(fact, who, price, table)
def test_lookups_quote_the_prompt(kind):
    for task in drawn(kind, 100):
        assert task.problem.working in task.prompt
        assert task.problem.right in task.problem.working


@of_kinds(above, below, contains, contains_number)
def test_entries_are_marked(kind):
    for task in drawn(kind, 100):
        found = re.findall(r"(\w+) yes", task.problem.working)
        right = task.problem.right
        assert found == (right if isinstance(right, list) else [task.problem.fields["word"]] * (right == "Yes"))


@of_kinds(count, count_numbers)
def test_lists_are_counted(kind):
    for task in drawn(kind, 100):
        assert task.problem.working.split()[-2] == task.problem.right


def test_rows_are_labeled_rows_in_random_order():
    rng, again = random.Random(3), random.Random(3)
    labels = []
    for task in islice(tasks(KINDS, 2), 1000):
        row = reasoned_row(task, rng)
        assert row == reasoned_row(task, again)
        assert row.keys() == {"kind", "prompt", "responses", "label", "rationale"}
        assert row["rationale"] == rationale(task, *row["responses"])
        labels.append(row["label"])
    assert 450 < labels.count("A") < 550
    task = next(tasks(KINDS, 2))
    rows = [(reasoned_row(task, random.Random(n)), labeled_row(task, random.Random(n))) for n in range(20)]
    for row, pair in rows:
        right = "AB".index(row["label"])
        assert (row["responses"][right], row["responses"][1 - right]) == (pair["chosen"], pair["rejected"])


def test_they_are_short():
    """In tokens of the small judge: room for them, a prompt and two responses is 512."""
    tokenizer = AutoTokenizer.from_pretrained(gram_fast.SMALL_JUDGE)
    rng = random.Random(5)
    drawn = [reasoned_row(task, rng) for task in islice(tasks(KINDS, 6, split=every), 40 * len(KINDS))]
    lengths = [len(ids) for ids in tokenizer([row["rationale"] for row in drawn]).input_ids]
    assert median(lengths) < 50
    assert max(lengths) <= 120
