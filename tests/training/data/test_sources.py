"""Where pairs come from: files, entries of a dataset_info.json, folders and the hub, and names that stand for none."""

import gzip
import io
import re
import sys
from types import SimpleNamespace

import pytest
from helpers.records import CHAT, EXAMPLES, ROW, read, texts, write

from gram_fast.errors import BackendError, InputError
from gram_fast.rows import tables


@pytest.mark.parametrize("name", ["nothing.jsonl", "data/train.json", "./x", "nothing", "", "a\0b", "org/name/x"])
def test_a_name_that_stands_for_nothing_says_what_was_looked_for(name):
    said = re.escape(f"there is no file or folder {name!r}, no dataset_info.json was given, and names on the hub are")
    with pytest.raises(InputError, match=said):
        read(name)
    info = str(EXAMPLES / "dataset_info.json")
    with pytest.raises(InputError, match=re.escape(f"no entry of that name in {info}")):
        read(name, dataset_info=info)


def register(tmp_path, entry):
    write(tmp_path / "rows.jsonl", ROW)
    return str(write(tmp_path / "dataset_info.json", {"mine": entry}))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("rows.jsonl", "mine: expected an object, got str"),
        ({}, "mine: expected 'file_name' or 'hf_hub_url'"),
        ({"ms_hub_url": "x/y"}, "mine: expected 'file_name' or 'hf_hub_url'"),
        ({"file_name": 3}, "mine: expected 'file_name' to be text, got int"),
        ({"file_name": "none.jsonl"}, "mine: there is no file or folder"),
        (
            {"file_name": "rows.jsonl", "num_samples": 3},
            "mine: cannot read a set with 'num_samples', expected any of file_name",
        ),
        ({"file_name": "rows.jsonl", "split": "test"}, "mine: expected no 'split', since 'file_name' is one file"),
        (
            {"file_name": "rows.jsonl", "formatting": "sharegpt"},
            "expected 'formatting' alpaca, or sharegpt and 'ranking' true",
        ),
        ({"file_name": "rows.jsonl", "ranking": "yes"}, "got 'alpaca' and 'yes'"),
        (
            {"file_name": "rows.jsonl", "columns": {"chosen": "c"}},
            "mine: columns: cannot read a set with 'chosen', expected any of",
        ),
        (
            {"file_name": "rows.jsonl", "ranking": True, "columns": {"chosen": "c"}},
            "mine: columns: expected 'rejected', found 'chosen'",
        ),
        (
            {"file_name": "rows.jsonl", "ranking": True, "columns": {"chosen": "c", "rejected": 1}},
            "'rejected' to be text, got int",
        ),
        (
            {"file_name": "rows.jsonl", "ranking": True, "tags": {"role_tag": "role"}},
            "mine: tags: cannot read a set with 'role_tag', expected any of none",
        ),
        (
            {"file_name": "rows.jsonl", "ranking": True, "columns": {"chosen": "good", "rejected": "bad"}},
            "rows.jsonl line 1: expected a field 'good', found 'prompt'",
        ),
    ],
)
def test_an_entry_that_cannot_be_read_is_named(tmp_path, entry, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read("mine", dataset_info=register(tmp_path, entry))


def test_columns_that_an_entry_does_not_name_are_not_read(tmp_path):
    entry = {"file_name": "x.jsonl", "ranking": True, "columns": {"prompt": "q", "chosen": "c", "rejected": "r"}}
    write(tmp_path / "x.jsonl", {"q": "p", "c": "a", "r": "b", "input": "more", "system": "s"})
    assert texts(read("mine", dataset_info=register(tmp_path, entry))) == [("p", "a", "b", "A")]


def test_a_local_file_goes_before_an_entry_and_an_absolute_name_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    info = register(tmp_path, {"file_name": str(EXAMPLES / "unlabeled.jsonl")})
    assert len(read("mine", dataset_info=info)) == 3
    write(tmp_path / "mine", ROW)
    assert [r.where for r in read("mine", dataset_info=info)] == ["mine line 1"]


@pytest.mark.parametrize(
    ("text", "message"), [("{", "expected JSON"), ("[]", "expected an object of data sets by name")]
)
def test_a_dataset_info_that_is_none_is_named(tmp_path, text, message):
    path = write(tmp_path / "info.json", text)
    with pytest.raises(InputError, match=rf"info\.json: {message}"):
        read("mine", dataset_info=str(path))
    with pytest.raises(InputError, match=r"cannot read .*nowhere\.json: No such file"):
        read("mine", dataset_info=str(tmp_path / "nowhere.json"))


def hub(monkeypatch, rows):
    calls = []

    def load_dataset(*arguments, **options):
        calls.append((arguments, options))
        yield from rows

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr(tables, "hub_problem", lambda *_: None)
    return calls


@pytest.mark.parametrize(("name", "split"), [("org/name", "train"), ("org/name:test", "test")])
def test_a_hub_name_is_a_stream_of_its_split(monkeypatch, name, split):
    calls = hub(monkeypatch, [ROW, {**ROW, "chosen": "b"}, ROW])
    errors = []
    records = read(name, skip_bad=errors.append)
    assert calls == [(("org/name", None), {"data_dir": None, "split": split, "streaming": True})]
    assert [r.where for r in records] == [f"org/name:{split} row 1", f"org/name:{split} row 3"]
    assert str(errors[0]).startswith(f"org/name:{split} row 2: responses: ")


def test_an_entry_of_the_hub_hands_on_its_part_and_its_fields(monkeypatch):
    calls = hub(monkeypatch, [CHAT])
    assert texts(read("mix", dataset_info=str(EXAMPLES / "dataset_info.json"))) == [("p", "a", "b", "A")]
    assert calls == [(("llamafactory/DPO-En-Zh-20k", "en"), {"data_dir": None, "split": "train", "streaming": True})]


def test_what_the_hub_says_is_passed_on_in_one_line(monkeypatch):
    def rows():
        yield ROW
        raise ConnectionError("gone away\nand more")

    hub(monkeypatch, rows())
    said = "as a data set on the hub, there being no such file, after 1 rows: gone away and more"
    with pytest.raises(InputError, match=f"^cannot read org/name:train {said}$"):
        read("org/name")


def test_standard_input_and_tables_are_pairs_as_files_of_lines_are(tmp_path, monkeypatch):
    (tmp_path / "pairs.csv").write_bytes(b"prompt,chosen,rejected,system\r\np,a,b,\r\n")
    assert texts(read(tmp_path / "pairs.csv")) == [("p", "a", "b", "A")]
    packed = gzip.compress((tmp_path / "pairs.csv").read_bytes())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(packed)))
    assert [record.where for record in read("-")] == ["standard input line 2"]


def test_a_folder_is_read_by_the_datasets_library(tmp_path):
    write(tmp_path / "train.jsonl", ROW, {**ROW, "prompt": "q"})
    write(tmp_path / "test.jsonl", {**ROW, "prompt": "t"})
    assert [r.prompt for r in read(tmp_path)] == ["p", "q"]
    assert [(r.prompt, r.where) for r in read(f"{tmp_path}:test")] == [("t", f"{tmp_path}:test row 1")]
    with pytest.raises(InputError, match=r"as a folder, after 0 rows: Bad split: nope"):
        read(f"{tmp_path}:nope")


@pytest.mark.parametrize(("library", "source"), [("datasets", "org/name"), ("pyarrow", "x.parquet")])
def test_a_library_that_is_not_installed_is_named_with_the_extra(tmp_path, monkeypatch, library, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(BackendError, match=r"pip install 'gram_fast\[data\]'"):
        read(source)
