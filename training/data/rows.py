"""Streams the raw rows of a data source, each with its place: "pairs.jsonl line 7", "org/name:train row 7"."""

import os
from collections.abc import Iterator
from typing import Any

from gram_fast.errors import BackendError, InputError, one_line
from gram_fast.json_rows import OnBad, read_json_rows
from gram_fast.training.data.sources import DataSource

_PARQUET_BATCH = 256


def read_source_rows(source: DataSource, on_bad: OnBad) -> Iterator[tuple[str, Any]]:
    """Yields (where, row) for every row; a file is Parquet, a JSON array or JSON Lines, detected from its first bytes.

    `on_bad` receives the error of a line that is not JSON. Raises InputError for a source that cannot be read, naming
    how far reading got, and BackendError when a library needed for it is not installed.
    """
    if not os.path.isfile(source.path):
        return _datasets_rows(source)
    try:
        with open(source.path, "rb") as file:
            begin = file.read(4)
    except OSError as error:
        raise InputError(f"cannot read {source.path}: {error.strerror}") from None
    return _parquet_rows(source.path) if begin == b"PAR1" else read_json_rows(source.path, on_bad)


def _parquet_rows(path: str) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise BackendError(f"{path}: parquet files take pyarrow, pip install 'gram_fast[train]'") from None
    number = 0
    try:
        batches = parquet.ParquetFile(path).iter_batches(_PARQUET_BATCH)
        for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), start=1):
            yield f"{path} row {number}", row
    except (OSError, ValueError, ArrowException) as error:
        raise InputError(f"cannot read {path} as parquet, after {number} rows: {one_line(error)}") from error


def _datasets_rows(source: DataSource) -> Iterator[tuple[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise BackendError(
            f"{source.path}: folders and hub names take datasets, pip install 'gram_fast[train]'"
        ) from None
    name, number = f"{source.path}:{source.split}", 0
    what = "a folder" if os.path.isdir(source.path) else "a data set on the hub, there being no such file"
    try:
        rows = load_dataset(source.path, source.subset, data_dir=source.folder, split=source.split, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield f"{name} row {number}", row
    except Exception as error:  # errors of the library, its readers and the network share no base class
        raise InputError(f"cannot read {name} as {what}, after {number} rows: {one_line(error)}") from error
