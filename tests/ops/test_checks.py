"""Checks of arguments by the letters of their names: each wrong tensor is named, and what is right passes."""

import contextlib
import time

import pytest
import torch
from helpers.ops import CPU

from gram_fast.ops import Spans
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


def test_messages_about_tables_are_made_on_failure_only() -> None:
    """100,000 spans: as text they take a hundred times as long as their check."""
    ends = torch.arange(1, 100_001)
    spans = Spans(
        torch.stack([ends - 1, ends], dim=1), torch.zeros(100_001, dtype=torch.int64), torch.empty((0, 2)).long()
    )

    def seconds(num_tokens: int) -> float:
        started = time.perf_counter()
        with contextlib.suppress(ValueError):
            spans.check(100_000, num_tokens)
        return time.perf_counter() - started

    with pytest.raises(ValueError, match=r"^spans_N2: expected spans that cover 0 to 99999 in order, got \[\[0, 1\], "):
        spans.check(100_000, 99_999)
    right, wrong = (min(seconds(number) for _ in range(3)) for number in (100_000, 99_999))
    assert right < wrong / 5
