"""Rows in and out: bad lines, resuming, nothing lost."""

import json

import pytest

from gram_fast.commands.jobs import open_output, read_job_rows, run_rows
from gram_fast.errors import InputError


def write(path, *lines):
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    return str(path)


def refuse(error):
    raise error


ROW = {"id": "x", "prompt": "p", "responses": ["a", "b"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{bad\n", "line 2: expected JSON, Expecting property name enclosed in double quotes at column 2$"),
        (b'{"id": "y\n', "line 2: expected JSON, Unterminated string starting at column 8$"),
        (b"\xff\n", "line 2: expected UTF-8, found the byte 0xff"),
        (b"[" * 100_000 + b"\n", "line 2: expected JSON"),
        ({**ROW, "id": "\ud800"}, "line 2: id: expected text, found the lone surrogate"),
        ({**ROW, "id": True}, "line 2: expected 'id' to be a string or an integer, got bool"),
        ([1, 2], "line 2: expected a JSON object, got list"),
        ({"id": "y", "prompt": "p"}, "line 2: expected a key 'responses', found 'id', 'prompt'"),
        ({"id": "y", "prompt": "p", "responses": ["a"]}, "line 2: responses: expected at least 2, got 1"),
        ({"id": "y", "prompt": "p", "responses": "ab"}, "line 2: responses: expected a list of responses, got str"),
        ({"id": "y", "prompt": 1, "responses": ["a", "b"]}, "line 2: prompt: expected a string"),
        ({"id": None, "prompt": "p", "responses": ["a", "b"]}, "line 2: expected 'id' to be a string or an integer"),
        (ROW, "line 2: expected an id of its own, 'x' is also that of .* line 1"),
    ],
)
def test_a_bad_line_is_named_and_can_be_skipped(tmp_path, line, message):
    path = write(tmp_path / "in.jsonl", ROW, line, {**ROW, "id": 3})
    with pytest.raises(InputError, match=message):
        read_job_rows(path, refuse)
    errors = []
    assert [row.id for row in read_job_rows(path, errors.append)] == ["x", 3]
    assert len(errors) == 1


def test_the_number_of_responses_is_checked_in_every_row(tmp_path):
    path = write(tmp_path / "in.jsonl", ROW, {**ROW, "id": "y", "responses": ["a", "b", "c"]})
    with pytest.raises(InputError, match=r"in.jsonl line 2: responses: expected 2, got 3"):
        read_job_rows(path, refuse, num_responses=2)


def test_rows_without_id_are_known_by_their_line(tmp_path):
    row = {"prompt": "p", "responses": ["a", "b"]}
    assert [r.id for r in read_job_rows(write(tmp_path / "in.jsonl", row, b"\n", row), refuse)] == [1, 3]


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match=r"cannot read nothing.jsonl: No such file"):
        read_job_rows("nothing.jsonl", refuse)


RUN = {"command": "rank", "model": "m"}


def run(path, rows, fail_at=None, resume=False, settings=RUN, source="-"):
    """Scores rows; a KeyboardInterrupt stands for an interruption at that row."""
    asked = []

    def score(row):
        if row.id == fail_at:
            raise KeyboardInterrupt
        asked.append(row.id)
        return {"best": row.id, "run": settings}

    with open_output(str(path), source, resume, settings) as output:
        run_rows(rows, score, output, refuse)
    return asked


def test_resuming_neither_repeats_nor_loses_a_row(tmp_path):
    rows = read_job_rows(write(tmp_path / "in.jsonl", *({**ROW, "id": k} for k in range(6))), refuse)
    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(out, rows, fail_at=3)
    with out.open("ab") as file:
        file.write(b'{"id": 3, "be')  # killed in the middle of a write
    assert run(out, rows, resume=True) == [3, 4, 5]
    expected = [{"id": k, "best": k, "run": RUN} for k in range(6)]
    assert [json.loads(line) for line in out.read_text().splitlines()] == expected
    assert run(out, rows, resume=True) == []


def test_resuming_wants_the_same_settings(tmp_path):
    rows = read_job_rows(write(tmp_path / "in.jsonl", ROW), refuse)
    run(tmp_path / "out.jsonl", rows)
    with pytest.raises(InputError, match="line 1: model was 'm', now it is 'other'"):
        run(tmp_path / "out.jsonl", rows, resume=True, settings={**RUN, "model": "other"})


@pytest.mark.parametrize("content", ["precious\n", '{"precious": 1}', '{"id": 1}\n', "precious"])
def test_what_this_command_did_not_write_is_never_touched(tmp_path, content):
    out = tmp_path / "out.jsonl"
    out.write_text(content)
    with pytest.raises(InputError, match="is there already: go on with --resume, or name another file"):
        run(out, [])
    with pytest.raises(InputError, match="that this command wrote"):
        run(out, [], resume=True)
    assert out.read_text() == content


def test_nothing_is_cut_off_before_there_is_a_row_to_write(tmp_path):
    rows = read_job_rows(write(tmp_path / "in.jsonl", ROW), refuse)
    out = tmp_path / "out.jsonl"
    out.write_text('{"id": "x", "b')
    with pytest.raises(KeyboardInterrupt):
        run(out, rows, fail_at="x", resume=True)
    assert out.read_text() == '{"id": "x", "b'


def test_the_input_is_no_output(tmp_path):
    path = write(tmp_path / "in.jsonl", ROW)
    with pytest.raises(InputError, match="is the input"):
        run(path, [], resume=True, source=path)


def test_an_output_of_another_input_is_refused(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text(json.dumps({"id": "other", "run": RUN}) + "\n")
    with pytest.raises(InputError, match='holds id "other", which the input lacks'):
        run(out, [], resume=True)


def test_a_failure_before_the_first_row_leaves_no_file(tmp_path):
    with pytest.raises(ZeroDivisionError), open_output(str(tmp_path / "out.jsonl"), "-", False, RUN):
        raise ZeroDivisionError
    assert not (tmp_path / "out.jsonl").exists()


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    for path in (tmp_path / "no" / "out.jsonl", tmp_path):
        with pytest.raises(InputError, match="cannot write"):
            run(path, [])
