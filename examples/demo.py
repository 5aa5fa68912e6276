"""Ranks the example candidates with the small judge and prints one table per prompt.

python examples/demo.py [MODEL]
"""

import json
import sys
from itertools import zip_longest
from pathlib import Path
from textwrap import shorten
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers.utils import logging

import gram_fast

CANDIDATES = Path(__file__).with_name("candidates.jsonl")


def ranking_table(row: dict[str, Any], ranking: gram_fast.Ranking) -> Table:
    """Makes the table of one row's ranking, best first, with its cost as the caption."""
    prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
    stats = ranking.stats
    assert isinstance(stats, gram_fast.ForwardStats)
    table = Table(
        title=shorten(prompt, 78, placeholder="…"), title_justify="left", title_style="bold", caption_justify="left"
    )
    table.caption = (
        f"{stats.comparisons} comparisons, {stats.tokens_unshared:,} tokens without sharing, "
        f"{stats.tokens_computed:,} computed, {stats.seconds:.2f} seconds"
    )
    for column in ("rank", "win rate", "p over next"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("response", no_wrap=True)
    p_over = {(c.i, c.j): c.p for c in ranking.comparisons} | {(c.j, c.i): 1 - c.p for c in ranking.comparisons}
    for place, (candidate, following) in enumerate(zip_longest(ranking.order, ranking.order[1:]), start=1):
        p = p_over.get((candidate, following))
        response = shorten(row["responses"][candidate], 44, placeholder="…")
        table.add_row(str(place), f"{ranking.scores[candidate]:.3f}", "" if p is None else f"{p:.3f}", response)
    return table


def main() -> None:
    """Loads the judge, ranks the candidates of each row and prints the tables."""
    logging.disable_progress_bar()
    console = Console()
    judge = gram_fast.PairwiseJudge.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else gram_fast.SMALL_JUDGE)
    for row in map(json.loads, CANDIDATES.read_text("utf-8").splitlines()):
        console.print(ranking_table(row, judge.rank(row["prompt"], row["responses"])), "")


if __name__ == "__main__":
    main()
