"""Ballots: counts against every case of a few votes, both verdicts, and when a majority is decided."""

import math
from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.special import expit, logit

from gram_fast.generating.ballots import Ballot
from gram_fast.generating.verdicts import NO_VERDICT, Verdict

LABELS = (0, 1, None)


def verdict(label: int | None) -> Verdict:
    return Verdict("because", label, None if label is None else 0, NO_VERDICT if label is None else None)


def cast(ballot: Ballot, order: str, label: int | None, margin: float | None = None) -> None:
    ballot.add(order, verdict(label), margin)


@pytest.mark.parametrize("labels", list(product(LABELS, repeat=4)))
def test_hard_verdict_is_the_majority_of_every_case(labels):
    """Two votes in each order: in order "ba" the first label is for j."""
    ballot = Ballot.of(3, 5, "both", 2, is_adaptive=False)
    for order, label in zip(("ab", "ab", "ba", "ba"), labels, strict=True):
        cast(ballot, order, label)
    wants_i = sum(label == 0 for label in labels[:2]) + sum(label == 1 for label in labels[2:])
    wants_j = sum(label == 1 for label in labels[:2]) + sum(label == 0 for label in labels[2:])
    found = ballot.preference("hard")
    assert (found.i, found.j) == (3, 5)
    assert (found.reasoning.for_i, found.reasoning.for_j, found.reasoning.invalid) == (
        wants_i,
        wants_j,
        labels.count(None),
    )
    assert (found.p > 0.5, found.p < 0.5) == (wants_i > wants_j, wants_i < wants_j)
    assert found.p == pytest.approx((wants_i + 0.5) / (wants_i + wants_j + 1))
    assert found.reasoning.soft is None
    assert math.copysign(1, found.margin) == math.copysign(1, found.p - 0.5) or found.margin == 0
    of_ab = [label for label in labels[:2] if label is not None]
    assert found.p_ab == pytest.approx((of_ab.count(0) + 0.5) / (len(of_ab) + 1))


def test_soft_verdict_is_the_mean_over_orders_of_the_mean_over_votes():
    ballot = Ballot.of(0, 1, "both", 3, is_adaptive=False)
    for order, label, margin in (("ab", 0, 2.0), ("ab", None, -1.0), ("ab", 1, 0.5), ("ba", 1, 3.0)):
        cast(ballot, order, label, margin)
    p_ab, p_ba = expit([2.0, -1.0, 0.5]).mean(), expit(-3.0)
    found = ballot.preference("soft")
    assert found.p_ab == pytest.approx(p_ab)
    assert found.p_ba == pytest.approx(p_ba)
    assert found.p == found.reasoning.soft == pytest.approx((p_ab + p_ba) / 2)
    assert found.margin == pytest.approx((0.5 - 3.0) / 2)
    assert [vote.p for vote in found.reasoning.votes] == pytest.approx([*expit([2.0, -1.0, 0.5]), p_ba])


@example([("ab", 1, 14.387773807909184), ("ba", 1, 14.387773807909184)])
@given(
    st.lists(st.tuples(st.sampled_from(("ab", "ba")), st.sampled_from(LABELS), st.floats(-50, 50)), min_size=1),
)
def test_the_soft_verdict_breaks_ties_and_turns_no_majority(votes):
    ballot = Ballot.of(0, 1, "both", len(votes), is_adaptive=False)
    for vote in votes:
        cast(ballot, *vote)
    found = ballot.preference("hard")
    lead = found.reasoning.for_i - found.reasoning.for_j
    if abs(lead) > 0:
        assert (found.p >= 0.5) == (lead > 0) or found.p == pytest.approx(0.5)
    elif found.reasoning.soft != 0.5:
        assert (found.p > 0.5) == (found.reasoning.soft > 0.5)
    assert 0 < found.p < 1
    assert found.margin == pytest.approx(logit(found.p), abs=1e-9) or found.p == 0.5


def test_votes_without_logits_leave_the_verdicts():
    ballot = Ballot.of(0, 1, "ab", 1, is_adaptive=False)
    cast(ballot, "ab", 0)
    assert ballot.preference("soft").p == 0.75
    assert ballot.preference("soft").p_ba is None


@pytest.mark.parametrize(("label", "p_ba"), [(None, 0.5), (1, 0.75), (0, 0.25)])
def test_an_order_without_logits_has_its_verdicts(label, p_ba):
    """Else p would be that of one order, with the bias to a slot that two orders are there to cancel."""
    ballot = Ballot.of(0, 1, "both", 1, is_adaptive=False)
    cast(ballot, "ab", 0, 3.0)
    cast(ballot, "ba", label)
    found = ballot.preference("soft")
    assert (found.p_ab, found.p_ba) == (pytest.approx(expit(3.0)), p_ba)
    assert found.p == pytest.approx((expit(3.0) + p_ba) / 2)
    assert found.margin == pytest.approx((3.0 + logit(p_ba)) / 2)
    assert found.reasoning.soft == pytest.approx(expit(3.0))


def test_a_verifier_is_shown_one_response():
    ballot = Ballot.of(2, 2, "both", 2, is_adaptive=False, verifies=True)
    assert ballot.shown("ab") == (2,)
    assert ballot.missing == {"ab": 2}
    cast(ballot, "ab", 0, 1.0)
    cast(ballot, "ab", 1, -2.0)
    assert ballot.preference("soft").p == pytest.approx(expit([1.0, -2.0]).mean())
    assert ballot.preference("soft").p_ba is None


@pytest.mark.parametrize("orders", ["ab", "ba", "both"])
@pytest.mark.parametrize("votes", [1, 2, 3, 8])
@given(data=st.data())
def test_adaptive_votes_have_the_majority_of_all(orders, votes, data):
    """Both ballots read the same stream of verdicts in each order; the adaptive one stops when nothing can change."""
    streams = {
        order: data.draw(st.lists(st.sampled_from(LABELS), min_size=votes, max_size=votes)) for order in ("ab", "ba")
    }
    majority = []
    for is_adaptive in (False, True):
        ballot = Ballot.of(0, 1, orders, votes, is_adaptive)
        while missing := ballot.missing:
            for order, count in missing.items():
                begin = ballot.drawn(order)
                for label in streams[order][begin : begin + count]:
                    cast(ballot, order, label)
            counts = [ballot.drawn(order) for order in ballot.orders]
            assert max(counts) - min(counts) <= 1
        assert len(ballot.votes) <= ballot.total
        lead = ballot.count(True) - ballot.count(False)
        left = ballot.total - len(ballot.votes)
        assert left == 0 or (is_adaptive and abs(lead) > left)
        majority.append((lead > 0) - (lead < 0))
    assert majority[0] == majority[1]


def test_adaptive_voting_draws_no_vote_that_could_not_decide():
    ballot = Ballot.of(0, 1, "both", 8, is_adaptive=True)
    assert ballot.missing == {"ab": 5, "ba": 4}
    for order, count in ballot.missing.items():
        for _ in range(count):
            cast(ballot, order, 0 if order == "ab" else 1)
    assert ballot.missing == {}
