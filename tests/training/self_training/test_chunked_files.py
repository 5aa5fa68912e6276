"""Files that are whole or absent, and chunks that an ended run goes on with."""

import json
import os

import pytest

from gram_fast.errors import InputError
from gram_fast.training.self_training.files import (
    PART,
    count_lines,
    read_json,
    read_lines,
    write_chunks,
    write_json,
    write_lines,
)


def write(path, rows, make=None, size=3):
    made = []

    def remembered(chunk):
        made.append(list(chunk))
        return (make or (lambda rows: [{"row": row} for row in rows]))(chunk)

    write_chunks(path, rows, remembered, size=size, total=len(rows), name="test")
    return made


def test_every_row_has_a_line_and_no_other_file_is_left(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert write(path, range(7)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(read_lines(path)) == [{"row": n} for n in range(7)]
    assert count_lines(path) == 7
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_no_rows_are_an_empty_file(tmp_path):
    assert write(tmp_path / "rows.jsonl", []) == []
    assert (tmp_path / "rows.jsonl").read_bytes() == b""


@pytest.mark.parametrize("cut", range(0, 78, 3))
def test_a_file_that_was_cut_anywhere_is_gone_on_with_by_whole_chunks(cut, tmp_path):
    whole = b"".join(json.dumps({"row": n}).encode() + b"\n" for n in range(7))
    path = tmp_path / "rows.jsonl"
    path.with_name(path.name + PART).write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n") // 3 * 3
    assert write(path, range(7)) == [list(range(n, min(n + 3, 7))) for n in range(kept, 7, 3)]
    assert path.read_bytes() == whole


def test_an_error_leaves_the_chunks_before_it(tmp_path):
    def fail(chunk):
        if 3 in chunk:
            raise InputError("no")
        return [{"row": row} for row in chunk]

    path = tmp_path / "rows.jsonl"
    with pytest.raises(InputError, match="no"):
        write(path, range(7), fail)
    assert not path.exists()
    assert write(path, range(7)) == [[3, 4, 5], [6]]
    assert [row["row"] for row in read_lines(path)] == list(range(7))


def test_values_are_one_a_row(tmp_path):
    with pytest.raises(ValueError, match="expected 3 values, got 0"):
        write(tmp_path / "rows.jsonl", range(3), lambda chunk: [])


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*No such file.*the same command goes on"):
        write_json(tmp_path / "none" / "value.json", {})


def test_what_cannot_be_read_is_not_said_to_be_written(tmp_path):
    missing = tmp_path / "none.jsonl"
    with pytest.raises(InputError, match=r"^cannot read .*none\.jsonl: No such file or directory$"):
        write_lines(tmp_path / "rows.jsonl", read_lines(missing))
    for read in (read_json, count_lines):
        with pytest.raises(InputError, match=r"^cannot read .*none\.jsonl"):
            read(missing)

    def broken():
        yield {"row": 0}
        raise OSError("the line went dead")

    with pytest.raises(OSError, match="the line went dead"):
        write_lines(tmp_path / "rows.jsonl", broken())
    assert not (tmp_path / "rows.jsonl").exists()
    write_lines(tmp_path / "rows.jsonl", ({"row": n} for n in range(3000)))
    assert [row["row"] for row in read_lines(tmp_path / "rows.jsonl")] == list(range(3000))


def test_text_is_written_as_it_is(tmp_path):
    value = {"text": "ä\u2028\n\ud800", "number": 0.1}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value
    path = tmp_path / "rows.jsonl"
    assert write(path, [1], lambda chunk: [value]) == [[1]]
    assert list(read_lines(path)) == [value]
