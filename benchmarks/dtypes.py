"""What does a model's dtype, or FP8 in its products, change in a judge's verdicts?

    python -m benchmarks.dtypes --model DIR --data FILE [--pairs 300] [--dtypes float32 bfloat16 float16 fp8 ...]

"fp8" is quantization="fp8" in bfloat16, as on a GPU; "fp8-float32" shows what it does without bfloat16. On a CPU both
are emulated, and their seconds say nothing.

Pairs are the first response of a group against another of the same, one of each group in turn, in both orders; FILE is
as benchmarks/groups.py reads it. Every dtype is compared with the first one: the share of pairs whose winner is another
one, how far from 1/2 the first dtype's p of such a pair was at most, and how far p moved. "first wins" is the share of
pairs whose first response wins, which is the right one in rows of `chosen` and `rejected`; `make_data(folder, 0, 0)` of
gram_fast/training/small_judge/make.py writes such rows, new tasks of the small judge. Seconds are of one call of
`judge.compare_many` after a first one of a single pair. Prints a table and ends with one line of JSON.
"""

import argparse
import json
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.environment import environment
from benchmarks.groups import read_groups
from benchmarks.scorer.rivals import TextPair
from benchmarks.timing import timed
from gram_fast import PairwiseJudge

DTYPES: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "fp8": {"dtype": "bfloat16", "quantization": "fp8"},
    "fp8-float32": {"dtype": "float32", "quantization": "fp8"},
}
"""Options of a judge by the name of a dtype."""


def pairs_of(groups: list[tuple[str, list[str]]]) -> Iterator[TextPair]:
    """Yields the first response of every group with its second, then with its third, and so on."""
    for k in range(1, max(len(texts) for _, texts in groups)):
        yield from ((prompt, texts[0], texts[k]) for prompt, texts in groups if len(texts) > k and texts[k] != texts[0])


def verdicts(model: str, dtype: str, pairs: list[TextPair]) -> tuple[float, NDArray[np.float64]]:
    """Loads the judge in one of DTYPES and compares all pairs -> seconds, P(first better) of each."""
    judge = PairwiseJudge.from_pretrained(model, **DTYPES[dtype])
    prompts, responses = [prompt for prompt, _, _ in pairs], [pair[1:] for pair in pairs]
    judge.compare_many(prompts[:1], responses[:1])
    seconds, found = timed(partial(judge.compare_many, prompts, responses))
    return seconds, np.array([comparison.p for comparison in found])


def changes(reference: NDArray[np.float64], p: NDArray[np.float64]) -> dict[str, Any]:
    """Compares the p of a dtype with those of the reference."""
    moved = np.abs(p - reference)
    is_flipped = (p > 0.5) != (reference > 0.5)
    return {
        "flipped": float(is_flipped.mean()),
        "flipped_margin": float(np.abs(reference - 0.5)[is_flipped].max(initial=0.0)),
        "mean_change": float(moved.mean()),
        "worst_change": float(moved.max()),
        "first_wins": float((p > 0.5).mean()),
    }


def main() -> None:
    """Measures all dtypes, and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    arguments = parser.parse_args()
    pairs = list(islice(pairs_of(read_groups(arguments.data)), arguments.pairs))
    rows: list[dict[str, Any]] = []
    reference = None
    for dtype in arguments.dtypes:
        seconds, p = verdicts(arguments.model, dtype, pairs)
        reference = p if reference is None else reference
        rows.append({"dtype": dtype, "seconds": seconds, **changes(reference, p)})
    table = Table(*(name.replace("_", " ") for name in rows[0]))
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else value for value in row.values()))
    Console().print(table)
    record = {"benchmark": "dtypes", "model": Path(arguments.model).name, "data": arguments.data.name}
    print(json.dumps(environment() | record | {"pairs": len(pairs), "threads": torch.get_num_threads(), "rows": rows}))


if __name__ == "__main__":
    main()
