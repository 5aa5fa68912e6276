"""Tables and a picture of the benchmark's results."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from benchmarks.reasoning.inputs import TESTS
from benchmarks.reasoning.measures import VOTES
from benchmarks.reasoning.run import JUDGES

Results = Sequence[dict[str, Any]]


def tables(results: Results) -> str:
    """Renders accuracies by judge, test and number of votes, and what rationales are worth, as Markdown."""
    columns = [f"{kind}@{votes}" for kind in ("soft", "hard") for votes in VOTES]
    lines = ["| judge | test | " + " | ".join(columns) + " |", "|---" * (2 + len(columns)) + "|"]
    for judge in JUDGES:
        for test, name in TESTS.items():
            cells = [spread(_values(results, judge, test, column)) for column in columns]
            lines.append(f"| {judge} | {name} | " + " | ".join(cells) + " |")
    lines += ["", "| judge | test | whole rationale right | conclusion right | without a verdict |", "|---" * 5 + "|"]
    for judge in JUDGES:
        if judge == "direct":
            continue
        for test, name in TESTS.items():
            some = [r[test] for r in results if r["judge"] == judge]
            whole, concluded = [s["rationale"] for s in some], [s["claims"]["conclusion"] for s in some]
            invalid = [1 - s["problems"].get("valid", 0) / sum(s["problems"].values()) for s in some]
            lines.append(f"| {judge} | {name} | {spread(whole)} | {spread(concluded)} | {spread(invalid)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Formats mean and standard deviation."""
    if not values:
        return "-"
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{mean(values):.3f}"


def plot(results: Results, path: Path) -> None:
    """Plots accuracy over votes into an image file: soft verdicts in full lines, hard ones in broken lines."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = figure.subplots(1, len(TESTS), sharey=True)
    for axes, (test, title) in zip(panels, TESTS.items(), strict=True):
        for number, judge in enumerate(JUDGES):
            if judge == "direct":
                axes.axhline(mean(_values(results, judge, test, "soft@1")), color="C0", linestyle="-.", label=judge)
                continue
            for kind, style in (("soft", "-"), ("hard", "--")):
                points = [mean(_values(results, judge, test, f"{kind}@{votes}")) for votes in VOTES]
                label = judge if kind == "soft" else None
                axes.plot(VOTES, points, color=f"C{number}", linestyle=style, marker="o", label=label)
        axes.set(xscale="log", xticks=VOTES, xticklabels=VOTES, xlabel="votes an order", title=title)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy")
    panels[0].legend()
    figure.savefig(path, dpi=120)


def _values(results: Results, judge: str, test: str, column: str) -> list[float]:
    """A column of a judge's results, one a seed; the direct judge's only accuracy stands in each."""
    of_judge = [r[test] for r in results if r["judge"] == judge]
    return [found["accuracy" if judge == "direct" else column] for found in of_judge]
