"""Cuts rows into chunks that are scored in one call, and finds the row at fault in a chunk that fails."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TypeVar

from gram_fast.errors import GramFastError, InputError

CHARACTERS = 8
"""Characters of text in a chunk for each token of one forward. With two orders and about four characters in a token, a
chunk takes four forwards or more: enough to pack well, and little is lost in an interruption."""

Row = TypeVar("Row")
Result = TypeVar("Result")


def chunks(
    rows: Iterable[Row], size_of: Callable[[Row], int], least: int, is_waiting: Callable[[], bool] = lambda: False
) -> Iterator[list[Row]]:
    """Splits rows into lists whose sizes sum to `least` or more, except the last, and where rows have to be waited for.

    `size_of`: size of a row. `is_waiting`: whether the next row would have to be waited for; what is there is yielded.
    """
    chunk: list[Row] = []
    size = 0
    try:
        for row in rows:
            chunk.append(row)
            size += size_of(row)
            if size >= least or is_waiting():
                yield chunk
                chunk, size = [], 0
    except GramFastError:
        if chunk:
            yield chunk  # what was read before the row at fault
        raise
    if chunk:
        yield chunk


def score_chunk(
    rows: Sequence[Row],
    score: Callable[[Sequence[Row]], Sequence[Result]],
    where_of: Callable[[Row], str],
) -> Iterator[tuple[Row, Result | GramFastError]]:
    """Yields rows with their results, in order; a chunk that fails is scored again without the rows at fault.

    `score` gives the results of several rows in one call, of a group each, so that an error's `by_group` tells which
    rows are at fault; a chunk whose error does not is halved until they are found. A row that cannot be scored has an
    error in place of a result, which begins with its place, `where_of`. Rows behind one are scored when it was taken.
    """
    try:
        results = score(rows)
    except GramFastError as error:
        failure = error
    else:
        yield from zip(rows, results, strict=True)
        return
    bad = failure.by_group if isinstance(failure, InputError) else {}
    if len(rows) == 1:
        yield rows[0], type(failure)(f"{where_of(rows[0])}: {failure}")
    elif bad:
        parts = rows[: min(bad)], [row for number, row in enumerate(rows) if number > min(bad) and number not in bad]
        others = chain.from_iterable(score_chunk(part, score, where_of) for part in parts if part)
        for number, row in enumerate(rows):
            if number in bad:
                yield row, InputError(f"{where_of(row)}: {InputError.of(bad[number])}")
            else:
                yield next(others)
    else:
        half = len(rows) // 2
        yield from score_chunk(rows[:half], score, where_of)
        yield from score_chunk(rows[half:], score, where_of)
