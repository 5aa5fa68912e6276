"""Rows in: bad lines are named and can be skipped."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from gram_fast.commands.jobs import Job, parse_columns, read_job_rows
from gram_fast.errors import InputError
from gram_fast.ranking.packed import DUEL
from gram_fast.ranking.tournament import EACH_ALONE


def write(path, *lines):
    path.write_bytes(b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))
    return str(path)


def refuse(error):
    raise error


PAIRS = Job(DUEL, None)


def read(path, on_bad=refuse, job=PAIRS, **options):
    return list(read_job_rows(str(path), job, on_bad, **options))


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
        ({"id": "y", "prompt": "p"}, "line 2: expected a field 'responses', found 'id', 'prompt'"),
        ({"id": "y", "prompt": "p", "responses": ["a"]}, "line 2: responses: expected at least 2 responses, got 1"),
        ({"id": "y", "prompt": "p", "responses": "ab"}, "line 2: responses: expected a list of responses, got str"),
        ({"id": "y", "prompt": 1, "responses": ["a", "b"]}, "line 2: prompt: expected a string"),
        ({"id": None, "prompt": "p", "responses": ["a", "b"]}, "line 2: expected 'id' to be a string or an integer"),
        (ROW, "line 2: expected an id of its own, 'x' is also that of .* line 1"),
    ],
)
def test_a_bad_line_is_named_and_can_be_skipped(tmp_path, line, message):
    path = write(tmp_path / "in.jsonl", ROW, line, {**ROW, "id": 3})
    with pytest.raises(InputError, match=message):
        read(path)
    errors = []
    assert [row.id for row in read(path, errors.append)] == ["x", 3]
    assert len(errors) == 1


def test_the_number_of_responses_is_checked_in_every_row(tmp_path):
    path = write(tmp_path / "in.jsonl", ROW, {**ROW, "id": "y", "responses": ["a", "b", "c"]})
    with pytest.raises(InputError, match=r"in.jsonl line 2: responses: expected 2, got 3"):
        read(path, job=Job(DUEL, None, num_responses=2))


def test_rows_without_id_are_known_by_their_line(tmp_path):
    row = {"prompt": "p", "responses": ["a", "b"]}
    assert [r.id for r in read(write(tmp_path / "in.jsonl", row, b"\n", row))] == [1, 3]


RESPONSES = {"prompt": "p", "response_10": "c", "response_2": "b", "response_1": "a"}


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        (RESPONSES, None, ("p", ["a", "b", "c"])),
        ({**RESPONSES, "response_10": None}, None, ("p", ["a", "b"])),
        ({"prompt": "p", "response_b": "b", "response_a": "a"}, None, ("p", ["a", "b"])),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "responses=chosen+rejected", ("p", ["c", "r"])),
        ({"q": "p", "all": ["a", "b"], "prompt": 3}, "prompt=q, responses=all", ("p", ["a", "b"])),
    ],
)
def test_responses_may_stand_in_fields_of_their_own(tmp_path, row, columns, expected):
    (found,) = read(write(tmp_path / "in", row), columns=parse_columns(columns) if columns else {})
    assert (found.prompt, found.responses) == expected


def test_a_row_of_one_response_is_one_for_a_verifier(tmp_path):
    path = write(tmp_path / "in", {"prompt": "p", "response_1": "a"})
    assert [row.responses for row in read(path, job=Job(EACH_ALONE, None))] == [["a"]]


def test_a_gap_between_responses_and_columns_that_are_none_are_named(tmp_path):
    path = write(tmp_path / "in", {**RESPONSES, "response_2": None})
    with pytest.raises(InputError, match="line 1: response_2: expected a response, as there is one in response_10"):
        read(path)
    with pytest.raises(InputError, match="line 1: expected a field 'question', found 'prompt', 'response_10'"):
        read(path, columns=parse_columns("prompt=question"))
    for wrong in ("", "prompt", "prompt=", "answers=a+b", "responses=a+", "prompt=a,,id=b"):
        with pytest.raises(InputError, match=r"^columns: expected id=NAME, prompt=NAME or responses=NAME"):
            parse_columns(wrong)
    with pytest.raises(InputError, match=r"^columns: expected 'prompt' once, got 'prompt=a,prompt=b'$"):
        parse_columns("prompt=a,prompt=b")


def test_tables_and_arrays_are_rows_as_lines_are(tmp_path):
    rows = [{"prompt": f"p{k}", "response_1": "a", "response_2": "b"} for k in range(3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in.parquet")
    (tmp_path / "in.csv").write_text("prompt,response_1,response_2\n" + "".join(f"p{k},a,b\n" for k in range(3)))
    (tmp_path / "in.json").write_text(json.dumps(rows))
    for name, ids in (("in.parquet", [1, 2, 3]), ("in.csv", [2, 3, 4]), ("in.json", [1, 2, 3])):
        found = read(tmp_path / name)
        assert [row.id for row in found] == ids
        assert [(row.prompt, row.responses) for row in found] == [(f"p{k}", ["a", "b"]) for k in range(3)]


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match=r"cannot read nothing.jsonl: there is no such file"):
        read("nothing.jsonl")
