"""Gives benchmarks typed access to the parts of a judge that runs on one device."""

from gram_fast import ForwardStats, PairwiseJudge, Stats
from gram_fast.comparing.label_comparer import LabelComparer


def comparer_of(judge: PairwiseJudge) -> LabelComparer:
    """Returns the judge's comparer, which has the runner and the tokenizer."""
    assert isinstance(judge.comparer, LabelComparer)
    return judge.comparer


def forward_stats(stats: Stats) -> ForwardStats:
    """Returns the counts of passes and tokens that came with a result of such a judge."""
    assert isinstance(stats, ForwardStats)
    return stats
