"""Rows of tables: CSV, parquet, and data sets that the datasets library reads."""

import csv
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, Any

from gram_fast.errors import BackendError, InputError, one_line
from gram_fast.hub import hub_problem
from gram_fast.rows.bad_rows import OnBad, not_utf8
from gram_fast.rows.lines import BYTE_ORDER_MARK, read_lines

_PARQUET_BATCH = 256
_DELIMITERS = ",\t;"
_COLUMN = re.compile(r"[\w.-]+")
# Most characters of a cell: the csv module's own limit, 131,072, is less than some responses have.
_LONGEST_CELL = 2**28


def find_delimiter(begin: bytes, is_csv: bool = False) -> str | None:
    """The delimiter of a CSV file that begins so, or None where its first line does not look like names of columns.

    `is_csv`: it is known to be one, whatever its first line.
    """
    first = begin.removeprefix(BYTE_ORDER_MARK).lstrip().partition(b"\n")[0].decode("utf-8", "replace").strip()
    delimiter = max(_DELIMITERS, key=first.count)
    names = first.split(delimiter)
    names = [name.strip().strip('"') for name in names]
    # pandas writes its index as a first column without a name.
    is_header = len(names) > 1 and all(_COLUMN.fullmatch(name) for name in names[not names[0] :])
    return delimiter if is_csv or is_header else None


def csv_rows(stream: IO[bytes], name: str, delimiter: str, on_bad: OnBad) -> Iterator[tuple[str, Any]]:
    """Yields (where, row) for every row of a CSV file, cells by column; an empty cell is None.

    A first column without a name, which pandas writes for its index, is passed over. A row's place is the
    line on which it begins. `on_bad` receives the error of a row with too few or too many cells. Raises InputError for
    a header without a name of its own for each column, and for text that is not CSV.
    """
    csv.field_size_limit(_LONGEST_CELL)
    begun, columns = 1, None
    reader = csv.reader(_decoded(stream, name, on_bad), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            where, begun = f"{name} line {begun}", reader.line_num + 1
            if not cells:
                continue
            if columns is None:
                columns = [cell.strip() for cell in cells]
                if "" in columns[1:] or len(set(columns)) < len(columns):
                    raise InputError(f"{where}: expected a name of its own for each column, found {columns}")
            elif len(cells) != len(columns):
                on_bad(InputError(f"{where}: expected {len(columns)} cells, one a column, found {len(cells)}"))
            else:
                yield where, {name: cell or None for name, cell in zip(columns, cells, strict=True) if name}
    except csv.Error as error:
        raise InputError(f"{name} line {begun}: expected CSV, {one_line(error)}") from None


def _decoded(stream: IO[bytes], name: str, on_bad: OnBad) -> Iterator[str]:
    for number, line in read_lines(stream, name, on_bad):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise not_utf8(f"{name} line {number}", error) from None


def parquet_rows(stream: IO[bytes], name: str) -> Iterator[tuple[str, Any]]:
    """Yields (where, row) for every row of a parquet file. Raises BackendError without pyarrow."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise BackendError(f"{name}: parquet files take pyarrow, pip install 'gram_fast[data]'") from None
    number = 0
    try:
        batches = parquet.ParquetFile(stream).iter_batches(_PARQUET_BATCH)
        for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), start=1):
            yield f"{name} row {number}", row
    except (OSError, ValueError, ArrowException) as error:
        raise InputError(f"cannot read {name} as parquet, after {number} rows: {one_line(error)}") from error


def dataset_rows(path: str, subset: str | None, split: str, folder: str | None) -> Iterator[tuple[str, Any]]:
    """Yields (where, row) for every row of a folder or data set on the hub. Raises BackendError without datasets."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise BackendError(f"{path}: folders and hub names take datasets, pip install 'gram_fast[data]'") from None
    name, number = f"{path}:{split}", 0
    what = "a folder"
    if not os.path.isdir(path):
        what = "a data set on the hub, there being no such file"
        if problem := hub_problem(path, "dataset"):
            what += f"; the hub cannot be reached ({problem})"
            load_dataset = partial(_of_cache, load_dataset)
    try:
        rows = load_dataset(path, subset, data_dir=folder, split=split, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield f"{name} row {number}", row
    except Exception as error:  # errors of the library, its readers and the network share no base class
        raise InputError(f"cannot read {name} as {what}, after {number} rows: {one_line(error)}") from error


def _of_cache(load: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Calls load_dataset as HF_DATASETS_OFFLINE does: it loads from its cache, without trying the hub for long."""
    from datasets import config

    before, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, True
    try:
        return load(*arguments, **options)
    finally:
        config.HF_HUB_OFFLINE = before
