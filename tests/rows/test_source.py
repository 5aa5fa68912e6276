"""One reader of rows: the same rows in every format and packing, their places, and sentences for what is not read."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.errors import InputError
from gram_fast.rows import lines
from gram_fast.rows.bad_rows import raise_bad_row
from gram_fast.rows.source import read_rows
from gram_fast.rows.tables import csv_rows

ROWS = [
    {"id": "x", "prompt": 'Say "é",\nplease', "response_1": "a", "response_2": ";\t"},
    {"id": "y", "prompt": "q", "response_1": "b", "response_2": None},
    {"id": "z", "prompt": " {", "response_1": "c" * 200_000, "response_2": "d"},
]


def as_csv(rows, delimiter=",", newline="\r\n"):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], delimiter=delimiter, lineterminator=newline)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def as_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


FORMATS = {
    "lines": (as_lines(ROWS), ["line 1", "line 2", "line 3"]),
    "array": (json.dumps(ROWS).encode(), ["row 1", "row 2", "row 3"]),
    "array of lines": (json.dumps(ROWS, indent=0).encode(), ["line 2", "line 8", "line 14"]),
    "parquet": (as_parquet(ROWS), ["row 1", "row 2", "row 3"]),
    "comma": (as_csv(ROWS), ["line 2", "line 4", "line 5"]),
    "tab": (as_csv(ROWS, "\t", "\n"), ["line 2", "line 4", "line 5"]),
    "semicolon": (as_csv(ROWS, ";"), ["line 2", "line 4", "line 5"]),
}


def write(path, content):
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", FORMATS)
def test_rows_and_places_are_the_same_whatever_the_file_is_called(tmp_path, name, pack):
    content, places = FORMATS[name]
    for mark in (b"",) if name == "parquet" else (b"", b"\xef\xbb\xbf"):
        path = write(tmp_path / "rows", pack(mark + content))
        assert list(read_rows(path, raise_bad_row)) == [
            (f"{path} {p}", row) for p, row in zip(places, ROWS, strict=True)
        ]


@pytest.mark.parametrize("name", FORMATS)
def test_pipes_are_read_by_content_as_files_are(tmp_path, name, monkeypatch):
    content, places = FORMATS[name]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(gzip.compress(content))))
    expected = [(f"standard input {place}", row) for place, row in zip(places, ROWS, strict=True)]
    assert list(read_rows("-", raise_bad_row)) == expected
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    writer = threading.Thread(target=Path(pipe).write_bytes, args=[content])
    writer.start()
    assert [row for _, row in read_rows(pipe, raise_bad_row)] == ROWS
    writer.join()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\r\0"))] * 2), min_size=1))
def test_csv_gives_back_what_was_written(cells):
    rows = [{"prompt": a or None, "response_1": b or None} for a, b in cells]
    read = csv_rows(io.BytesIO(as_csv(rows)), "x", ",", raise_bad_row)
    assert [row for _, row in read] == rows


def test_a_csv_of_one_column_is_known_by_its_name_and_the_index_of_pandas_is_passed_over(tmp_path):
    path = write(tmp_path / "x.csv.gz", gzip.compress(b"what is asked?\nq\n"))
    assert list(read_rows(path, raise_bad_row)) == [(f"{path} line 2", {"what is asked?": "q"})]
    path = write(tmp_path / "x", b",prompt,subset\n0,p,s\n")
    assert list(read_rows(path, raise_bad_row)) == [(f"{path} line 2", {"prompt": "p", "subset": "s"})]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            as_lines(ROWS).decode().encode("utf-16"),
            " is UTF-16 text: expected JSON lines, a JSON array",
        ),
        (as_csv(ROWS).decode().encode("utf-16-le"), " is UTF-16 without its mark, or no text: expected"),
        (b"PK\x03\x04...", " is a zip archive: expected"),
        (b"\x28\xb5\x2f\xfd...", " is packed with zstd: expected"),
        (b"ARROW1\0\0", " is an Arrow file: expected"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            " is a pointer of Git LFS",
        ),
        (b"<!DOCTYPE html>", " is a page of HTML: expected"),
        (b"a,b\n1,2\n3\n", " line 3: expected 2 cells, one a column, found 1"),
        (b'a,b\n1,"2\n', " line 2: expected CSV, unexpected end of data"),
        (b"a,a\n1,2\n", " line 1: expected a name of its own for each column, found ['a', 'a']"),
        (b"a,b\n1,\xe9\n", " line 2: expected UTF-8, found the byte 0xe9"),
        (b"{}\n\xe9\n", " line 2: expected UTF-8, found the byte 0xe9"),
        (b"no, this is no JSON\n", " line 1: expected JSON, Expecting value at column 1"),
        (b"broken", " line 1: expected JSON, Expecting value at column 1"),
        (b"PAR1 or so", ", after 0 rows: "),
    ],
)
def test_what_cannot_be_read_is_named_for_what_it_is(tmp_path, content, said):
    path = write(tmp_path / "rows", content)
    with pytest.raises(InputError) as caught:
        list(read_rows(path, raise_bad_row))
    assert said in str(caught.value)
    assert path in str(caught.value)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_packed_file_that_is_cut_or_broken_is_an_error_behind_its_last_whole_row(tmp_path, pack):
    whole = pack(as_lines(ROWS) + as_lines([{"n": n, "text": os.urandom(30).hex()} for n in range(2000)]))
    for broken in (whole[: len(whole) // 2], whole[:40], whole[:500] + b"\0" * 100 + whole[600:]):
        path = write(tmp_path / "rows", broken)
        with pytest.raises(InputError, match=f"^(cannot read {path}: |{path} )"):
            list(read_rows(path, raise_bad_row))


def test_names_that_stand_for_nothing_and_folders_that_cannot_be_read(tmp_path):
    for name in ("nothing.jsonl", "", "a\0b", "org/name/x", "org/rows.parquet"):
        with pytest.raises(InputError, match="there is no such file, and names on the hub are org/name"):
            list(read_rows(name, raise_bad_row))


def test_a_line_that_is_too_long_is_an_error_and_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_LONGEST", 1000)
    for row, long in ((b'{"a": 1}\n', b'"' + b"x" * 5000 + b'"\n'), (b"a,b\n1,2\n", b"3," + b"y" * 3000 + b"\n")):
        path = write(tmp_path / "rows", row + long + row.splitlines()[-1] + b"\n" + long.strip())
        errors = []
        assert len(list(read_rows(path, errors.append))) == 2
        at = row.count(b"\n") + 1
        assert [str(e) for e in errors] == [
            f"{path} line {k}: expected at most 1000 bytes in a line, found more" for k in (at, at + 2)
        ]


def test_plain_text_takes_no_library_beyond_the_standard_one(tmp_path, monkeypatch):
    for library in ("pyarrow", "datasets", "pandas"):
        monkeypatch.setitem(sys.modules, library, None)
    for name in ("lines", "array", "comma"):
        assert len(list(read_rows(write(tmp_path / name, FORMATS[name][0]), raise_bad_row))) == 3
