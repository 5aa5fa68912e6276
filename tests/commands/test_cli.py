"""The command line as a user runs it: in this process, and in one of its own where signals or a terminal matter."""

import fcntl
import io
import json
import logging
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
import warnings
from functools import partial
from importlib.metadata import version
from types import SimpleNamespace

import pytest
from helpers.small_models import tiny_judge, write_judge
from typer import rich_utils

from gram_fast.cli import main

PROMPT = "Name a colour."
ROWS = [{"id": k, "prompt": PROMPT, "responses": ["Blue.", f"Red {k}.", "Green!"]} for k in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_judge(tmp_path_factory.mktemp("judge"))


def command(*arguments):
    return [sys.executable, "-m", "gram_fast", *map(str, arguments)]


@pytest.fixture
def gram_fast(monkeypatch, capsys):
    """Runs the command line in this process, rows on standard input -> what a process of its own would give."""

    def run(*arguments, rows=()):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        monkeypatch.setattr(sys, "argv", ["gram-fast", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return SimpleNamespace(returncode=ended.value.code, stdout=said.out, stderr=said.err)

    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # main sets it, for its whole process
    yield run
    logging.captureWarnings(False)


def test_rank_prints_what_the_api_returns(gram_fast, folder):
    run = gram_fast("rank", "-m", folder, rows=ROWS[:2])
    assert run.returncode == 0
    assert "2 rows written, 0 already there, 0 skipped" in run.stderr
    for row, line in zip(ROWS, run.stdout.splitlines(), strict=False):
        result, expected = json.loads(line), tiny_judge().rank(row["prompt"], row["responses"])
        assert result["id"] == row["id"]
        assert tuple(result["order"]) == expected.order
        assert result["scores"] == pytest.approx(expected.scores, abs=1e-5)
        assert len(result["comparisons"]) == 3


def test_compare_and_best_of_n(gram_fast, folder):
    run = gram_fast("compare", "-m", folder, rows=[{**ROWS[0], "responses": ROWS[0]["responses"][:2]}])
    assert 0 < json.loads(run.stdout)["p"] < 1
    run = gram_fast("best-of-n", "-m", folder, "--strategy", "linear", "--orders", "ab", rows=ROWS[:1])
    result = json.loads(run.stdout)
    assert result["response"] == ROWS[0]["responses"][result["index"]]


def test_top_k_records_its_places(gram_fast, folder):
    run = gram_fast("rank", "-m", folder, "--strategy", "top_k", "-k", "1", rows=ROWS[:1])
    result = json.loads(run.stdout)
    assert (result["run"]["strategy"], result["run"]["k"]) == ("top_k", 1)
    assert len(result["comparisons"]) == 2


def test_top_k_is_short_for_a_strategy(gram_fast, folder):
    long = gram_fast("rank", "-m", folder, "--strategy", "top_k", "-k", "2", "--brief", rows=ROWS[:1])
    short = gram_fast("rank", "-m", folder, "--top-k", "2", "--brief", rows=ROWS[:1])
    assert short.stdout == long.stdout != ""
    run = gram_fast("rank", "-m", "./nothing", "--top-k", "2", "--strategy", "sort", rows=ROWS[:1])
    assert (run.returncode, run.stderr) == (
        2,
        "gram-fast: --top-k: expected neither another --strategy nor -k beside it\n",
    )


@pytest.mark.parametrize(
    ("command", "fields"),
    [
        (["compare"], ["p"]),
        (["rank", "--strategy", "sort"], ["best", "order", "scores"]),
        (["best-of-n"], ["index", "response", "scores"]),
    ],
)
def test_brief_rows_are_the_id_and_the_result(gram_fast, folder, command, fields):
    rows = [{**row, "responses": row["responses"][:2]} for row in ROWS[:2]]
    whole, brief = (gram_fast(*command, "-m", folder, *flag, rows=rows) for flag in ([], ["--brief"]))
    assert brief.returncode == 0
    for line, before in zip(brief.stdout.splitlines(), whole.stdout.splitlines(), strict=True):
        assert sorted(json.loads(line)) == sorted(["id", *fields])
        assert json.loads(before).items() >= json.loads(line).items()


def test_brief_rows_cannot_be_gone_on_with(gram_fast, folder, tmp_path):
    arguments = ("rank", "-m", folder, "-o", tmp_path / "out.jsonl")
    run = gram_fast(*arguments, "--brief", "--resume", rows=ROWS)
    assert (run.returncode, "--brief: expected no --resume" in run.stderr) == (2, True)
    assert gram_fast(*arguments, "--brief", rows=ROWS).returncode == 0
    run = gram_fast(*arguments, "--resume", rows=ROWS)
    assert (run.returncode, "expected a row that this command wrote" in run.stderr) == (2, True)


def test_a_terminal_gets_tables_and_a_pipe_gets_rows(gram_fast, folder, monkeypatch):
    assert gram_fast("rank", "-m", folder, rows=ROWS[:1]).stdout.startswith('{"id": 0, ')
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    run = gram_fast("rank", "-m", folder, rows=ROWS[:2])
    assert run.returncode == 0
    assert run.stdout.count(PROMPT) == run.stdout.count("Green!") == 2
    assert gram_fast("rank", "-m", folder, "--brief", rows=ROWS[:1]).stdout.startswith('{"id": 0, ')


def test_the_version_is_that_of_the_package(gram_fast):
    run = gram_fast("--version")
    assert (run.returncode, run.stdout) == (0, f"gram_fast {version('gram_fast')}\n")


def test_doctor_reports_the_installation_and_a_known_answer(gram_fast, folder):
    run = gram_fast("doctor", "-m", folder)
    assert run.returncode == 0
    for word in ("torch", "extension", "attention extension on cpu", "known answer, order ba", "right"):
        assert word in run.stdout


@pytest.mark.parametrize("name", ["rank", "best-of-n", "compare", "verify", "doctor", "eval rewardbench", "data check"])
def test_help_is_whole_in_80_columns(gram_fast, monkeypatch, name):
    monkeypatch.setattr(rich_utils, "MAX_WIDTH", 80)
    run = gram_fast(*name.split(), "--help")
    assert run.returncode == 0
    assert "Show this message" in run.stdout
    assert "\u2026" not in run.stdout  # what rich writes in place of the rest of a word


@pytest.mark.parametrize(
    ("arguments", "rows", "message"),
    [
        (["rank", "--strategy", "nope"], ROWS, "there is no strategy 'nope'"),
        (["rank", "--strategy", "top_k"], ROWS, "k: expected an integer of at least 1"),
        (
            ["rank", "-k", "2"],
            ROWS,
            "k: expected it beside strategy top_k or opponents or knockouts alone, got 2 with 'round_robin'",
        ),
        (["rank", "--seed", "-1"], ROWS, "seed: expected an integer of at least 0, got -1"),
        (["rank", "--preset", "nope"], ROWS, "there is no preset or template file 'nope'"),
        (["rank", "--attention", "nope"], ROWS, "there is no tree_attention backend 'nope'"),
        (["rank", "--device", "cuda:9"], ROWS, "device 'cuda:9' is not there"),
        (
            ["rank", "--max-length", "20"],
            ROWS,
            "standard input line 1: prompt: the judge's prompt with it alone has",
        ),
        (["rank", "--input", "nothing.jsonl"], [], "cannot read nothing.jsonl"),
        (["rank", "--max-batch-tokens", "9" * 20], ROWS, "max_batch_tokens: expected 'auto' or an integer from 1 to"),
        (["rank", "--output", "no/out.jsonl"], ROWS, "cannot write no/out.jsonl"),
        (["rank", "--resume"], ROWS, "--resume: expected --output FILE"),
        (["compare"], ROWS, "standard input line 1: responses: expected 2, got 3"),
        (
            ["rank"],
            [{"prompt": "p", "responses": ["a", "\ud800"]}],
            "line 1: responses[1]: expected text, found the lone",
        ),
    ],
)
def test_mistakes_end_with_one_sentence_and_code_2(gram_fast, folder, arguments, rows, message):
    run = gram_fast(*arguments, "-m", folder, rows=rows)
    assert run.returncode == 2
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


def test_compare_counts_responses_before_it_loads(gram_fast):
    run = gram_fast("compare", "-m", "./nothing", rows=[{**ROWS[0], "responses": ["a", "b"]}, ROWS[1]])
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "gram-fast: standard input line 2: responses: expected 2, got 3\n"


def test_a_missing_checkpoint_is_named(gram_fast):
    run = gram_fast("rank", "-m", "./nothing", rows=ROWS)
    assert (run.returncode, run.stdout) == (2, "")
    assert "there is no checkpoint folder './nothing'" in run.stderr


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_broken_checkpoint_is_one_sentence(gram_fast, folder, tmp_path, file):
    for source in folder.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes()[: 100 if source.name == file else None])
    run = gram_fast("rank", "-m", tmp_path, rows=ROWS)
    assert (run.returncode, run.stdout) == (2, "")
    assert "cannot load" in run.stderr
    assert "Traceback" not in run.stderr


def test_bad_rows_are_skipped_named_and_counted(gram_fast, folder):
    rows = [ROWS[0], {"prompt": "p"}, {**ROWS[1], "responses": ["short", "word " * 3000]}, ROWS[2]]
    run = gram_fast("rank", "-m", folder, "--skip-bad", rows=rows)
    assert run.returncode == 0
    assert [json.loads(line)["id"] for line in run.stdout.splitlines()] == [0, 2]
    assert "2 rows written, 0 already there, 2 skipped" in run.stderr
    assert "line 2: expected a field 'responses'" in run.stderr
    assert "the limit is 4096 (max_position_embeddings)" in run.stderr


def test_an_interrupted_run_goes_on_where_it_stopped(gram_fast, folder, tmp_path):
    rows = [{"id": k, "prompt": f"{PROMPT} {k}", "responses": [f"{c} " * 60 for c in "abcdef"]} for k in range(40)]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("rank", "-m", folder, "-i", source, "-o", target)
    # A shell starts what runs in its background with interrupts ignored, and a process hands that on.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        while not (target.exists() and target.read_bytes().count(b"\n") >= 2):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        said = process.stderr.read()
        assert "Traceback" not in said
        assert "interrupted; rows written to a file so far are whole, --resume goes on" in said
    before = target.read_text()
    assert 2 <= before.count("\n") < 40
    run = gram_fast(*arguments, "--resume")
    assert run.returncode == 0, run.stderr
    after = target.read_text()
    assert after.startswith(before)
    assert [json.loads(line)["id"] for line in after.splitlines()] == list(range(40))


def test_a_terminal_sees_progress(folder, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # a bar needs columns
    process = subprocess.Popen(command("rank", "-m", folder, "-i", source, "-o", tmp_path / "o"), stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait(60) == 0
    assert b"4/4" in seen
