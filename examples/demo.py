"""Ranks the example candidates with the small judge and prints one table per prompt.

python examples/demo.py [MODEL]
"""

import json
import sys
from pathlib import Path

from rich.console import Console
from transformers.utils import logging

import gram_fast
from gram_fast.commands.tables import ranking_table

CANDIDATES = Path(__file__).with_name("candidates.jsonl")


def main() -> None:
    """Loads the judge, ranks the candidates of each row and prints the tables."""
    logging.disable_progress_bar()
    console = Console()
    judge = gram_fast.PairwiseJudge.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else gram_fast.SMALL_JUDGE)
    for row in map(json.loads, CANDIDATES.read_text("utf-8").splitlines()):
        ranking = judge.rank(row["prompt"], row["responses"])
        prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        console.print(ranking_table(prompt, row["responses"], ranking), "")


if __name__ == "__main__":
    main()
