"""Checks of arguments by the letters of their names: each wrong tensor is named, and what is right passes."""

import re

import numpy as np
import pytest
import torch
from helpers.ops import CPU

from gram_fast.extension import _C
from gram_fast.ops.checks import DTYPES, Sizes, check_states

FLOAT = (torch.float32,)


def test_letters_are_bound_by_the_first_tensor_that_has_them() -> None:
    sizes = Sizes(CPU)
    sizes.check(FLOAT, q_THE=torch.zeros(3, 4, 5))
    sizes.check(DTYPES, bias_E=torch.zeros(5, dtype=torch.bfloat16), weight_2E=torch.zeros(2, 5))
    assert [sizes[letter] for letter in "THE"] == [3, 4, 5]
    with pytest.raises(KeyError):
        sizes["K"]


def test_none_is_passed_over() -> None:
    sizes = Sizes(CPU)
    sizes.check(FLOAT, x_TD=None, weight_D=torch.zeros(7))
    assert sizes["D"] == 7
    with pytest.raises(KeyError):
        sizes["T"]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"k_SKE": torch.zeros(9, 2, 6)}, "k_SKE: expected shape (9, 2, 5), got (9, 2, 6)"),
        ({"k_SK": torch.zeros(9, 2), "v_SK": torch.zeros(8, 2)}, "v_SK: expected shape (9, 2), got (8, 2)"),
        ({"weight_2E": torch.zeros(3, 5)}, "weight_2E: expected shape (2, 5), got (3, 5)"),
        ({"square_NN": torch.zeros(2, 3)}, "square_NN: expected shape (2, 2), got (2, 3)"),
        ({"q_THE": torch.zeros(3, 5)}, "q_THE: expected 3 dimensions, got 2"),
        ({"rows_L": torch.zeros(3, 5)}, "rows_L: expected 1 dimension, got 2"),
        ({"rows_L": torch.tensor(1.0)}, "rows_L: expected 1 dimension, got 0"),
        ({"bias_E": torch.zeros(5).half()}, "bias_E: expected torch.float32, got torch.float16"),
        ({"bias_E": torch.zeros(5, device="meta")}, "bias_E: expected device cpu, got meta"),
        ({"bias_E": torch.zeros(10)[::2]}, "bias_E: expected a contiguous last dimension, got stride 2"),
    ],
)  # fmt: skip
def test_what_does_not_match_is_named(tensors: dict[str, torch.Tensor], message: str) -> None:
    sizes = Sizes(CPU)
    sizes.check(FLOAT, first_E=torch.zeros(5))
    with pytest.raises(ValueError, match=r"^\w+: expected ") as caught:
        sizes.check(FLOAT, **tensors)
    assert str(caught.value) == message


def test_several_dtypes_are_all_named() -> None:
    with pytest.raises(ValueError, match=r"x_T: expected torch\.int32 or torch\.int64, got torch\.float32"):
        Sizes(CPU).check((torch.int32, torch.int64), x_T=torch.zeros(1))


def test_strides_may_be_any_where_the_caller_says_so_or_nothing_is_there() -> None:
    sizes = Sizes(CPU)
    sizes.check(FLOAT, any_strides=True, lse_TH=torch.zeros(4, 3).T)
    sizes.check(FLOAT, empty_N=torch.zeros(0, 2)[:, 1])
    assert (sizes["T"], sizes["H"], sizes["N"]) == (3, 4, 0)


def test_states_without_key_value_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="q_LHE: expected a multiple of 0 heads, got 4"):
        check_states("q_LHE", torch.zeros(1, 4, 8), *[torch.zeros(3, 0, 8)] * 2)


# Spans of 0 to 5, their offsets and ranges in 9 slots; rows of leaves.
SPANS, OFFSETS, RANGES = [[0, 3], [3, 5]], [0, 1, 3], [[7, 9], [0, 2], [6, 7]]
WRONG_TABLES = {
    "a gap": (
        ([[0, 2], [3, 5]], OFFSETS, RANGES),
        "spans_N2: expected spans that cover 0 to 5 in order, got [3, 5] in row 1",
    ),
    "a start": (
        ([[1, 3], [3, 5]], OFFSETS, RANGES),
        "spans_N2: expected spans that cover 0 to 5 in order, got [1, 3] in row 0",
    ),
    "an end": (
        ([[0, 3], [3, 4]], OFFSETS, RANGES),
        "spans_N2: expected spans that cover 0 to 5 in order, got 2 that end at 4",
    ),
    "no spans": (
        (np.empty((0, 2)), [0], np.empty((0, 2))),
        "spans_N2: expected spans that cover 0 to 5 in order, got 0 that end at 0",
    ),
    "a fall": ((SPANS, [0, 3, 2], RANGES), "range_offsets: expected a rise from 0 to 3, got 2 in row 2"),
    "a late first": ((SPANS, [1, 1, 3], RANGES), "range_offsets: expected a rise from 0 to 3, got 1 in row 0"),
    "an early last": ((SPANS, [0, 1, 2], RANGES), "range_offsets: expected a rise from 0 to 3, got 2 in row 2"),
    "beyond the last": ((SPANS, [0, 4, 3], RANGES), "range_offsets: expected a rise from 0 to 3, got 3 in row 2"),
    "a slot too many": (
        (SPANS, OFFSETS, [[7, 10], [0, 2], [6, 7]]),
        "ranges_R2: expected 0 <= start < end <= 9, got [7, 10] in row 0",
    ),
    "no slot": (
        (SPANS, OFFSETS, [[7, 9], [0, 2], [6, 6]]),
        "ranges_R2: expected 0 <= start < end <= 9, got [6, 6] in row 2",
    ),
    "before the first": (
        (SPANS, OFFSETS, [[7, 9], [-1, 2], [6, 7]]),
        "ranges_R2: expected 0 <= start < end <= 9, got [-1, 2] in row 1",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_TABLES)
def test_tables_that_would_read_the_wrong_slots(wrong: str) -> None:
    tables, message = WRONG_TABLES[wrong]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        _C.check_spans(*tables, 9, 5)


def test_tables_that_read_what_is_there() -> None:
    _C.check_spans(SPANS, OFFSETS, RANGES, 9, 5)
    _C.check_spans(np.empty((0, 2)), [0], np.empty((0, 2)), 0, 0)
    _C.check_leaf_rows([0, 4, 4], 5)
    _C.check_leaf_rows([], 0)


@pytest.mark.parametrize("row", [-1, 5])
def test_leaf_rows_outside_the_pass(row: int) -> None:
    with pytest.raises(ValueError, match=rf"^leaf_rows_L: expected rows from 0 to 4, got {row} in row 1$"):
        _C.check_leaf_rows([4, row], 5)
