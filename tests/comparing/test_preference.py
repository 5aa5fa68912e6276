"""Label softmax and the two orders."""

import numpy as np
import pytest

from gram_fast.comparing.orders import check_orders, shown
from gram_fast.comparing.preference import preference
from gram_fast.errors import InputError


def softmax_a(logits: np.ndarray) -> float:
    e = np.exp(logits - logits.max())
    return float(e[0] / e.sum())


LOGITS = np.array([[2.0, 0.5], [-1.0, 1.5]], np.float32)  # a shown first; b shown first


def test_both_orders_are_averaged():
    result = preference(0, 1, LOGITS, "both")
    assert result.p_ab == pytest.approx(softmax_a(LOGITS[0]))
    assert result.p_ba == pytest.approx(1 - softmax_a(LOGITS[1]))
    assert result.p == pytest.approx((result.p_ab + result.p_ba) / 2)
    assert result.margin == pytest.approx((1.5 + 2.5) / 2)


def test_one_order_leaves_the_other_out():
    ab, ba = preference(3, 4, LOGITS[:1], "ab"), preference(3, 4, LOGITS[1:], "ba")
    assert (ab.i, ab.j, ab.p_ba, ba.p_ab) == (3, 4, None, None)
    assert ab.p == ab.p_ab == pytest.approx(softmax_a(LOGITS[0]))
    assert ba.p == ba.p_ba == pytest.approx(1 - softmax_a(LOGITS[1]))
    assert ba.margin == pytest.approx(2.5)


def test_shown_lists_slot_a_first():
    assert [shown(7, 8, orders) for orders in ("ab", "ba", "both")] == [[(7, 8)], [(8, 7)], [(7, 8), (8, 7)]]


def test_extreme_margins_do_not_overflow():
    result = preference(0, 1, np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32), "both")
    assert (result.p, result.p_ab, result.p_ba) == (1.0, 1.0, 1.0)


def test_unknown_orders_are_named():
    with pytest.raises(InputError, match="no orders 'aa': expected one of ab, ba, both"):
        check_orders("aa")
