"""Rows in: bad lines are named and can be skipped."""

import json

import pytest

from gram_fast.commands.jobs import read_job_rows
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
