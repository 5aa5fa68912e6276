"""What the rounds of self-training came to: report.json of each, a picture over all, and a table."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

Report = dict[str, Any]
"""Of a round, JSON values: "round", its counts, "accuracy". Round 0 is the first judge, of which only "evaluated" is
known."""


def accuracy_of(rows: Sequence[tuple[str, float | None]]) -> dict[str, Any]:
    """Summarises held-out pairs: (label, P(A better), None of a pair that could not be judged) each.

    `accuracy` is the share of judged pairs whose better response has more than a half; None where none was judged.
    """
    judged = [(label, p) for label, p in rows if p is not None]
    right = sum(p > 0.5 if label == "A" else p < 0.5 for label, p in judged)
    accuracy = right / len(judged) if judged else None
    return {"pairs": len(rows), "judged": len(judged), "right": right, "accuracy": accuracy}


def share(part: int, whole: int) -> float | None:
    """A share, or None of nothing."""
    return part / whole if whole else None


def report_table(reports: Sequence[Report]) -> Table:
    """The table that is printed: a row a round; `missing_lines` has the reasons for which pairs are missing."""
    table = Table(title="self-training", box=None, title_justify="left")
    for name in ("round", "pairs", "kept", "rationales", "trained on", "agreement", "accuracy", "of"):
        table.add_column(name, justify="right", no_wrap=True)
    for report in reports:
        evaluated, of_round = report["evaluated"], [""] * 5
        if report["round"]:
            of_round = [str(report[name]) for name in ("pairs", "kept", "rationales")]
            of_round += [str(report["trained_on"]["pairs"]), _percent(report["agreement"]["share"])]
        table.add_row(str(report["round"]), *of_round, _percent(evaluated["accuracy"]), str(evaluated["judged"]))
    return table


def missing_lines(reports: Sequence[Report]) -> Iterator[str]:
    """Says of each round which pairs are missing, by reason, and how many held-out answers have no verdict."""
    for report in reports:
        if invalid := report["evaluated"]["invalid"]:
            answers = report["evaluated"]["answers"]
            yield f"round {report['round']}, held-out pairs: {invalid} of {answers} answers have no verdict"
        if report["round"] == 0:
            continue
        reasons = {
            "dropped": report["dropped"],
            "no proof": report["proofs"]["unproved"],
            "left out of the training": report["trained_on"]["left_out"],
        }
        for what, by_reason in reasons.items():
            if by_reason:
                counts = ", ".join(f"{count} {reason}" for reason, count in by_reason.items())
                yield f"round {report['round']}, {what}: {counts}"


def draw_report(reports: Sequence[Report]) -> bytes:
    """Draws kept and dropped pairs by reason, agreement with labels and held-out accuracy over rounds -> a PNG."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    bars, lines = figure.subplots(1, 2)
    rounds = [report for report in reports if report["round"] > 0]
    numbers = [report["round"] for report in rounds]
    counts = {"with a rationale": [report["rationales"] for report in rounds]}
    for reason in sorted({reason for report in rounds for reason in report["dropped"]}):
        counts[f"dropped: {reason}"] = [report["dropped"].get(reason, 0) for report in rounds]
    counts["kept, no usable proof"] = [report["kept"] - report["rationales"] for report in rounds]
    bottom = [0] * len(rounds)
    for name, values in counts.items():
        if any(values):
            bars.bar(numbers, values, bottom=bottom, label=name)
            bottom = [low + value for low, value in zip(bottom, values, strict=True)]
    bars.set(xlabel="round", ylabel="pairs", xticks=numbers)
    if bars.patches:
        bars.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    accuracy = [(report["round"], report["evaluated"]["accuracy"]) for report in reports]
    agreement = [(report["round"], report["agreement"]["share"]) for report in rounds]
    for name, points in (("held-out accuracy", accuracy), ("agreement with labels", agreement)):
        known = [point for point in points if point[1] is not None]
        if known:
            lines.plot(*zip(*known, strict=True), marker="o", label=name)
    lines.set(xlabel="round", ylim=(0, 1), xticks=[report["round"] for report in reports])
    lines.grid(alpha=0.3)
    if lines.lines:
        lines.legend()
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=120)
    return written.getvalue()


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
