"""What is prefix sharing worth? gram_fast against forwards of whole sequences, in one run, on the same model and pairs.

    python -m benchmarks.sharing --model DIR --data FILE [--repeats 3]

Two rivals of benchmarks/scorer/rivals.py:

(a) `loop`, as in GRAM's evaluation script: the two orders of a pair as one left-padded batch, vocabulary logits of
    every position;
(b) `padded`: batches sorted by length, logits of the last token only, the best of batch sizes 1, 4 and 8.

FILE is RM-Bench's JSON (prompt, chosen, rejected) or JSON lines with prompt and responses. A group that is larger than
a prompt's own is filled up with the responses to the prompts after it. Efficiency = (time ratio to b) / (token ratio):
1 means that a token costs gram_fast as much as it costs rival (b). Prints a table and ends with one line of JSON.
"""

import argparse
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

import gram_fast
from benchmarks.environment import environment
from benchmarks.groups import read_groups
from benchmarks.parts import comparer_of, forward_stats
from benchmarks.scorer.rivals import TextPresentations, in_orders, rivals_of
from benchmarks.timing import timed
from gram_fast.ranking.tournament import find_strategy
from gram_fast.text.group import Group

ROWS = (("reference", 32), ("round_robin", 6), ("round_robin", 16))
BATCH_SIZES = (1, 4, 8)


def presentations_of(prompt: str, responses: list[str], strategy: str) -> TextPresentations:
    """Lists what a strategy of one round shows the model, every pair in both orders."""
    group = Group.of(prompt, responses)
    rounds = find_strategy(strategy).start(len(group.texts), None)  # type: ignore[arg-type]
    return in_orders([(prompt, group.texts[i], group.texts[j]) for i, j in next(rounds)], "both")


def measure(
    judge: gram_fast.PairwiseJudge, prompt: str, responses: list[str], strategy: str, repeats: int
) -> dict[str, Any]:
    """Measures ours and both rivals on one group -> a row of the record.

    The first repeat runs everything; the others run ours and rival (b) with its best batch size, in turns.
    """
    rivals, presentations = rivals_of(judge), presentations_of(prompt, responses, strategy)
    ranking = judge.rank(prompt, responses, strategy)
    rank = partial(judge.rank, prompt, responses, strategy)
    seconds_a, _ = timed(lambda: rivals.loop(presentations, 2))
    first_b = {size: timed(partial(rivals.padded, presentations, size))[0] for size in BATCH_SIZES}
    best_size = min(first_b, key=first_b.__getitem__)
    ours, seconds_b = [timed(rank)[0]], [first_b[best_size]]
    for _ in range(repeats - 1):
        ours.append(timed(rank)[0])
        seconds_b.append(timed(partial(rivals.padded, presentations, best_size))[0])
    plain = rivals.padded(presentations, 1).logits_P2
    p_ab = torch.sigmoid(plain[0::2, 0] - plain[0::2, 1]).tolist()
    worst = max(abs(c.p_ab - p) for c, p in zip(ranking.comparisons, p_ab, strict=True))  # type: ignore[operator]
    stats = forward_stats(ranking.stats)
    token_ratio = stats.tokens_unshared / stats.tokens_computed
    time_ours, time_b = statistics.median(ours), statistics.median(seconds_b)
    time_ratio = time_b / time_ours
    return {
        "strategy": strategy,
        "n": len(responses),
        "comparisons": stats.comparisons,
        "tokens_unshared": stats.tokens_unshared,
        "tokens_computed": stats.tokens_computed,
        "token_ratio": token_ratio,
        "seconds": time_ours,
        "seconds_a": seconds_a,
        "seconds_b": time_b,
        "batch_size_b": best_size,
        "time_ratio_a": seconds_a / time_ours,
        "time_ratio_b": time_ratio,
        "efficiency": time_ratio / token_ratio,
        "max_difference_p": worst,
    }


def main() -> None:
    """Measures groups of several sizes, and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    judge = gram_fast.PairwiseJudge.from_pretrained(arguments.model, runner="transformers")
    groups = read_groups(arguments.data)
    pool = [response for _, responses in groups for response in responses]
    console = Console(width=150)
    rows = []
    for strategy, count in ROWS:
        rows.append(measure(judge, groups[0][0], pool[:count], strategy, arguments.repeats))
        console.print(f"measured {strategy}, n = {count}", style="dim")
    table = Table(title=f"Both orders; median seconds of {arguments.repeats}, loop (a) once")
    columns = ("strategy", "n", "forwards", "tokens", "computed", "token ratio", "ours", "loop (a)", "padded (b)")
    for column in (*columns, "time ratio a", "time ratio b", "efficiency"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["strategy"],
            str(row["n"]),
            str(row["comparisons"]),
            f"{row['tokens_unshared']:,}",
            f"{row['tokens_computed']:,}",
            f"{row['token_ratio']:.2f}",
            f"{row['seconds']:.2f}",
            f"{row['seconds_a']:.2f}",
            f"{row['seconds_b']:.2f} (batch {row['batch_size_b']})",
            f"{row['time_ratio_a']:.2f}",
            f"{row['time_ratio_b']:.2f}",
            f"{row['efficiency']:.2f}",
        )
    console.print(table)
    record = environment() | {
        "benchmark": "sharing",
        "threads": torch.get_num_threads(),
        "dtype": str(comparer_of(judge).runner.dtype),
        "transformers": transformers.__version__,
        "rows": rows,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
