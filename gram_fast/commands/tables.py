"""Tables of results for a terminal, one a row of the input, best response first."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from rich.table import Table
from rich.text import Text

from gram_fast.results import Comparison, ForwardStats, Ranking, ReasoningStats, Selection, Stats, Verification

# Most characters of a prompt, and of a response, which the terminal's width cuts further.
_PROMPT, _RESPONSE = 78, 200


def result_table(prompt: str, responses: Sequence[str], result: Any, rows: int = 1, places: int | None = None) -> Table:
    """Makes the table of a Comparison, Ranking, Selection or Verification.

    `rows`: of the input, that share the result's stats. `places`: of a ranking, that are shown; None for all.
    """
    if isinstance(result, Ranking):
        return ranking_table(prompt, responses, result, rows, places)
    if isinstance(result, Verification):
        columns, p = ["P(right)"], result.p
        order = sorted(range(len(p)), key=lambda candidate: -p[candidate])
        values = [[f"{value:.3f}"] for value in p]
    elif isinstance(result, Selection):
        columns, scores = ["best", "score"], result.scores
        order = sorted(range(len(scores)), key=lambda candidate: (candidate != result.index, -scores[candidate]))
        values = [["*" if k == result.index else "", f"{score:.3f}"] for k, score in enumerate(scores)]
    else:
        assert isinstance(result, Comparison)
        columns, order = ["P(better)"], [0, 1] if result.p >= 0.5 else [1, 0]
        values = [[f"{result.p:.3f}"], [f"{1 - result.p:.3f}"]]
    table = _table(prompt, columns, result.stats, rows)
    for candidate in order:
        table.add_row(*values[candidate], _line(responses[candidate], _RESPONSE))
    return table


def ranking_table(
    prompt: str, responses: Sequence[str], ranking: Ranking, rows: int = 1, places: int | None = None
) -> Table:
    """Makes the table of a ranking; arguments as for `result_table`."""
    table = _table(prompt, ["rank", "score", "p over next"], ranking.stats, rows)
    p_over = {(c.i, c.j): c.p for c in ranking.comparisons} | {(c.j, c.i): 1 - c.p for c in ranking.comparisons}
    shown = list(zip_longest(ranking.order, ranking.order[1:]))[:places]
    for place, (candidate, following) in enumerate(shown, start=1):
        p = p_over.get((candidate, following))
        numbers = str(place), f"{ranking.scores[candidate]:.3f}", "" if p is None else f"{p:.3f}"
        table.add_row(*numbers, _line(responses[candidate], _RESPONSE))
    if rest := len(ranking.order) - len(shown):
        table.add_row("", "", "", f"and {rest} more")
    return table


def _table(prompt: str, columns: Sequence[str], stats: Stats, rows: int) -> Table:
    caption = f"{stats.comparisons} comparisons"
    if isinstance(stats, ReasoningStats):
        caption += f", {stats.votes} votes, {stats.invalid_votes} invalid, {stats.tokens_generated:,} tokens written"
    elif isinstance(stats, ForwardStats):
        caption += f", {stats.tokens_unshared:,} tokens without sharing, {stats.tokens_computed:,} computed"
    caption += f", {stats.seconds:.2f} seconds" + (f", for {rows} rows together" if rows > 1 else "")
    title = _line(prompt, _PROMPT)
    table = Table(title=title, title_justify="left", title_style="bold", caption=caption, caption_justify="left")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("response", no_wrap=True, overflow="ellipsis")
    return table


def _line(text: str, most: int) -> Text:
    """A text on one line, as it is, cut to `most` characters."""
    line = " ".join(text[: 4 * most].split())
    return Text(line if len(line) <= most else line[: most - 1] + "…")
