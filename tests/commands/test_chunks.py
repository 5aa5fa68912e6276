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


@given(st.lists(st.sampled_from(["good", "bad", "hidden"]), max_size=20))
def test_rows_that_an_error_names_are_dropped_at_once(kinds):
    """Others are scored once more; where an error names none, halves find the row."""
    asked = []

    def score(rows):
        assert rows or not kinds
        asked.append(list(rows))
        if hidden := [row for row in rows if kinds[row] == "hidden"]:
            raise InputError(f"{len(hidden)} rows are bad")
        if bad := {number: row for number, row in enumerate(rows) if kinds[row] == "bad"}:
            raise InputError.of_groups({number: {"a": f"{row} is bad"} for number, row in bad.items()})
        return [row * 10 for row in rows]

    found = list(score_chunk(range(len(kinds)), score, "line {}".format))
    said = {"bad": "line {0}: a: {0} is bad", "hidden": "line {0}: 1 rows are bad"}
    expected = [said[kind].format(row) if kind in said else row * 10 for row, kind in enumerate(kinds)]
    assert [(row, str(got) if isinstance(got, InputError) else got) for row, got in found] == list(enumerate(expected))
    if "hidden" not in kinds:
        assert all(sum(row in rows for rows in asked) <= 2 for row in range(len(kinds)))
        assert len(asked) <= 3


def test_rows_behind_one_at_fault_wait_until_it_was_taken():
    asked = []

    def score(rows):
        asked.append(list(rows))
        if 2 in rows:
            raise InputError.of_groups({rows.index(2): {"a": "it is bad"}})
        return rows

    found = score_chunk(range(5), score, str)
    assert [next(found)[0] for _ in range(3)] == [0, 1, 2]
    assert asked == [[0, 1, 2, 3, 4], [0, 1]]
    assert [row for row, _ in found] == [3, 4]
    assert asked[2:] == [[3, 4]]


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
