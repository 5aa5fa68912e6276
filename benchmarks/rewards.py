"""What does each kind of reward cost, and what does it tell? The small judge on groups of new tasks of its kinds.

    python -m benchmarks.rewards [--prompts 8] [--repeats 2] [--output FILE]

A call of `rewards` for one group a prompt, each of n candidates, one of them right, in both orders, for every strategy
with the scores that it is used for. Measured for each, per group:

- presentations that were judged, and the tokens that were computed for them and that a judge without sharing computes;
- CPU seconds of the process, median of --repeats calls after one that is not counted;
- least, mean and greatest reward, of all groups;
- correlation with the win rates of a round robin of the same group, the dearest reward; 0 where all are equal.

Presentations and tokens are the same on every machine. Ends with one line of JSON, which --output keeps in a file.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.environment import environment
from benchmarks.parts import forward_stats
from benchmarks.strategies import KINDS, PARAMETERS, TASKS, candidates_of, draw, table_of
from gram_fast import SMALL_JUDGE, PairwiseJudge
from gram_fast.ranking.rewards import AGAINST_REFERENCE
from gram_fast.ranking.scores import SCORE_NAMES
from gram_fast.ranking.tournament import STRATEGY_NAMES
from gram_fast.training.small_judge.tasks import distinct_tasks

COUNTS = (4, 8, 16, 32)
WAYS = {
    "references": tuple(AGAINST_REFERENCE),
    "reference": ("bradley_terry",),
    "knockout": ("bradley_terry",),
    "linear": ("bradley_terry",),
    "opponents": ("bradley_terry", "margin", "win_rate"),
    "top_k": ("rank",),
    "knockouts": ("points", "bradley_terry"),
    "sort": ("rank", "bradley_terry"),
    "round_robin": SCORE_NAMES,
}
"""Scores by strategy, the cheapest first; "references" is no strategy but a response of each prompt's own."""
assert sorted(WAYS) == sorted((*STRATEGY_NAMES, "references"))


@dataclass(frozen=True)
class Workload:
    """Groups of n candidates; prompts, groups and references of one number belong together."""

    prompts: list[str]
    groups: list[list[str]]
    references: list[str]
    """A response to each prompt that is none of its candidates."""
    win_rates: NDArray[np.float64]
    """Those of a round robin of each group, [groups, n]."""


def workload(judge: PairwiseJudge, prompts: int, count: int) -> Workload:
    """Draws prompts, `count` candidates for each and a reference, and plays the round robins."""
    rng = random.Random(0)
    texts, groups, references = [], [], []
    for maker in KINDS[:prompts]:
        task, *others = distinct_tasks((maker,), 5, TASKS)
        candidates = candidates_of(task, others, max(COUNTS) + 1, rng)
        texts.append(task.prompt)
        groups.append(draw(candidates[:-1], count, rng))
        references.append(candidates[-1])
    return Workload(texts, groups, references, np.array(judge.rewards(texts, groups)))


def correlation(rewards: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Computes the correlation of rewards [groups, n] within groups, mean over groups; 0 where all of one are equal."""
    pairs = zip(rewards, others, strict=True)
    return float(np.mean([np.corrcoef(ours, theirs)[0, 1] if np.ptp(ours) else 0 for ours, theirs in pairs]))


def measure(judge: PairwiseJudge, way: str, scores: str, given: Workload, repeats: int) -> dict[str, Any]:
    """Rewards a workload again and again -> what it costs per group, and what the rewards are."""
    prompts, groups = given.prompts, given.groups
    against = {"references": given.references} if way == "references" else {"strategy": way, "k": PARAMETERS.get(way)}
    how: dict[str, Any] = {"scores": scores, **against}
    seconds = []
    for _ in range(1 + repeats):
        started = time.process_time()
        rewards = judge.rewards(prompts, groups, **how)
        seconds.append(time.process_time() - started)
    stats = forward_stats(rewards.stats)
    values = np.array(rewards, np.float64)
    return {
        "comparisons": stats.comparisons / len(groups),
        "tokens_computed": stats.tokens_computed / len(groups),
        "tokens_unshared": stats.tokens_unshared / len(groups),
        "cpu_seconds": statistics.median(seconds[1:]) / len(groups),
        "least": float(values.min()),
        "mean": float(values.mean()),
        "greatest": float(values.max()),
        "correlation": correlation(values, given.win_rates),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures every strategy with its scores and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=8, help="kinds of tasks, a prompt of each")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    judge = PairwiseJudge.from_pretrained(SMALL_JUDGE)
    workloads = {count: workload(judge, options.prompts, count) for count in COUNTS}
    rows = [
        {"strategy": way, "scores": name, "n": count, **measure(judge, way, name, given, options.repeats)}
        for way, names in WAYS.items()
        for name in names
        for count, given in workloads.items()
    ]
    Console(width=160).print(table_of(rows))
    record = {"benchmark": "rewards", "prompts": options.prompts, "repeats": options.repeats, "rows": rows}
    line = json.dumps(environment() | record)
    print(line)
    if options.output is not None:
        options.output.write_text(line + "\n", "utf-8")


if __name__ == "__main__":
    main()
