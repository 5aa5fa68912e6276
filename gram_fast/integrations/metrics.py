"""What a training run logs of its judge."""

from gram_fast import ForwardStats, Rewards

TIE = 0.01
"""Distance of p from one half up to which a pair counts as a tie."""


def metrics(rewards: Rewards) -> dict[str, float]:
    """Metrics of a call of `PairwiseJudge.rewards`, by name.

    - position_consistency: share of pairs whose winner is the same in both orders, 0 to 1; a judge that always prefers
      the first response has 0. Absent where no pair was judged in both orders.
    - ties: share of pairs with |p - 1/2| <= 0.01. Absent where no pair was judged.
    - unjudged: share of candidates without a reward, 0 to 1.
    - comparisons: presentations that were judged.
    - seconds: wall time of the call.
    - tokens_saved: share of tokens that were shared and so not computed, 0 to 1. Absent where a judge counts none.
    """
    values = [value for group in rewards for value in group]
    pairs = [pair for group in rewards.comparisons for pair in group]
    both = [(pair.p_ab, pair.p_ba) for pair in pairs if pair.p_ab is not None and pair.p_ba is not None]
    found = {
        "unjudged": _share([value is None for value in values]),
        "comparisons": float(rewards.stats.comparisons),
        "seconds": rewards.stats.seconds,
    }
    if pairs:
        found["ties"] = _share([abs(pair.p - 0.5) <= TIE for pair in pairs])
    if both:
        found["position_consistency"] = _share([(p_ab - 0.5) * (p_ba - 0.5) > 0 for p_ab, p_ba in both])
    if isinstance(rewards.stats, ForwardStats) and rewards.stats.tokens_unshared:
        found["tokens_saved"] = 1 - rewards.stats.tokens_computed / rewards.stats.tokens_unshared
    return found


def _share(truths: list[bool]) -> float:
    return sum(truths) / len(truths) if truths else 0.0
