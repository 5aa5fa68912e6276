"""What `gram-fast data check` counts, and how it says it."""

import json
from dataclasses import asdict

import pytest
import typer
from helpers.small_models import tiny_tokenizer
from typer.testing import CliRunner

from gram_fast.errors import InputError
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokens import PairTokenizer
from gram_fast.training.data.check import Finding, LengthSummary, check_data
from gram_fast.training.data.command import app

GRAM = PairTemplate.load("gram")
# As the program mounts it.
MAIN = typer.Typer()
MAIN.add_typer(app, name="data")


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return str(path)


def pair(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def stage_2(prompt, a, b, label):
    return {"instruction": GRAM.fill(prompt, a, b), "output": label}


ROWS = [
    pair("p", "a", "long"),  # line 1
    "broken",
    stage_2("p", "long", "a", "B"),  # repeats line 1, in the other order
    stage_2("p", "a", "long", "B"),  # contradicts lines 1 and 3
    {"prompt": "P \n", "responses": ["long", "a"]},  # another prompt but for case and white space
    {"prompt": "p", "responses": ["", "xy"]},
    pair("q", "xy", "xz"),  # line 7
    stage_2("q", "a", "xz", "A"),
    {"prompt": "q", "responses": ["xz", "xy"]},  # repeats line 7, without a label
    {"prompt": "q"},
]


@pytest.fixture
def rows(tmp_path):
    return write(tmp_path / "rows.jsonl", *ROWS)


def test_everything_is_counted(rows):
    report = check_data(rows, template=GRAM)
    assert (report.rows, report.labeled, report.unlabeled, report.bad.count) == (10, 5, 3, 2)
    assert [error.partition(": ")[0] for error in report.bad.examples] == [f"{rows} line 2", f"{rows} line 10"]
    assert (report.prefers_a, report.prefers_longer, report.prefers_shorter) == (3, 1, 3)
    assert report.empty_responses == 1
    assert report.prompt_characters == LengthSummary(min=1, median=1, p95=3, max=3)
    assert report.response_characters == LengthSummary(min=0, median=2, p95=4, max=4)
    assert report.pair_characters == LengthSummary(min=3, median=5, p95=8, max=8)
    assert report.repeated_pairs == Finding(
        3, ("line 3 repeats line 1", "line 4 repeats line 1", "line 9 repeats line 7")
    )
    assert report.contradictions == Finding(1, ("line 4 contradicts line 1",))
    assert report.repeated_prompts.count == 5
    assert (report.pair_tokens, report.over_max_length, report.against) == (None, None, None)


def test_tokens_are_those_of_the_whole_judged_text(rows):
    tokenizer = PairTokenizer(tiny_tokenizer(), GRAM)
    texts = [("p", "a", "long")] * 3 + [("P \n", "long", "a"), ("p", "", "xy"), ("q", "xy", "xz"), ("q", "a", "xz")]
    lengths = sorted(len(ids) for ids in tokenizer.whole_ids([*texts, ("q", "xz", "xy")]))
    report = check_data(rows, template=GRAM, tokenizer=tokenizer, max_length=lengths[-1] - 1)
    assert (report.pair_tokens.min, report.pair_tokens.max) == (lengths[0], lengths[-1])
    assert report.over_max_length.count == lengths.count(lengths[-1])
    assert check_data(rows, template=GRAM, tokenizer=tokenizer, max_length=lengths[-1]).over_max_length == Finding(0)


def test_rows_of_an_evaluation_set_that_training_holds_are_named(tmp_path, rows):
    evaluation = write(
        tmp_path / "eval.jsonl",
        {"prompt": "p", "responses": ["long", "a"]},
        pair("q", "other", "texts"),
        pair("\tQ", "xy", "xz"),
        pair("new", "xy", "xz"),
        "broken",
    )
    overlap = check_data(rows, template=GRAM, against=evaluation).against
    assert (overlap.source, overlap.rows, overlap.bad.count) == (evaluation, 5, 1)
    assert overlap.pairs == Finding(1, ("line 1",))
    assert overlap.prompts == Finding(2, ("line 1", "line 2"))
    assert overlap.plain_prompts == Finding(3, ("line 1", "line 2", "line 3"))


def test_texts_that_run_into_each_other_are_other_pairs(tmp_path):
    rows = [pair("ab", "c", "d"), pair("a", "bc", "d"), pair("a", "b", "cd"), pair("c", "ab", "d")]
    report = check_data(write(tmp_path / "x", *rows), template=GRAM)
    assert (report.repeated_pairs.count, report.repeated_prompts.count) == (0, 1)


def test_what_is_many_is_named_by_the_first_five(tmp_path):
    path = write(tmp_path / "x", *[pair("p", "a", "b")] * 300, *["broken"] * 20)
    report = check_data(path, template=GRAM)
    assert report.repeated_pairs == Finding(299, tuple(f"line {line} repeats line 1" for line in range(2, 7)))
    assert (report.bad.count, len(report.bad.examples)) == (20, 5)


def test_bad_rows_alone_have_no_lengths(tmp_path):
    report = check_data(write(tmp_path / "x", "broken"), template=GRAM)
    assert (report.rows, report.bad.count, report.pair_characters) == (1, 1, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 9}, "max_length: expected a tokenizer as well"),
        ({"against": "nothing.jsonl"}, "there is no file or folder 'nothing.jsonl'"),
    ],
)
def test_what_cannot_be_checked_is_refused(rows, options, message):
    with pytest.raises(InputError, match=message):
        check_data(rows, template=GRAM, **options)


def test_a_set_without_rows_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected rows, found none"):
        check_data(write(tmp_path / "x", ""), template=GRAM)


def check(*arguments):
    return CliRunner().invoke(MAIN, ["data", "check", *map(str, arguments)], terminal_width=200)


def test_the_json_is_the_report(rows):
    run = check(rows, "--json", "--against", rows)
    assert run.exit_code == 1
    expected = asdict(check_data(rows, template=GRAM, against=rows))
    assert json.loads(run.stdout) == json.loads(json.dumps(expected))


def test_the_table_says_it_for_people(tmp_path, rows):
    run = check(rows)
    assert run.exit_code == 1
    said = " ".join(run.stdout.split())
    for part in (
        "rows 10: 5 labeled, 3 unlabeled, 2 bad",
        "line 2: expected JSON",
        "preferred A 3 (60.0%); rows with chosen and rejected are among them",
        "preferred is longer 1 (20.0%); shorter: 3 (60.0%)",
        "pair, characters min 3, median 5, p95 8, max 8",
        "contradictions 1: line 4 contradicts line 1",
    ):
        assert part in said
    good = write(tmp_path / "good.jsonl", pair("[p]", "a", "b"))
    run = check(good, "--against", rows)
    assert (run.exit_code, "preferred A 1 (100.0%); as all rows with chosen" in " ".join(run.stdout.split())) == (
        1,
        True,
    )
    assert check(good).exit_code == 0


def test_a_model_measures_in_its_tokens(tmp_path, rows):
    tiny_tokenizer().save_pretrained(tmp_path / "judge")
    run = check(rows, "-m", tmp_path / "judge", "--preset", "gram", "--max-length", 10)
    assert "judged text, tokens" in run.stdout
    assert "over --max-length 8: line 1, line 3, line 4, line 5, line 6, 3 more" in " ".join(run.stdout.split())


def test_a_mistake_bubbles_up_to_the_program(rows):
    for arguments in ([rows, "--max-length", "5"], [rows, "--preset", "nope"], ["nothing.jsonl"]):
        assert isinstance(check(*arguments).exception, InputError)
