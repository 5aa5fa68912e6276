"""Writes results: as whole rows, as brief rows, or as tables on a terminal."""

import sys
from dataclasses import asdict
from typing import Any

from rich.console import Console

from gram_fast.commands.jobs import JobRow, Write
from gram_fast.commands.output import INPUT_DIGEST, Output
from gram_fast.commands.tables import result_table

_BRIEF = ("p", "best", "order", "scores", "index", "response")


def whole_rows(output: Output) -> Write:
    """Writes all fields of a result, the digest of its input row and the settings of the run."""

    def write(row: JobRow, result: Any, count: int) -> None:
        fields = asdict(result)
        for written in (fields, *fields.get("comparisons", ())):
            if not written.get("reasoning", True):
                del written["reasoning"]  # of a judge that writes none
        fields.pop("errors", None)  # there are none: a response that cannot be judged is an error of its row
        stats = {"rows": count, **fields["stats"]}
        output.write({"id": row.id, **fields, "stats": stats, INPUT_DIGEST: row.digest})

    return write


def brief_rows(output: Output) -> Write:
    """Writes the id and what was asked for."""

    def write(row: JobRow, result: Any, count: int) -> None:
        fields = {name: value for name, value in vars(result).items() if name in _BRIEF}
        output.append({"id": row.id, **fields})

    return write


def tables(places: int | None) -> Write:
    """Prints a table on standard output; `places`: of a ranking, that are shown, None for all."""
    console = Console(file=sys.stdout)

    def write(row: JobRow, result: Any, count: int) -> None:
        responses = [row.group.texts[number] for number in row.group.text_of]
        console.print(result_table(row.group.prompt, responses, result, count, places), "")

    return write
