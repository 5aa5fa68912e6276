"""gram-fast prove: rows that training reads, in the order of the input, and runs that go on."""

import json
import shutil

import pytest
from helpers.days import set_today
from helpers.records import read
from helpers.self_training import PRESET, label, pair, write_rows
from typer.testing import CliRunner

from gram_fast.cli import app
from gram_fast.errors import InputError
from gram_fast.text.prompts import PairTemplate
from gram_fast.training.self_training.prove_command import ProveOptions, prove


@pytest.fixture
def options(made, tmp_path):
    rows = [pair(n, label=label(n), id=f"row {n}") for n in range(30, 34)]
    rows += [{"prompt": f"Question {n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(34, 38)]
    return {
        "model": str(made / "prover"),
        "input": str(write_rows(tmp_path / "in.jsonl", rows)),
        "output": str(tmp_path / "out.jsonl"),
        "proofs": 2,
        "temperature": 1.0,
        "max_new_tokens": 120,
        "device": "cpu",
    }


def run(options):
    prove(ProveOptions(**options))
    with open(options["output"], encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_rows_are_in_order_and_training_reads_them(options, capsys):
    rows = run(options)
    assert [row["id"] for row in rows] == [*(f"row {n}" for n in range(30, 34)), 5, 6, 7, 8]
    assert sorted(row["label"] for row in rows) == ["A"] * 4 + ["B"] * 4
    proved = [row for row in rows if row["rationale"] is not None]
    assert proved
    for number, row in enumerate(rows, start=30):
        assert row["responses"]["AB".index(row["label"])] == f"good {number}"
        assert set(row["responses"]) == {f"good {number}", f"bad {number}"}
        counts = dict(row["proofs"])
        assert counts.pop("written") == 2 == counts.pop("usable") + sum(counts.values())
        assert (row["score"] is None) == (row["rationale"] is None) == (row["proofs"]["usable"] == 0)
        assert row["score"] is None or -10 < row["score"] < 0
        assert (row["run"]["command"], row["run"]["proofs"]) == ("prove", 2)
    template = PairTemplate.parse(PRESET.split("+++\n")[2], answer_prefix="</think>\n", reasons=True)
    records = read(options["output"], template)
    for row, record in zip(rows, records, strict=True):
        assert (record.rationale, record.preferred, record.id) == (row["rationale"], row["label"], row["id"])
    said = capsys.readouterr().err
    assert f"8 rows written, {len(proved)} with a rationale, 0 already there, 0 skipped; 16 proofs" in said


def test_a_run_goes_on_with_the_rows_that_are_missing(options):
    whole = run(options)
    with open(options["output"], "r+", encoding="utf-8") as file:
        lines = file.readlines()
        file.truncate(sum(len(line.encode()) for line in lines[:3]) + 20)
    with pytest.raises(InputError, match="is there already"):
        run(options)
    with pytest.raises(InputError, match="seed was 0, now it is 1"):
        run({**options, "resume": True, "seed": 1})
    again = run({**options, "resume": True})
    assert again[:3] == whole[:3]
    assert [row["id"] for row in again] == [row["id"] for row in whole]
    assert [row["responses"] for row in again] == [row["responses"] for row in whole]


def test_bad_rows_are_named_and_skipped_on_request(options, capsys, tmp_path):
    rows = [
        pair(1, label="A"),
        pair(2),
        pair(3, label="C"),
        pair(4, label="A", id=1),
        pair(5, label="A") | {"prompt": "Why? " * 3000},
        {"context": [{"role": "user", "content": "x"}], "response1": "a", "response2": "b", "overall_preference": 0},
    ]
    options = {**options, "input": str(write_rows(tmp_path / "bad.jsonl", rows))}
    with pytest.raises(InputError, match=r"bad\.jsonl line 2: expected a labeled pair, this one has no label"):
        run(options)
    assert [row["id"] for row in run({**options, "skip_bad": True})] == [1]
    said = capsys.readouterr().err
    for message in (
        "line 2: expected a labeled pair",
        "line 3: label: expected 'A' or 'B'",
        "line 4: expected an id of its own, 1 is also that of",
        "line 5: the prover's prompt has",
        "1 rows written",
        "4 skipped, 1 ties left out",
    ):
        assert message in said


def test_a_row_that_is_refused_loses_no_proofs_of_others(options, tmp_path):
    rows = [pair(n, label="A") for n in range(4)]
    rows[1]["prompt"] = "Why? " * 3000
    options = {**options, "input": str(write_rows(tmp_path / "long.jsonl", rows))}
    with pytest.raises(InputError, match=r"long\.jsonl line 2: the prover's prompt has"):
        run(options)
    with open(options["output"], encoding="utf-8") as file:
        written = file.readlines()
    assert [json.loads(line)["id"] for line in written] == [1, 3, 4]
    assert len(run({**options, "resume": True, "skip_bad": True})) == 3


@pytest.fixture
def dated(made, tmp_path):
    """The prover with a chat template that writes the date of today."""
    folder = shutil.copytree(made / "prover", tmp_path / "dated")
    template = (folder / "chat_template.jinja").read_text("utf-8")
    (folder / "chat_template.jinja").write_text('{{ date_string or strftime_now("%d %b %Y") }}\n' + template, "utf-8")
    return str(folder)


@pytest.mark.filterwarnings("ignore:the chat template writes", "ignore:the judge's prompt is not")
def test_proofs_of_another_day_are_another_run_unless_the_date_is_fixed(dated, options, tmp_path, monkeypatch):
    few = write_rows(tmp_path / "few.jsonl", [pair(n, label="A") for n in range(2)])
    options = {**options, "model": dated, "input": str(few), "max_new_tokens": 2}
    fixed = {"chat_template_kwargs": {"date_string": "26 Jul 2024"}, "output": str(tmp_path / "fixed.jsonl")}
    set_today(monkeypatch, 2030, 1, 2)
    run(options)
    [row, _] = run({**options, **fixed})
    assert row["run"]["chat_template_kwargs"] == {"date_string": "26 Jul 2024"}
    set_today(monkeypatch, 2031, 12, 24)
    with pytest.raises(InputError, match=r"line 1: prompt_digest was .*, now it is .*: it is of another run"):
        run({**options, "resume": True})
    assert len(run({**options, **fixed, "resume": True})) == 2
    with pytest.raises(InputError, match="line 1: prompt_digest was"):
        run({**options, **fixed, "resume": True, "chat_template_kwargs": {"date_string": "26 Jul 2025"}})


def test_variables_of_the_chat_template_are_an_option_as_json(options):
    given = ["prove", "-m", options["model"], "-i", options["input"], "-o", options["output"]]
    result = CliRunner().invoke(app, [*given, "--chat-template-kwargs", "26 Jul"])
    assert "chat_template_kwargs: expected a JSON object, got '26 Jul'" in str(result.exception)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature: 2 proofs with 0 would be one proof 2 times"),
        ({"engine": "none"}, "there is no engine 'none'"),
        ({"max_new_tokens": 4096}, "max_new_tokens: expected fewer than 4096"),
        ({"preset": "verifier"}, "expected a prompt that shows a pair, got a verifier's"),
        ({"device": "cpu,cpu"}, "device: expected one, got 2"),
        ({"model": "nowhere/at-all"}, "nowhere/at-all"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(change, message, options):
    with pytest.raises(Exception, match=message) as raised:
        run({**options, **change})
    assert type(raised.value).__module__ == "gram_fast.errors"
    assert "\n" not in str(raised.value)
