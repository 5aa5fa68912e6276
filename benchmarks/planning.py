"""How long does the host take from text to the plan of a call's passes? On one core, without a model forward.

    python -m benchmarks.planning --model DIR --data FILE [--count 64] [--repeats 5]

Tokenizes the responses, builds the token tree of a round robin in both orders, and plans its passes. FILE is read by
benchmarks/groups.py; responses of all its prompts form one group. Prints the median of each step and ends with one line
of JSON.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

from transformers import AutoTokenizer

from benchmarks.environment import environment
from benchmarks.groups import read_groups
from gram_fast.scoring.engine import CPU_BUDGET
from gram_fast.scoring.tree import TokenTree, plan_round
from gram_fast.text.encoded import EncodedTexts
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokens import PairTokenizer


def main() -> None:
    """Measures every step, and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    tokenizer = PairTokenizer(AutoTokenizer.from_pretrained(arguments.model), PairTemplate.load("gram"))
    groups = read_groups(arguments.data)
    responses = list(dict.fromkeys(text for _, texts in groups for text in texts))[: arguments.count]
    presentations = [(0, i, j) for i in range(len(responses)) for j in range(len(responses)) if i != j]
    budget = CPU_BUDGET
    times: dict[str, list[float]] = {"tokenize": [], "tree": [], "plan": []}
    for _ in range(arguments.repeats):
        started = time.perf_counter()
        encoded = EncodedTexts.of(tokenizer, [groups[0][0]], [responses])
        first_round = encoded.round(presentations, known=0)
        tokenized = time.perf_counter()
        tree = TokenTree(encoded.head_ids)
        for ids in first_round.segments:
            tree.add_segment(ids)
        leaves = tree.add_sequences(first_round.sequences, first_round.reusable)
        built = time.perf_counter()
        plan = plan_round(tree, leaves, budget=budget, keep_limit=0, more_rounds=False)
        planned = time.perf_counter()
        for step, seconds in (
            ("tokenize", tokenized - started),
            ("tree", built - tokenized),
            ("plan", planned - built),
        ):
            times[step].append(seconds)
    median = {step: statistics.median(values) for step, values in times.items()}
    unshared = int(tree.leaf_lengths(leaves).sum())
    print(
        f"{len(responses)} responses, {len(presentations)} presentations, {unshared:,} tokens, "
        f"{tree.num_tokens:,} in the tree"
    )
    for step, seconds in median.items():
        print(f"{step:>10} {seconds * 1e3:8.1f} ms")
    print(f"{'total':>10} {sum(median.values()) * 1e3:8.1f} ms, {len(plan.passes)} passes of up to {budget} tokens")
    record = {
        "benchmark": "planning",
        "responses": len(responses),
        "presentations": len(presentations),
        "tokens_unshared": unshared,
        "tokens_tree": tree.num_tokens,
        "passes": len(plan.passes),
        "seconds": median,
    }
    print(json.dumps(environment() | record))


if __name__ == "__main__":
    main()
