"""Resolves the name of a data set to a local file, a LLaMA-Factory dataset_info.json entry, a folder, or the hub."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gram_fast.errors import InputError, one_line
from gram_fast.rows.source import RowSource, find_rows
from gram_fast.training.data.formats import Format, Layout

# Keys of a dataset_info.json entry. The other hubs hold the same data set under another name.
_PLACE_KEYS = ("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "subset", "split", "folder")
_LAYOUT_KEYS = ("formatting", "ranking", "columns", "tags")
_FORMATS: dict[tuple[Any, Any], Format] = {
    ("alpaca", False): "gram",
    ("alpaca", True): "preference",
    ("sharegpt", True): "sharegpt",
}
_NEEDED_COLUMNS: dict[Format, tuple[str, ...]] = {
    "gram": ("prompt", "response"),
    "preference": ("chosen", "rejected"),
    "sharegpt": ("messages", "chosen", "rejected"),
}
_OTHER_COLUMNS: dict[Format, tuple[str, ...]] = {
    "gram": ("query",),
    "preference": ("prompt", "query", "system", "history"),
    "sharegpt": ("system",),
}
_TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag")


@dataclass(frozen=True)
class DataSource:
    """A resolved data set: where its rows come from, and how they are laid out."""

    rows: RowSource
    layout: Layout | None = None
    """None: the format of each row is detected from its fields."""


def find_source(name: str, dataset_info: str | None = None) -> DataSource:
    """Resolves the name of a data set.

    The first match counts: a local file, or "-" for standard input; an entry of the file `dataset_info`; a local folder
    or a name on the Hugging Face hub, `org/name`, either optionally followed by `:split`. Raises InputError that says
    what was looked for, and for an entry that does not describe pairs.
    """
    found = find_rows(name)
    if found is not None and found.is_file:
        return DataSource(found)
    if dataset_info is not None:
        entries = _read_entries(dataset_info)
        if name in entries:
            return _registered(entries[name], f"{dataset_info}: {name}", os.path.dirname(dataset_info))
    if found is not None:
        return DataSource(found)
    entry = f"no entry of that name in {dataset_info}" if dataset_info else "no dataset_info.json was given"
    raise InputError(
        f"there is no file or folder {name!r}, {entry}, and names on the hub are org/name or org/name:split"
    )


def _read_entries(path: str) -> Mapping[str, Any]:
    try:
        entries = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON, {one_line(error)}") from None
    if not isinstance(entries, dict):
        raise InputError(f"{path}: expected an object of data sets by name, got {type(entries).__name__}")
    return entries


def _registered(entry: Any, where: str, base: str) -> DataSource:
    entry = _known(entry, where, (*_PLACE_KEYS, *_LAYOUT_KEYS))
    layout = _layout(entry, where) if any(key in entry for key in _LAYOUT_KEYS) else None
    place = _strings({key: entry[key] for key in _PLACE_KEYS if key in entry}, where)
    part = {key: place[key] for key in ("subset", "split", "folder") if key in place}
    if "hf_hub_url" in place:
        return DataSource(RowSource(place["hf_hub_url"], **part), layout)
    if "file_name" not in place:
        raise InputError(f"{where}: expected 'file_name' or 'hf_hub_url'")
    path = os.path.join(base, place["file_name"])
    if not os.path.exists(path):
        raise InputError(f"{where}: there is no file or folder {path}")
    if os.path.isfile(path) and part not in ({}, {"split": "train"}):
        raise InputError(f"{where}: expected no {next(iter(part))!r}, since 'file_name' is one file")
    return DataSource(RowSource(path, **part), layout)


def _layout(entry: dict[str, Any], where: str) -> Layout:
    formatting, ranking = entry.get("formatting", "alpaca"), entry.get("ranking", False)
    if not isinstance(formatting, str) or not isinstance(ranking, bool) or (formatting, ranking) not in _FORMATS:
        raise InputError(
            f"{where}: expected 'formatting' alpaca, or sharegpt and 'ranking' true, got {formatting!r} and {ranking!r}"
        )
    format = _FORMATS[formatting, ranking]
    names: dict[str, str | None] = {}
    if "columns" in entry:
        columns = _known(entry["columns"], f"{where}: columns", (*_NEEDED_COLUMNS[format], *_OTHER_COLUMNS[format]))
        for column in _NEEDED_COLUMNS[format]:
            if column not in columns:
                raise InputError(
                    f"{where}: columns: expected {column!r}, found {', '.join(map(repr, columns)) or 'none'}"
                )
        names = {"query": None, **_strings(columns, f"{where}: columns")}
    tags = _known(entry.get("tags", {}), f"{where}: tags", _TAGS if format == "sharegpt" else ())
    return Layout(format, **names, **_strings(tags, f"{where}: tags"))  # type: ignore[arg-type]


def _known(value: Any, where: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """Returns the mapping `value` without its null entries. Raises InputError for a key that is not in `keys`."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, got {type(value).__name__}")
    for key in value:
        if key not in keys:
            raise InputError(f"{where}: cannot read a set with {key!r}, expected any of {', '.join(keys) or 'none'}")
    return {key: item for key, item in value.items() if item is not None}


def _strings(values: dict[str, Any], where: str) -> dict[str, str]:
    for key, value in values.items():
        if not isinstance(value, str):
            raise InputError(f"{where}: expected {key!r} to be text, got {type(value).__name__}")
    return values
