"""Rows out: resumed without loss, nothing overwritten, no two runs on one file."""

import fcntl
import json
import os
import resource
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from gram_fast.commands.jobs import Job, JobRow, OneJudge, pending_rows, read_ahead, score_rows
from gram_fast.commands.output import open_output
from gram_fast.commands.writers import whole_rows
from gram_fast.errors import InputError
from gram_fast.ranking.packed import DUEL
from gram_fast.text.group import Group

RUN = {"command": "rank", "model": "m", "preset": "auto"}
ONE_ROW_A_CHUNK = SimpleNamespace(tokens_at_once=1)


def job_row(row_id, prompt, responses=("a", "b")):
    group = Group.of(prompt, responses, at_least=1)
    return JobRow(row_id, prompt, list(responses), group, f"in line {row_id}")


ROWS = [job_row(k, f"p{k}") for k in range(6)]


@dataclass
class Result:
    best: int
    stats: dict


def score(rows, output, score_one=lambda row: row.id):
    """Writes a result for each row."""
    job = Job(DUEL, lambda chunk, comparer: [Result(score_one(row), {}) for row in chunk])
    with read_ahead(pending_rows(rows, output), is_live=False) as ahead:
        return score_rows(ahead, job, OneJudge(job, ONE_ROW_A_CHUNK), whole_rows(output), refuse)


def refuse(error):
    raise error


def run(path, rows=ROWS, fail_at=None, resume=False, settings=RUN, source="-"):
    """Scores rows; a KeyboardInterrupt stands for an interruption at that row."""
    asked = []

    def score_one(row):
        if row.id == fail_at:
            raise KeyboardInterrupt
        asked.append(row.id)
        return row.id

    with open_output(str(path), source, resume) as output:
        output.record(**settings)
        score(rows, output, score_one)
    return asked


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.jsonl"


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_row_has_its_id_first_and_its_settings_last(out):
    run(out, ROWS[:1])
    (line,) = read(out)
    assert line == {"id": 0, "best": 0, "stats": {"rows": 1}, "input_digest": ROWS[0].digest, "run": RUN}
    assert list(line) == ["id", "best", "stats", "input_digest", "run"]


def test_resuming_neither_repeats_nor_loses_a_row(out):
    with pytest.raises(KeyboardInterrupt):
        run(out, fail_at=3)
    with out.open("ab") as file:
        file.write(b'{"id": 3, "be')  # killed in the middle of a write
    assert run(out, resume=True) == [3, 4, 5]
    assert [row["id"] for row in read(out)] == list(range(6))
    assert run(out, resume=True) == []


def test_resuming_wants_the_same_settings(out):
    run(out)
    with pytest.raises(InputError, match=r"line 1: model was 'm', now it is 'other': it is of another run"):
        run(out, resume=True, settings={**RUN, "model": "other"})


def test_settings_that_change_no_answer_are_recorded_and_not_compared(out):
    run(out, ROWS[:3], settings={**RUN, "max_length": None})
    run(out, resume=True, settings={**RUN, "preset": "gram", "max_length": 512})
    assert [row["run"]["preset"] for row in read(out)] == ["auto"] * 3 + ["gram"] * 3


def test_every_row_is_compared(out):
    """A file that was put together of two."""
    run(out, ROWS[:1])
    first = out.read_text()
    out.unlink()
    run(out, ROWS[1:2], settings={**RUN, "model": "other"})
    out.write_text(first + out.read_text())
    with pytest.raises(InputError, match=r"line 2: model was 'other', now it is 'm'"):
        run(out, resume=True)


@pytest.mark.parametrize(("field", "value"), [("prompt", "another"), ("responses", ["b", "a"]), ("responses", ["a"])])
def test_resuming_wants_the_same_texts_under_an_id(out, field, value):
    run(out, ROWS[:3])
    rows = [*ROWS[:2], job_row(2, **{"prompt": "p2", field: value}), *ROWS[3:]]
    before = out.read_bytes()
    with pytest.raises(InputError, match=r"line 3: prompt or responses of id 2 are others now"):
        run(out, rows, resume=True)
    assert out.read_bytes() == before


def test_a_line_put_in_front_of_rows_without_ids_is_noticed(out):
    run(out, [job_row(1, "p1")])
    moved = [job_row(1, "new"), job_row(2, "p1")]
    with pytest.raises(InputError, match=r"line 1: prompt or responses of id 1 are others now"):
        run(out, moved, resume=True)


def test_an_output_of_another_input_is_refused(out):
    run(out, [job_row("other", "p")])
    with pytest.raises(InputError, match='line 1 holds id "other", which the input lacks'):
        run(out, resume=True)


def test_an_output_of_an_older_version_is_said_to_be_one(out):
    out.write_text(json.dumps({"id": 0, "run": RUN}) + "\n")
    with pytest.raises(InputError, match="line 1: expected a field 'input_digest': another kind"):
        run(out, resume=True)
    out.unlink()
    run(out, ROWS[:1])
    with pytest.raises(InputError, match="line 1: expected 'run' to have 'prompt_digest': another kind"):
        run(out, resume=True, settings={**RUN, "prompt_digest": "0"})


def test_an_output_with_one_id_twice_is_refused(out):
    run(out)
    out.write_text(out.read_text() + out.read_text().splitlines(keepends=True)[1])
    with pytest.raises(InputError, match=r"line 7: expected one row for each id, 1 is also that of .* line 2"):
        run(out, resume=True)


@pytest.mark.parametrize(
    "content", ["precious\n", '{"precious": 1}', '{"id": 1}\n', "precious", '{"id": 1, "run": 5}\n']
)
def test_what_this_command_did_not_write_is_never_touched(out, content):
    out.write_text(content)
    with pytest.raises(InputError, match="is there already: go on with --resume, or name another file"):
        run(out, [])
    with pytest.raises(InputError, match="that this command wrote"):
        run(out, [], resume=True)
    assert out.read_text() == content


def test_nothing_is_cut_off_before_there_is_a_row_to_write(out):
    out.write_text('{"id": 0, "b')
    with pytest.raises(KeyboardInterrupt):
        run(out, fail_at=0, resume=True)
    assert out.read_text() == '{"id": 0, "b'


def test_the_input_is_no_output(out):
    out.write_text("{}\n")
    with pytest.raises(InputError, match="is the input"):
        run(out, resume=True, source=str(out))


def test_a_second_run_on_the_same_file_is_refused(out):
    for resume in (False, True):
        with open_output(str(out), "-", resume) as first:
            for again in (False, True):
                with pytest.raises(InputError, match=r"out.jsonl is written by another run"):
                    run(out, resume=again)
            first.record(**RUN)
            if not resume:
                first.write({"id": 0, "input_digest": ROWS[0].digest})
    assert run(out, resume=True) == [1, 2, 3, 4, 5]


def test_a_failure_before_the_first_row_leaves_no_file(out):
    with pytest.raises(KeyboardInterrupt):
        run(out, fail_at=0)
    assert not out.exists()
    assert run(out) == list(range(6))


def test_an_empty_file_is_written_to_and_never_removed(out):
    out.touch()
    with pytest.raises(KeyboardInterrupt):
        run(out, fail_at=0)
    assert out.exists()
    assert run(out) == list(range(6))


def test_a_file_that_was_removed_and_made_anew_while_it_was_being_locked_is_opened_again(out, monkeypatch):
    """Between opening and locking, the other run ended and removed its empty file."""
    lock, calls = fcntl.flock, []

    def remove_first(file, operation):
        if not calls:
            out.unlink()
        calls.append(operation)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    assert run(out) == list(range(6))
    assert len(calls) == 2
    assert len(read(out)) == 6


def test_a_file_that_cannot_be_locked_is_written_with_a_warning(out, monkeypatch, caplog):
    def no_locks(file, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    run(out)
    assert len(read(out)) == 6
    assert "cannot be locked (Function not implemented)" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: out.open("ab").write(b"x\n"), r"was changed by another program: expected \d+ bytes, found \d+"),
        (lambda out: os.truncate(out, 0), r"was changed by another program: expected \d+ bytes, found 0"),
        (lambda out: out.unlink(), "was removed or replaced while this run wrote it"),
        (lambda out: (out.unlink(), out.touch()), "was removed or replaced while this run wrote it"),
    ],
)
@pytest.mark.parametrize("row", [0, 2])
def test_a_file_that_others_change_is_neither_cut_nor_written_to(out, change, message, row):
    out.write_text('{"id": 0, ')  # would be cut off
    with open_output(str(out), "-", True) as output:
        for number in range(row):
            output.write({"id": number})
        change(out)
        before = out.read_bytes() if out.exists() else None
        with pytest.raises(InputError, match=message):
            output.write({"id": row})
        assert (out.read_bytes() if out.exists() else None) == before


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    for path in (tmp_path / "no" / "out.jsonl", tmp_path):
        with pytest.raises(InputError, match="cannot write"):
            run(path)


def test_a_full_disk_leaves_whole_rows_and_the_run_can_go_on(out):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_output(str(out), "-", False) as output:
        output.record(**RUN)
        score(ROWS[:2], output)
        written = out.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(written) + 10, before[1]))
        try:
            with pytest.raises(InputError, match=r"cannot write .*out.jsonl: File too large"):
                score(ROWS[2:], output)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert out.read_bytes() == written
    assert run(out, resume=True) == [2, 3, 4, 5]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_device_is_written_to_as_it_is():
    with pytest.raises(InputError, match=r"cannot write /dev/full: No space left on device"):
        run("/dev/full")
    run("/dev/null")
    with pytest.raises(InputError, match="--resume: expected --output FILE"):
        run("/dev/null", resume=True)


def test_a_pipe_gets_rows_as_they_come(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    run(pipe)
    assert os.read(reader, 10_000).count(b"\n") == 6
    os.close(reader)
