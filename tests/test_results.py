"""What calls cost, added up."""

from gram_fast.results import ForwardStats, Stats, total_stats


def forward_stats(factor: int, seconds: float) -> ForwardStats:
    return ForwardStats(
        comparisons=2 * factor,
        seconds=seconds,
        tokens_unshared=300 * factor,
        tokens_tree=50 * factor,
        tokens_computed=60 * factor,
        passes=7 * factor,
    )


def test_totals_are_sums_of_counts_over_the_time_of_all():
    assert total_stats([forward_stats(1, 0.5), forward_stats(10, 0.75)], 0.8) == forward_stats(11, 0.8)
    parts = [Stats(comparisons=3, seconds=1.0), Stats(comparisons=4, seconds=2.0), Stats(comparisons=0, seconds=0.0)]
    assert total_stats(parts, 2.5) == Stats(comparisons=7, seconds=2.5)


def test_the_total_of_one_keeps_its_counts():
    assert total_stats([forward_stats(3, 0.5)], 0.6) == forward_stats(3, 0.6)
