"""Summary of one result file: counts, the benchmark's scores by every definition, calibration and biases."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gram_fast.errors import InputError
from gram_fast.evaluation.calibration import Calibration, calibration
from gram_fast.evaluation.rows import Benchmark, Definition, Result, split_items


@dataclass(frozen=True)
class Summary:
    """All numbers about one result file; shares are in [0, 1]."""

    benchmark: str
    run: dict[str, Any] | None
    """Settings of the judge, if the file records them."""
    pairs: int
    """Number of pairs from which the scores are computed."""
    ties: int
    """Number of these pairs without a winner; no definition counts one as correct."""
    groups: dict[str, int]
    """Number of these pairs by group."""
    published: dict[str, int]
    """Number of pairs by group in the published set."""
    missing: int
    """Number of pairs of the published set that are absent."""
    left_out: list[str]
    """First place in the file of every item that lacks a pair or has one twice; its pairs are not counted."""
    skipped: list[str]
    """Errors of the data rows that were skipped; known after a run, not from a result file."""
    gram_printout: str
    """Output of GRAM's own script for the same pairs."""
    definitions: list[Definition]
    calibration: Calibration


def summarize(benchmark: Benchmark, results: Sequence[Result], skipped: Sequence[str] = ()) -> Summary:
    """Summarizes one or more results. Raises InputError when no item has all its pairs."""
    whole, parts = split_items(benchmark, results)
    if not whole:
        raise InputError(
            f"{results[0].where}: expected at least one item with each of the pairs {', '.join(benchmark.CELLS)}"
        )
    run = whole[0].fields.get("run")
    groups = dict(Counter(result.place.group for result in whole))
    published = benchmark.published(whole)
    return Summary(
        benchmark=benchmark.NAME,
        run=run if isinstance(run, dict) else None,
        pairs=len(whole),
        ties=sum(result.verdict == 0 for result in whole),
        groups=groups,
        published=published,
        missing=sum(max(0, count - groups.get(group, 0)) for group, count in published.items()),
        left_out=[part[0].where for part in parts],
        skipped=list(skipped),
        gram_printout="\n".join(benchmark.gram_lines(whole)),
        definitions=benchmark.definitions(whole),
        calibration=calibration(benchmark, whole),
    )


def render(summary: Summary) -> str:
    """Renders a summary as text for the terminal."""
    return "\n".join(_lines(summary))


def _lines(summary: Summary) -> Iterator[str]:
    yield f"{summary.benchmark}: {summary.pairs} pairs, {summary.ties} of them tied"
    if summary.run is not None:
        yield "  " + ", ".join(f"{name} {value}" for name, value in summary.run.items())
    for group in {**summary.published, **summary.groups}:
        of = f" of {summary.published[group]} published" if group in summary.published else ""
        yield f"  {group}: {summary.groups.get(group, 0)}{of}"
    if summary.missing:
        yield f"  MISSING: {summary.missing} pairs of the published set; all numbers are of the pairs that are there"
    if summary.left_out:
        yield f"  LEFT OUT: {len(summary.left_out)} items that lack a pair, first at {summary.left_out[0]}"
    if summary.skipped:
        yield f"  SKIPPED: {len(summary.skipped)} rows of the data, first {summary.skipped[0]}"
    yield ""
    yield "What GRAM's own script prints"
    yield summary.gram_printout
    for definition in summary.definitions:
        yield ""
        yield f"{definition.name}: {definition.meaning}"
        yield from _table(definition.values)
    position, length = summary.calibration.position, summary.calibration.length
    yield ""
    yield "Reliability: confidence is the higher of the two scores, accuracy counts a tie half"
    yield "  confidence      pairs  mean    accuracy"
    for b in summary.calibration.reliability:
        yield f"  {b.low:.2f} to {b.high:.2f} {b.pairs:8d}  {b.confidence:.4f}  {b.accuracy:.4f}"
    yield from _table({"expected calibration error": summary.calibration.expected_calibration_error})
    yield ""
    yield "Position"
    yield from _table(
        {
            "same winner in both orders": position.consistency,
            "games won by slot A (0.5: no bias)": position.slot_a_share,
        }
    )
    yield ""
    yield "Length, in characters"
    yield from _table(
        {
            f"accuracy, chosen longer (pairs: {length.chosen_longer})": length.accuracy_chosen_longer,
            f"accuracy, chosen shorter (pairs: {length.chosen_shorter})": length.accuracy_chosen_shorter,
            "the longer response wins": length.longer_wins,
            "the longer response is the chosen one": length.longer_is_chosen,
        }
    )


def _table(values: dict[str, float | None]) -> Iterator[str]:
    width = max(map(len, values))
    for name, value in values.items():
        yield f"  {name:<{width}}  {'not known from this file' if value is None else f'{value:.4f}'}"
