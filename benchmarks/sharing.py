"""What is prefix sharing worth? gram_fast against forwards of whole pairs, in one run, on the same model and pairs.

    python -m benchmarks.sharing --model DIR --data FILE [--repeats 3]

Rivals:
(a) the loop of GRAM's evaluation script: the two orders of a pair as one left-padded batch, vocabulary logits of every
    position;
(b) padded batches sorted by length, logits of the last token only, the best of batch sizes 1, 4 and 8.

FILE is RM-Bench's JSON (prompt, chosen, rejected) or JSON lines with prompt and responses. Larger groups than a prompt
has are filled up with the responses to the prompts after it. Efficiency = (time ratio to b) / (token ratio): 1 means
that a token costs here what it costs the padded rival. Prints a table and ends with one line of JSON.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

import gram_fast
from benchmarks.groups import read_groups
from benchmarks.parts import comparer_of, forward_stats
from gram_fast.ranking.tournament import find_strategy
from gram_fast.text.group import Group

ROWS = (("reference", 32), ("round_robin", 6), ("round_robin", 16))
BATCH_SIZES = (1, 4, 8)
Pairs = list[tuple[str, str, str]]


def pairs_of(prompt: str, responses: list[str], strategy: str) -> Pairs:
    """(prompt, A, B) of every forward that a strategy of one round asks for, both orders, A before B."""
    group = Group.of(prompt, responses)
    rounds = find_strategy(strategy).play(len(group.texts), None)  # type: ignore[arg-type]
    return [(prompt, group.texts[a], group.texts[b]) for i, j in next(rounds) for a, b in ((i, j), (j, i))]


class Rival:
    """Plain forwards of whole pairs through the judge's own model."""

    def __init__(self, judge: gram_fast.PairwiseJudge, pairs: Pairs) -> None:
        comparer = comparer_of(judge)
        self.runner, self.pairs, self.tokenizer = comparer.runner, pairs, comparer.tokenizer

    def forward(self, ids: list[list[int]], **options: Any) -> torch.Tensor:
        """Label logits [batch, 2] of left-padded sequences."""
        length = max(map(len, ids))
        padded = torch.tensor([[0] * (length - len(row)) + row for row in ids])
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in ids])
        model: Any = self.runner.model
        # Without padding no mask: the faster causal path, as any rival would take.
        attention_mask = None if bool(mask.all()) else mask.to(model.device)
        with torch.inference_mode():
            logits = model(
                input_ids=padded.to(model.device),
                attention_mask=attention_mask,
                use_cache=False,
                **options,
            ).logits
        return torch.as_tensor(logits[:, -1, list(self.tokenizer.label_ids)].float().cpu())

    def gram_loop(self) -> torch.Tensor:
        """Rival (a)."""
        logits = []
        for first in range(0, len(self.pairs), 2):
            ids = [row.tolist() for row in self.tokenizer.whole_ids(self.pairs[first : first + 2])]
            logits.append(self.forward(ids))
        return torch.cat(logits)

    def padded_batches(self, batch_size: int) -> torch.Tensor:
        """Rival (b)."""
        ids = [row.tolist() for row in self.tokenizer.whole_ids(self.pairs)]
        by_length = sorted(range(len(ids)), key=lambda k: len(ids[k]))
        logits = torch.empty(len(ids), 2)
        for first in range(0, len(ids), batch_size):
            batch = by_length[first : first + batch_size]
            logits[batch] = self.forward([ids[k] for k in batch], logits_to_keep=1)
        return logits


def seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure(
    judge: gram_fast.PairwiseJudge, prompt: str, responses: list[str], strategy: str, repeats: int
) -> dict[str, Any]:
    """One row. The first repeat runs everything; the others ours and the best batch size, in turns."""
    rival = Rival(judge, pairs_of(prompt, responses, strategy))
    ranking = judge.rank(prompt, responses, strategy)
    rank = partial(judge.rank, prompt, responses, strategy)
    seconds_a = seconds(rival.gram_loop)
    first_b = {size: seconds(partial(rival.padded_batches, size)) for size in BATCH_SIZES}
    best_size = min(first_b, key=first_b.__getitem__)
    ours, seconds_b = [seconds(rank)], [first_b[best_size]]
    for _ in range(repeats - 1):
        ours.append(seconds(rank))
        seconds_b.append(seconds(partial(rival.padded_batches, best_size)))
    plain = rival.padded_batches(1)
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
    record = {
        "benchmark": "sharing",
        "device": str(comparer_of(judge).runner.device),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "dtype": str(comparer_of(judge).runner.dtype),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "gram_fast": gram_fast.__version__,
        "rows": rows,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
