"""The parts of a judge over one model that benchmarks measure: its comparer, and what its calls cost."""

from gram_fast import ForwardStats, PairwiseJudge, Stats
from gram_fast.comparing.label_comparer import LabelComparer


def comparer_of(judge: PairwiseJudge) -> LabelComparer:
    """The comparer of a judge on one device."""
    assert isinstance(judge.comparer, LabelComparer)
    return judge.comparer


def forward_stats(stats: Stats) -> ForwardStats:
    """What a call of such a judge cost."""
    assert isinstance(stats, ForwardStats)
    return stats
