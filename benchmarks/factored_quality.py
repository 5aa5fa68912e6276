"""Is a judge that reads each response by itself as good as one that reads B after A? The small judge, adapted.

    python -m benchmarks.factored_quality FOLDER JUDGE [--pairs 80000] [--seeds 3] [--output FILE]

Trains the small judge, as stage 2 leaves it (small-judge/finetune of training/small_judge/make.py), further, on
preferences of its kinds of tasks: `both`, each pair in either mode, and as a control `full`, as many steps of the
ordinary kind. Both are tested on prompts that no training has, in wordings that none has, and on kinds that none has:

- accuracy on pairs, same winner in both orders, and expected calibration error, in each mode;
- round robins of `--n` candidates with one right response: how often it stands first in each mode and where the best
  four of mode factored are judged again in full, how often both modes have the same first, Kendall's tau of the orders.

What is in FOLDER already is not done again. Prints tables, the kinds where mode factored loses most, and one line of
JSON.
"""

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.environment import environment
from benchmarks.real_judge.measures import measure
from benchmarks.real_judge.scoring import result
from benchmarks.strategies import KINDS, TASKS, candidates_of
from benchmarks.two_modes import agreement, orders
from gram_fast import PairwiseJudge
from gram_fast.comparing.modes import Mode
from gram_fast.evaluation.rows import Result, accuracy
from gram_fast.training.small_judge.make import make_data, read_labeled_rows
from gram_fast.training.small_judge.tasks import distinct_tasks

ARMS: dict[str, tuple[Mode, ...]] = {"full": ("full",), "both": ("full", "factored")}
"""Modes of training, with those that a judge trained so reads in."""
TESTS = ("worded", "unseen")
MEASURES = ("accuracy", "consistency", "calibration_error")
# Kinds that are named where mode factored loses most.
_NAMED = 6


def train(folder: Path, arm: str, seed: int, options: argparse.Namespace) -> Path:
    """Trains the judge of an arm, unless it is there -> its folder."""
    output = folder / f"{arm}-{seed}"
    if not (output / "model.safetensors").exists():
        settings = {
            "model_name_or_path": options.judge,
            "output_dir": output,
            "train_data": folder / "data" / "finetune.jsonl",
            "eval_data": "[]",
            "eval_strategy": "no",
            "mode": arm,
            "seed": seed,
            "learning_rate": options.learning_rate,
            "bf16": "false",
            "save_strategy": "no",
            "torch_compile": "false",
        }
        overrides = [f"{key}={value}" for key, value in settings.items()]
        subprocess.run([sys.executable, "-m", "gram_fast.cli", "train", "finetune", "small", *overrides], check=True)
    return output


def on_pairs(judge: PairwiseJudge, rows: Sequence[dict[str, Any]], mode: Mode) -> dict[str, Any]:
    """Tests a judge on labeled rows in a mode -> accuracy, the same by kind, consistency, calibration error."""
    pairs = [(row["chosen"], row["rejected"]) for row in rows]
    found = judge.compare_many([row["prompt"] for row in rows], pairs, mode=mode)
    by_kind: dict[str, list[Result]] = {}
    for row, c in zip(rows, found, strict=True):
        placed = {**row, "group": row["kind"], "item": "", "cell": ""}
        by_kind.setdefault(row["kind"], []).append(result(placed, c.p, (c.p_ab, c.p_ba)))
    measured = measure([one for some in by_kind.values() for one in some])
    return {
        **{name: measured[name] for name in MEASURES},
        "by_kind": {kind: accuracy(some) for kind, some in by_kind.items()},
    }


def on_groups(judge: PairwiseJudge, groups: Sequence[tuple[str, Sequence[str]]]) -> dict[str, float]:
    """Ranks groups, whose first candidate is right, in both modes -> shares and Kendall's tau, means over groups."""
    found = [orders(judge, prompt, candidates) for prompt, candidates in groups]
    names = ("full_right", "factored_right", "rejudged_right")
    firsts = ([float(order[0] == 0) for order in column] for column in zip(*found, strict=True))
    return {**dict(zip(names, map(mean, firsts), strict=True)), **agreement(found)}


def groups_of(n: int) -> list[tuple[str, list[str]]]:
    """A prompt of every kind that has enough responses, with n of them, the right one first."""
    rng = random.Random(0)
    found = []
    for maker in KINDS:
        task, *others = distinct_tasks((maker,), 11, TASKS)
        found.append((task.prompt, candidates_of(task, others, n, rng)))
    return found


def tested(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Trains and tests the judges of all seeds -> results by seed, arm, test and mode."""
    if not (folder / "data" / "test-worded.jsonl").exists():
        make_data(folder / "data", unlabeled=1, labeled=options.pairs)
    rows = {test: read_labeled_rows(folder / "data" / f"test-{test}.jsonl") for test in TESTS}
    found: dict[str, Any] = {}
    for seed in range(options.seeds):
        for arm, modes in ARMS.items():
            path = folder / f"{arm}-{seed}.json"
            if not path.exists():
                judge = PairwiseJudge.from_pretrained(train(folder, arm, seed, options), device="cpu")
                result: dict[str, Any] = {
                    test: {mode: on_pairs(judge, some, mode) for mode in modes} for test, some in rows.items()
                }
                if len(modes) > 1:
                    result["groups"] = on_groups(judge, groups_of(options.n))
                path.write_text(json.dumps(result), "utf-8")
            found.setdefault(arm, []).append(json.loads(path.read_text("utf-8")))
    return found


def of_seeds(values: Sequence[float], digits: int = 1, scale: float = 100) -> str:
    """Renders the mean over seeds and, of several, the standard deviation."""
    text = f"{scale * mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {scale * stdev(values):.{digits}f}"


def tables(found: dict[str, Any]) -> list[Table]:
    """Makes the tables of pairs, of groups, and of the kinds where mode factored loses most."""
    pairs = Table(title="pairs, in percent")
    for column in ("test", "trained", "read", "accuracy", "same winner in both orders", "calibration error"):
        pairs.add_column(column)
    for test in TESTS:
        for arm, modes in ARMS.items():
            for mode in modes:
                of_mode = [seed[test][mode] for seed in found[arm]]
                pairs.add_row(test, arm, mode, *(of_seeds([one[name] for one in of_mode]) for name in MEASURES))
    groups = Table(title="groups, in percent")
    names = list(found["both"][0]["groups"])
    for name in names:
        groups.add_column(name.replace("_", " "))
    groups.add_row(*(of_seeds([seed["groups"][name] for seed in found["both"]]) for name in names))
    kinds = Table(title="accuracy where mode factored loses most, in percent")
    for column in ("test", "kind", "full", "factored"):
        kinds.add_column(column)
    for _, test, kind, full, factored in sorted(losses(found))[:_NAMED]:
        kinds.add_row(test, kind, f"{100 * full:.0f}", f"{100 * factored:.0f}")
    return [pairs, groups, kinds]


def losses(found: dict[str, Any]) -> list[tuple[float, str, str, float, float]]:
    """Of every kind of task (factored - full, test, kind, full, factored), means over seeds of the judges in both."""
    rows = []
    for test in TESTS:
        for kind in found["both"][0][test]["full"]["by_kind"]:
            full, factored = (
                mean(seed[test][mode]["by_kind"][kind] for seed in found["both"]) for mode in ARMS["both"]
            )
            rows.append((factored - full, test, kind, full, factored))
    return rows


def parser() -> argparse.ArgumentParser:
    """Makes what reads the command line."""
    found = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    found.add_argument("folder", type=Path)
    found.add_argument("judge", type=Path, help="checkpoint that both start from")
    found.add_argument("--pairs", type=int, default=80_000, help="of training")
    found.add_argument("--seeds", type=int, default=3)
    found.add_argument("--n", type=int, default=16, help="candidates of a group")
    found.add_argument("--learning-rate", type=float, default=5e-4)
    found.add_argument("--output", type=Path, help="file for the JSON line")
    return found


def main() -> None:
    """Trains, tests and prints what the command line asks for."""
    options = parser().parse_args()
    found = tested(options.folder, options)
    for table in tables(found):
        Console().print(table)
    settings = {name: value for name, value in vars(options).items() if name not in ("folder", "judge", "output")}
    line = json.dumps(environment() | {"benchmark": "factored_quality", "settings": settings, "results": found})
    print(line)
    if options.output:
        options.output.write_text(line + "\n", "utf-8")


if __name__ == "__main__":
    main()
