"""Prints and draws the results of benchmarks/scorer/run.py.

A row is the measurement of one contender on one workload; the rows of a workload stand together.
"""

from collections.abc import Container, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

Row = dict[str, Any]


def title_of(row: Row) -> str:
    """Describes a row's workload in one line."""
    spread = "" if row["spread"] is None else f"; plain preferences {row['spread']:.1e} apart"
    return (
        f"{row['workload']}: {row['forwards']:,} forwards of {row['tokens_unshared']:,} tokens, "
        f"{row['tokens_tree']:,} in the tree, floor {row['floor_seconds']:.4g} s{spread}"
    )


def table_of(rows: Sequence[Row]) -> Table:
    """Makes the table of one workload's rows."""
    table = Table()
    for column in ("by", "seconds", "of floor", "times ours", "tokens", "GiB", "difference", "how"):
        table.add_column(column, justify="left" if column in ("by", "how") else "right")
    for row in rows:
        how = [f"size {row['size']}"] if row["size"] else []
        how += ["extrapolated"] if row["extrapolated"] else [f"{row['runs']} runs" if row["runs"] > 1 else "once"]
        table.add_row(
            row["name"],
            f"{row['seconds']:.4g}",
            f"{row['share_of_floor']:.0%}",
            f"{row['times_ours']:.2f}",
            f"{row['tokens']:,}",
            f"{row['peak_bytes'] / 2**30:.1f}" if row["peak_bytes"] else "",
            "" if row["difference"] is None else f"{row['difference']:.1e}",
            ", ".join(how),
        )
    return table


def headline(rows: Sequence[Row], ours: Container[str]) -> str:
    """Says in one line what ours, the first row of a workload, takes, and how much longer the best rival does."""
    first, *others = rows
    floors = first["seconds"] / first["floor_seconds"]
    line = f"{first['workload']}: {first['name']} {first['seconds']:.4g} s, {floors:.2f} times the floor"
    rivals = [row for row in others if row["name"] not in ours]
    if not rivals:
        return line
    best = min(rivals, key=itemgetter("seconds"))
    return f"{line}; the best rival, {best['name']}, takes {best['times_ours']:.2f} times as long"


def curves(rows: Sequence[Row]) -> dict[str, dict[str, dict[int, float]]]:
    """Sorts seconds into strategy -> contender or "floor" -> n, for the strategies that were measured at several n."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    floors: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row["strategy"], {}).setdefault(row["name"], {})[row["n"]] = row["seconds"]
        floors.setdefault(row["strategy"], {})[row["n"]] = row["floor_seconds"]
    return {strategy: found[strategy] | {"floor": floor} for strategy, floor in floors.items() if len(floor) > 1}


def growth_table(strategy: str, lines: dict[str, dict[int, float]]) -> Table:
    """Makes the table of seconds by n, with the power of n at which they grow between the two largest n."""
    ns = sorted(lines["floor"])
    table = Table(title=f"growth with n: seconds, {strategy}", title_justify="left")
    for column in ("by", *(f"n = {n}" for n in ns), "power of n at the end"):
        table.add_column(column, justify="left" if column == "by" else "right")
    for name, line in lines.items():
        has_ends = ns[-2] in line and ns[-1] in line
        power = f"{np.log(line[ns[-1]] / line[ns[-2]]) / np.log(ns[-1] / ns[-2]):.2f}" if has_ends else ""
        table.add_row(name, *(f"{line[n]:.4g}" if n in line else "" for n in ns), power)
    return table


def plot(rows: Sequence[Row], path: Path) -> None:
    """Plots seconds against n into an image file, one panel for each strategy."""
    from matplotlib.figure import Figure  # comes with the extra "train", which nothing else here needs

    found = curves(rows)
    figure = Figure(figsize=(5.2 * max(len(found), 1), 4), layout="constrained")
    panels = figure.subplots(1, max(len(found), 1), sharey=True, squeeze=False)[0]
    for axes, (strategy, lines) in zip(panels, found.items(), strict=True):
        for name, line in lines.items():
            is_floor = name == "floor"
            style = {"color": "gray", "linestyle": "--"} if is_floor else {"marker": "o", "markersize": 4}
            axes.plot(*zip(*sorted(line.items()), strict=True), label=name, **style)
        axes.set(xscale="log", yscale="log", xlabel="candidates n", title=strategy)
        ns = sorted(lines["floor"])
        axes.set_xticks(ns, [str(n) for n in ns])
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("seconds")
    panels[0].legend()
    figure.savefig(path, dpi=120)
