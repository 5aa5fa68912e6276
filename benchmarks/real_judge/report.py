"""Tables and a picture of what finished trials measured."""

from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Record = dict[str, Any]

TITLES = {"dev": "AlpacaEval, other prompts", "rmbench": "RM-Bench, chat", "judgebench": "JudgeBench"}
METHODS = ("two stages", "stage 2", "scalar head")
_MEASURES = {
    "accuracy": "accuracy",
    "calibration_error": "calibration error",
    "log_loss": "log loss",
    "consistency": "same winner in both orders",
    "slot_a_share": "won in slot A",
    "longer_wins": "longer wins",
    "longer_is_chosen": "longer is better",
}
_LEVELS = ("easy", "normal", "hard")


def tables(records: Sequence[Record]) -> str:
    """Renders a Markdown table of each test set, and one of the training runs."""
    tested = [record for record in records if record["tests"]]
    parts = [_table_of(name, tested) for name in TITLES if any(name in record["tests"] for record in tested)]
    both = [record for record in tested if record["factored"]]
    return "\n\n".join([*parts, *([_modes(both), _groups(both)] if both else []), _training(records)])


def _table_of(name: str, records: Sequence[Record]) -> str:
    first = records[0]["tests"][name]
    levels = [level for level in _LEVELS if level in first]
    rows = []
    for record in records:
        read = {_label(record): record["tests"]}
        if record["factored"]:
            read[f"{_label(record)}, read factored"] = record["factored"]["tests"]
        for label, tests in read.items():
            values = tests[name]
            cells = [_number(values[key]) for key in (*_MEASURES, *levels)]
            cells[0] += f" ± {_standard_error(values):.3f}"
            rows.append([label, *cells])
    return f"{TITLES[name]}: {first['pairs']} pairs\n\n" + _markdown(["judge", *_MEASURES.values(), *levels], rows)


def _modes(records: Sequence[Record]) -> str:
    """Renders where the modes of judges of both differ, in all pairs and in the shorter and longer half of them."""
    rows = [
        [_label(record), TITLES[name], part, *(_number(values[key]) for key in ("full", "factored", "same_winner"))]
        for record in records
        for name, parts in record["factored"]["agreement"].items()
        for part, values in parts.items()
    ]
    return _markdown(["judge", "test", "pairs", "full", "factored", "same winner"], rows)


def _groups(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        values = record["factored"]["groups"]
        measured = (_number(values[key]) for key in ("same_first", "same_first_rejudged", "tau"))
        rows.append([_label(record), str(values["count"]), *measured])
    return _markdown(["judge", "groups", "same first", "same first, rejudged", "Kendall's tau"], rows)


def _training(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        if training := record["training"]:
            share = training["share_of_peak"]
            cells = [f"{training[key]:,.0f}" for key in ("tokens", "seconds", "tokens_a_second")]
            rows.append([_label(record), *cells, "" if share is None else f"{share:.1%}", f"{training['loss']:.3f}"])
    return _markdown(["training", "tokens", "seconds", "tokens a second", "share of peak", "loss"], rows)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(records: Sequence[Record], path: Path) -> None:
    """Plots accuracy on each test set over the number of labels, with standard errors, into an image file."""
    names = [name for name in TITLES if any(name in record["tests"] for record in records)]
    figure = Figure(figsize=(4 * len(names), 3.6), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for method in METHODS:
            points = sorted(
                (record["pairs"], record["tests"][name]["accuracy"], _standard_error(record["tests"][name]))
                for record in records
                if record["method"] == method and record["smoothing"] > 0 and not record["both_modes"]
                if name in record["tests"]
            )
            if points:
                labels, accuracies, errors = zip(*points, strict=True)
                axes.errorbar(labels, accuracies, errors, marker="o", capsize=3, label=method)
        for record in records:
            if record["method"] == "zero-shot":
                axes.axhline(record["tests"][name]["accuracy"], color="gray", linestyle="--", label="zero-shot")
        axes.axhline(0.5, color="gray", linewidth=0.8, linestyle=":")
        axes.set(xscale="log", xlabel="labeled pairs", title=TITLES[name])
        counts = sorted({record["pairs"] for record in records if record["method"] in METHODS})
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy")
    panels[0].legend()
    figure.savefig(path, dpi=120)


def _standard_error(values: dict[str, Any]) -> float:
    return sqrt(values["accuracy"] * (1 - values["accuracy"]) / values["pairs"])


def _label(record: Record) -> str:
    told = [record["method"]]
    told += [f"{record['pairs']:,} {'pairs' if record['method'] == 'stage 1' else 'labels'}"] if record["pairs"] else []
    told += [f"{record['epochs']} epochs"] if record["epochs"] > 1 else []
    told += [] if record["smoothing"] else ["no smoothing"]
    told += ["both modes"] if record["both_modes"] else []
    return ", ".join(told)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
