"""What does each strategy cost, and how good is its ranking? The small judge of the package on new tasks of its kinds.

    python -m benchmarks.strategies [--kinds 41] [--draws 8] [--output FILE] [--plot FILE]

A prompt of every kind of task that the judge was trained on, with one right response and wrong ones: those of the task,
and responses to other prompts of its kind. The judge compares each two of them once, in both orders. Every strategy is
then played on n of them that always have the right one among them, for several draws of n: the judge's preferences are
known, and a strategy sees those that it asks for. Measured for each strategy and n, in the mean:

- pairs and rounds that it asked for; tokens that the judge computes for them, in real calls with one draw of --costs
  prompts;
- how often its first place is the right response; always with a judge that never errs;
- Kendall's tau between its order and that of a round robin of the same judge, the dearest ranking; and how many of the
  best three of that round robin stand in its first three places.

Seconds are left out: what a small model takes for single rounds says nothing about a large one. Ends with one line of
JSON, which --output keeps in a file; --plot draws the result.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import logit
from scipy.stats import kendalltau

from benchmarks.environment import environment
from benchmarks.parts import forward_stats
from gram_fast import SMALL_JUDGE, PairwiseJudge, PreferenceMatrix, Stats
from gram_fast.comparing.comparer import Answers, Rounds
from gram_fast.comparing.orders import Orders
from gram_fast.ranking.tournament import STRATEGY_NAMES, StrategyName
from gram_fast.results import Preference
from gram_fast.text.group import Group
from gram_fast.training.small_judge.choice_kinds import contains, exact_words
from gram_fast.training.small_judge.number_kinds import is_larger
from gram_fast.training.small_judge.task import Task
from gram_fast.training.small_judge.tasks import SEEN, distinct_tasks

COUNTS = (4, 8, 16, 32)
K = 3
"""Places that "top_k" decides, and that are compared with the round robin's."""
PARAMETERS = {"top_k": K, "opponents": 4, "knockouts": 4}
"""`k` of the strategies that have one: Tournament-GRPO (arXiv 2605.26958) plays four knockouts."""
STRATEGIES: dict[StrategyName, str] = {
    "round_robin": "-",
    "opponents": "-",
    "knockouts": "--",
    "sort": "-",
    "top_k": "-.",
    "knockout": "--",
    "linear": ":",
    "reference": "-",
}
"""Line of each strategy in the picture, where several lie on one another."""
assert sorted(STRATEGIES) == sorted(STRATEGY_NAMES)
KINDS = [maker for maker in SEEN if maker not in (contains, is_larger, exact_words)]
"""Kinds of tasks with enough different wrong responses, not two answers alone, and with one right answer."""
TASKS = 24
"""Tasks of a kind that give their responses to others: enough wrong ones for the largest group."""


@dataclass
class Known:
    """Comparer that looks preferences up in a matrix, by text; also its session, which counts pairs and rounds."""

    texts: Sequence[str]
    matrix: PreferenceMatrix
    groups: Sequence[Group] = ()
    pairs: int = 0
    rounds: int = 0
    max_length: int = 0
    tokens_at_once: int = 0

    def flags(self, text: str) -> tuple[str, ...]:
        """Flags nothing."""
        return ()

    @contextmanager
    def open(
        self, groups: Sequence[Group], orders: Orders, *, num_pairs: Sequence[int], has_one_round: bool
    ) -> "Iterator[Known]":
        """Begins to count; `orders` are those of the matrix."""
        self.groups, self.pairs, self.rounds = groups, 0, 0
        yield self

    def compare(self, rounds: Rounds) -> Answers:
        """Answers all groups."""
        self.pairs += sum(map(len, rounds.values()))
        self.rounds += 1
        return {g: [self._preference(self.groups[g], i, j) for i, j in pairs] for g, pairs in rounds.items()}

    def _preference(self, group: Group, i: int, j: int) -> Preference:
        p = float(self.matrix[self.texts.index(group.texts[i]), self.texts.index(group.texts[j])])
        return Preference(i, j, p, float(logit(p)), None, None)

    @property
    def stats(self) -> Stats:
        """Counts of the call, both orders of each pair."""
        return Stats(comparisons=2 * self.pairs, seconds=0.0)


def candidates_of(task: Task, others: Sequence[Task], count: int, rng: random.Random) -> list[str]:
    """Draws one right response, first, and count - 1 distinct wrong ones, those of the task before those of others."""
    near = rng.sample(task.wrong, len(task.wrong))
    far = [text for other in others for text in (*other.right, *other.wrong) if not task.is_right(text)]
    wrong = list(dict.fromkeys([*near, *rng.sample(far, len(far))]))[: count - 1]
    assert len(wrong) == count - 1, f"{task.kind}: too few wrong responses"
    return [rng.choice(task.right), *wrong]


def draw(candidates: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Draws `count` candidates in random order, the first of all among them."""
    return rng.sample(drawn := [candidates[0], *rng.sample(candidates[1:], count - 1)], len(drawn))


def rank(judge: PairwiseJudge, prompt: str, responses: Sequence[str], strategy: StrategyName, seed: int) -> Any:
    """Ranks with a strategy, with its parameter."""
    return judge.rank(prompt, responses, strategy, seed=seed, k=PARAMETERS.get(strategy))


def agreement(order: Sequence[int], best: Sequence[int]) -> tuple[float, float]:
    """Compares an order with the best one -> Kendall's tau, and the share of its first K in the order's first K."""
    tau = kendalltau(np.argsort(order), np.argsort(best)).statistic
    return float(tau), len(set(order[:K]) & set(best[:K])) / K


def quality(
    prompt: str, candidates: Sequence[str], known: Known, draws: int, rng: random.Random
) -> Iterator[tuple[tuple[StrategyName, int], tuple[float, ...]]]:
    """Plays every strategy on draws of every size -> (strategy, n), (pairs, rounds, right, tau, best K) of each."""
    judge = PairwiseJudge(known)
    for count in COUNTS:
        for seed in range(draws):
            responses = draw(candidates, count, rng)
            best = rank(judge, prompt, responses, "round_robin", seed).order
            for strategy in STRATEGIES:
                order = rank(judge, prompt, responses, strategy, seed).order
                is_right = float(responses[order[0]] == candidates[0])
                yield (strategy, count), (known.pairs, known.rounds, is_right, *agreement(order, best))


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """Makes the table of all rows."""
    table = Table()
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="left" if column == "strategy" else "right")
    for row in rows:
        table.add_row(*(f"{value:,.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    return table


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Plots pairs, how often the first is right, and tau against n into an image file."""
    from matplotlib.figure import Figure  # comes with the extra "train", which nothing else here needs

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    panels = {
        "pairs": "pairs compared",
        "first_is_right": "share of prompts whose first is the right one",
        "tau": "Kendall's tau with the round robin",
    }
    for axes, (name, label) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for strategy, style in STRATEGIES.items():
            line = [(row["n"], row[name]) for row in rows if row["strategy"] == strategy]
            axes.plot(*zip(*line, strict=True), style, label=strategy, marker="o", markersize=4)
        axes.set(xscale="log", xlabel="candidates n", ylabel=label)
        if name == "pairs":
            axes.set(yscale="log")
            axes.legend()
        axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measures every strategy and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kinds", type=int, default=len(KINDS), help="kinds of tasks, a prompt of each")
    parser.add_argument("--draws", type=int, default=8, help="draws of n candidates for each prompt")
    parser.add_argument("--costs", type=int, default=4, help="prompts for which tokens are counted")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    judge = PairwiseJudge.from_pretrained(SMALL_JUDGE)
    rng = random.Random(0)
    found: dict[tuple[StrategyName, int], list[tuple[float, ...]]] = {}
    tokens: dict[tuple[StrategyName, int], list[int]] = {}
    for number, maker in enumerate(KINDS[: arguments.kinds]):
        task, *others = distinct_tasks((maker,), 5, TASKS)
        candidates = candidates_of(task, others, max(COUNTS), rng)
        known = Known(candidates, judge.matrix(task.prompt, candidates))
        for key, values in quality(task.prompt, candidates, known, arguments.draws, rng):
            found.setdefault(key, []).append(values)
        if number < arguments.costs:
            for strategy, count in found:
                stats = forward_stats(rank(judge, task.prompt, draw(candidates, count, rng), strategy, 0).stats)
                tokens.setdefault((strategy, count), []).append(stats.tokens_computed)
    names = ("pairs", "rounds", "first_is_right", "tau", f"best_{K}")
    rows = [
        {
            "strategy": strategy,
            "n": count,
            **dict(zip(names, np.mean(found[strategy, count], axis=0).tolist(), strict=True)),
            "tokens_computed": float(np.mean(tokens[strategy, count])),
        }
        for strategy in STRATEGIES
        for count in COUNTS
    ]
    Console().print(table_of(rows))
    record = {
        "benchmark": "strategies",
        "prompts": arguments.kinds,
        "draws": arguments.draws,
        "rows": rows,
    }
    line = json.dumps(environment() | record)
    print(line)
    if arguments.output is not None:
        arguments.output.write_text(line + "\n", "utf-8")
    if arguments.plot is not None:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
