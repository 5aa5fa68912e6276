"""Prints and keeps the results of benchmarks/kernel_speed/run.py.

A row is one implementation of one op at one shape; the first row of an op at a shape is ours.
"""

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
OURS = "ours"
"""Name of our tree attention, and how the names of its other launch shapes begin."""
FAILED = "FAILED: "
"""Begins the problem of a row of ours that raised, cannot run here, or was wrong."""


def best_rival(rows: Sequence[Row]) -> float | None:
    """Divides the time of the fastest rival by that of our tree attention; None with nothing to compare."""
    times = {row["name"]: row["seconds"] for row in rows if row["op"] == "tree_attention" and "seconds" in row}
    ours = times.get(OURS)
    rivals = [seconds for name, seconds in times.items() if not name.startswith(OURS)]
    return min(rivals) / ours if ours and rivals else None


def results_table(title: str, rows: Sequence[Row], ceiling: dict[str, float]) -> Table:
    """Makes a table of one line for each row, with its time as a multiple of that of the op's first line."""
    table = Table(title=title, title_justify="left")
    for column in (
        "op",
        "by",
        "µs",
        "TFLOP/s",
        "GB/s",
        "of ceiling",
        "times the first",
        "row error",
        "not timed because",
    ):
        table.add_column(column, justify="left" if column in ("op", "by", "not timed because") else "right")
    first: dict[str, float] = {}
    for row in rows:
        if "problem" in row:
            table.add_row(row["op"], row["name"], *[""] * 6, row["problem"])
            continue
        rate = "tflops" if "tflops" in row else "gbytes"
        table.add_row(
            row["op"],
            row["name"],
            f"{row['seconds'] * 1e6:,.1f}",
            *(f"{row[unit]:,.0f}" if unit == rate else "" for unit in ("tflops", "gbytes")),
            f"{row[rate] / ceiling[rate]:.0%}",
            f"{row['seconds'] / first.setdefault(row['op'], row['seconds']):.2f}",
            f"{row['error']:.1e}" if "error" in row else "",
            "",
        )
    return table


class Report:
    """Prints tables as they come, and keeps the record on disk up to date in case the time runs out."""

    def __init__(self, record: Row, output: Path | None, console: Console) -> None:
        self.record = record | {"rows": []}
        self._output, self._console = output, console

    def add(self, title: str, rows: Iterable[Row]) -> None:
        """Adds rows of one shape to the record, each as it comes, and prints all that there are of that shape."""
        for row in rows:
            self.record["rows"].append({"shape": title, **row})
            if self._output:
                self._output.write_text(json.dumps(self.record) + "\n", "utf-8")
        of_shape = [row for row in self.record["rows"] if row["shape"] == title]
        self._console.print(results_table(title, of_shape, self.record["ceilings"]))

    @property
    def failed(self) -> list[str]:
        """Lists the kernels of ours that raised, could not run or were wrong."""
        rows = self.record["rows"]
        return [f"{row['op']} ({row['name']})" for row in rows if row.get("problem", "").startswith(FAILED)]

    @property
    def measured(self) -> set[str]:
        """Lists the shapes at which our tree attention was right."""
        return {row["shape"] for row in self.record["rows"] if row["name"] == OURS and "seconds" in row}

    @property
    def headlines(self) -> list[str]:
        """Says of each shape how fast our tree attention is, and how much longer the best rival takes."""
        found = []
        for title, of_shape in groupby(sorted(self.record["rows"], key=itemgetter("shape")), itemgetter("shape")):
            rows = list(of_shape)
            ours = next((row for row in rows if row["op"] == "tree_attention" and "seconds" in row), None)
            if ours is None:
                continue
            share, ratio = ours["tflops"] / self.record["ceilings"]["tflops"], best_rival(rows)
            than = f"; the best rival takes {ratio:.2f} times as long" if ratio else ""
            found.append(f"{title}: {ours['name']} {ours['tflops']:,.0f} TFLOP/s, {share:.0%} of the ceiling{than}")
        return found
