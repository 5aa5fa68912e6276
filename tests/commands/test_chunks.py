"""Chunks: every row once, in order, large enough; one that fails is scored but for the rows at fault."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gram_fast.commands.chunks import chunks, score_chunk
from gram_fast.errors import InputError

SIZES = st.lists(st.integers(0, 9), max_size=30)


@given(SIZES, st.integers(1, 40))
def test_chunks_are_in_order_and_no_larger_than_they_must_be(sizes, least):
    cut = list(chunks(sizes, int, least))
    assert [size for chunk in cut for size in chunk] == sizes
    assert all(sum(chunk) >= least for chunk in cut[:-1])
    assert all(sum(chunk[:-1]) < least for chunk in cut)


@given(SIZES, st.sets(st.integers(0, 30)))
def test_what_is_there_is_a_chunk_where_the_next_row_is_not(sizes, pauses):
    read = []

    def rows():
        for number, size in enumerate(sizes):
            read.append(number)
            yield size

    cut = list(chunks(rows(), int, 10**6, lambda: read[-1] in pauses))
    ends = [number for number in range(len(sizes)) if number in pauses or number == len(sizes) - 1]
    assert [len(chunk) for chunk in cut] == [b - a for a, b in zip([-1, *ends], ends, strict=False)]


@given(st.lists(st.booleans(), max_size=20))
def test_a_chunk_that_fails_gives_the_results_of_all_other_rows(is_bad):
    def score(rows):
        if any(is_bad[row] for row in rows):
            raise InputError(f"{sum(is_bad[row] for row in rows)} rows are bad")
        return [row * 10 for row in rows]

    found = list(score_chunk(range(len(is_bad)), score, "line {}".format))
    assert [row for row, _ in found] == list(range(len(is_bad)))
    errors = [result for _, result in found if isinstance(result, InputError)]
    assert [result for _, result in found if result not in errors] == [
        row * 10 for row, bad in enumerate(is_bad) if not bad
    ]
    assert [str(e) for e in errors] == [f"line {row}: 1 rows are bad" for row, bad in enumerate(is_bad) if bad]
    assert all(type(error) is InputError for error in errors)


def test_what_was_read_before_a_row_at_fault_is_a_chunk() -> None:
    def rows():
        yield from (1, 2, 3)
        raise InputError("line 4: expected JSON")

    cut = chunks(rows(), int, 4)
    assert [next(cut)] == [[1, 2, 3]]
    cut = chunks(rows(), int, 10**6)
    assert next(cut) == [1, 2, 3]
    with pytest.raises(InputError, match="line 4"):
        next(cut)
