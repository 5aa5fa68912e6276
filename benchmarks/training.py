"""Does GRAM's stage 1 raise accuracy, and label smoothing improve calibration? Both tested at small scale.

    python -m benchmarks.training [--output FOLDER] [--jobs 2] [--seeds 3] [--plot docs/training.png]

On generated tasks (gram_fast.training.small_judge), those that 100,000 unlabeled pairs teach, a small Qwen3 shape is
trained

- in two stages, in stage 2 alone, and with a scalar head, on 100, 1,000 and 10,000 labels;
- in two stages on 10,000 labels with label smoothing 0, 0.05, 0.1 and 0.15;

and tested on kinds of tasks and wordings of the training, on other wordings and on other kinds, each with several
seeds, which determine the untrained model, the labels and their order. Stage 2 alone and the scalar head start from the
untrained model. Results of earlier runs in the output folder are reused. Measures also how many tasks are generated in
a second. Prints tables and, last, one JSON line.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import transformers
from matplotlib.figure import Figure
from tqdm import tqdm
from transformers import AutoTokenizer

from benchmarks.environment import environment
from benchmarks.real_judge.scoring import Generative, Scalar
from gram_fast.extension import _C
from gram_fast.training.small_judge.format_kinds import (
    lettered,
    list_format,
    number_format,
    wrap,
    wrap_curly,
    wrap_name,
)
from gram_fast.training.small_judge.make import (
    make_base,
    make_data,
    read_labeled_rows,
    small_tokenizer,
    tokenizer_texts,
)
from gram_fast.training.small_judge.order_kinds import append_number, copy, recite
from gram_fast.training.small_judge.passage_kinds import price, rearrange, table, told
from gram_fast.training.small_judge.task import TaskMaker
from gram_fast.training.small_judge.tasks import TRAINED, tasks, unlabeled_row
from gram_fast.training.small_judge.text_kinds import append_word, json_object, repeat

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
# After so many unlabeled pairs, the small judge's language model gave the right answer a higher probability than a
# wrong one in 22 or more of 25 questions of each of these kinds; of all others but one, sums and sorting among them, in
# fewer. Where nothing is known, no method learned a label.
UNLABELED = 100_000
KINDS: tuple[TaskMaker, ...] = (
    append_number, copy, json_object, list_format, number_format, rearrange, recite, repeat, table, told, wrap,
    wrap_name,
)  # fmt: skip
UNSEEN: tuple[TaskMaker, ...] = (append_word, lettered, price, wrap_curly)
SHARE_RIGHT = 0.85
METHODS = ("two stages", "stage 2 alone", "scalar head")
# Number of labels -> epochs: fewer labels are seen more often.
EPOCHS = {100: 20, 1_000: 4, 10_000: 2}
SMOOTHING = (0.0, 0.05, 0.1, 0.15)
SMOOTHING_LABELS = 10_000
TEST_ROWS = 1_100
TESTS = {
    "seen": "kinds and wordings of the training",
    "worded": "other wordings",
    "unseen": "other kinds",
}


@dataclass(frozen=True)
class Trial:
    """The settings of one training run and its test."""

    method: str
    labels: int
    smoothing: float
    seed: int

    @property
    def name(self) -> str:
        """The name of the trial's files."""
        return f"{self.method.replace(' ', '-')}-{self.labels}-{self.smoothing}-{self.seed}"


def trials(seeds: int) -> list[Trial]:
    """Lists all trials of the benchmark, each once."""
    found = [Trial(m, n, 0.1, seed) for m in METHODS for n in EPOCHS for seed in range(seeds)]
    found += [Trial("two stages", SMOOTHING_LABELS, s, seed) for s in SMOOTHING for seed in range(seeds)]
    return list(dict.fromkeys(found))


def train(stage: str, folder: Path, **values: Any) -> None:
    """Trains one stage into `folder` in a process of its own; `values` are keys of its configuration."""
    config = folder.with_name(f"{folder.name}.yaml")  # a trial's name has points, of its smoothing
    values = {
        "output_dir": str(folder), "preset": "short", "cutoff_len": 512, "use_cpu": True, "bf16": _C.has_amx(),
        "lr_scheduler_type": "cosine", "warmup_ratio": 0.05, "adam_beta2": 0.98, "save_strategy": "no",
        "disable_tqdm": True, **values,
    }  # fmt: skip
    config.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()), "utf-8")
    command = [sys.executable, "-m", "gram_fast.cli", "train", stage, str(config)]
    # Lengths of batches keep changing, and for each oneDNN keeps a compiled product.
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")


def make_inputs(folder: Path, seeds: int) -> None:
    """Writes the data, with different labels for every seed, and the untrained models."""
    data, labels = folder / "data", max(EPOCHS)
    if not (data / "pretrain.jsonl").exists():
        make_data(data, UNLABELED, seeds * labels, KINDS, UNSEEN, SHARE_RIGHT)
        small_tokenizer(tokenizer_texts(data)).save_pretrained(folder / "tokenizer")
    rows = (data / "finetune.jsonl").read_text("utf-8").splitlines(keepends=True)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    for seed in range(seeds):
        (data / f"finetune-{seed}.jsonl").write_text("".join(rows[seed * labels : (seed + 1) * labels]), "utf-8")
        if not (folder / f"base-{seed}").exists():
            make_base(folder / f"base-{seed}", tokenizer, seed, **SHAPE)


def pretrain(folder: Path, seed: int) -> None:
    """Runs stage 1 on the untrained model of a seed."""
    base, pretrained = folder / f"base-{seed}", folder / f"pretrained-{seed}"
    if not (pretrained / "model.safetensors").exists():
        train(
            "pretrain", pretrained, model_name_or_path=str(base), train_data=str(folder / "data" / "pretrain.jsonl"),
            per_device_train_batch_size=64, learning_rate=3e-3, seed=seed, num_train_epochs=1,
            torch_compile=True, pad_to_multiple_of=256,
        )  # fmt: skip


def run(folder: Path, trial: Trial) -> dict[str, Any]:
    """Trains and tests one trial, or reads its earlier result."""
    result = folder / f"{trial.name}.json"
    if not result.exists():
        output = folder / trial.name
        start = "pretrained" if trial.method == "two stages" else "base"
        if not (output / "model.safetensors").exists():
            train(
                "scalar" if trial.method == "scalar head" else "finetune", output,
                model_name_or_path=str(folder / f"{start}-{trial.seed}"),
                train_data=str(folder / "data" / f"finetune-{trial.seed}.jsonl"), max_samples=trial.labels,
                label_smoothing=trial.smoothing, per_device_train_batch_size=16, learning_rate=1e-3,
                num_train_epochs=EPOCHS[trial.labels], seed=trial.seed,
                # A prompt is computed once for both orders, or both responses: 0.21 CPU seconds a step instead of 0.35.
                pairs_together=2,
            )  # fmt: skip
        torch.set_num_threads(1)
        judge = (Scalar if trial.method == "scalar head" else Generative)(output, {"device": "cpu", "dtype": "float32"})
        found = {test: measure(probabilities(judge, folder / "data" / f"test-{test}.jsonl")) for test in TESTS}
        result.write_text(json.dumps({**asdict(trial), **found}), "utf-8")
    return dict(json.loads(result.read_text("utf-8")))


def probabilities(judge: Generative | Scalar, path: Path) -> np.ndarray[Any, Any]:
    """Scores `TEST_ROWS` of a file -> float64 [R], P(chosen better), a generative judge's mean of both orders."""
    rows = read_labeled_rows(path)
    # Kinds stand one after another, so that each is as frequent among the rows that are taken.
    taken = [{**row, "group": row["kind"], "item": "", "cell": ""} for row in rows[:: max(1, len(rows) // TEST_ROWS)]]
    return np.array([scored.score_chosen for some in judge.score(taken) for scored in some])


def generated_per_second(count: int = 20_000) -> float:
    """Measures how many unlabeled rows of the training mixture one core generates in a second of its time."""
    rng, began = random.Random(0), time.process_time()
    for task in islice(tasks(TRAINED, 0), count):
        json.dumps(unlabeled_row(task, rng))
    return count / (time.process_time() - began)


def measure(p: np.ndarray[Any, Any], bins: int = 10) -> dict[str, float]:
    """Computes accuracy, and the expected calibration error of max(p, 1 - p) over equal bins of [0.5, 1]."""
    right, confidence = p > 0.5, np.maximum(p, 1 - p)
    bin_of = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    gaps = [abs(right[bin_of == b].mean() - confidence[bin_of == b].mean()) * (bin_of == b).mean() for b in set(bin_of)]
    return {"accuracy": float(right.mean()), "calibration_error": float(sum(gaps))}


def spread(values: Sequence[float]) -> str:
    """Formats mean and standard deviation."""
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{mean(values):.3f}"


def tables(results: Sequence[dict[str, Any]]) -> str:
    """Renders Markdown tables by number of labels and method, and by smoothing."""

    def of(test: str, measured: str, **wanted: Any) -> str:
        return spread([r[test][measured] for r in results if all(r[k] == v for k, v in wanted.items())])

    lines = ["| labels | test | " + " | ".join(METHODS) + " |", "|---" * (2 + len(METHODS)) + "|"]
    for labels in EPOCHS:
        for test, name in TESTS.items():
            cells = [of(test, "accuracy", method=m, labels=labels, smoothing=0.1) for m in METHODS]
            lines.append(f"| {labels:,} | {name} | " + " | ".join(cells) + " |")
    lines += ["", "| smoothing | test | accuracy | calibration error |", "|---" * 4 + "|"]
    for smoothing in SMOOTHING:
        wanted = {"method": "two stages", "labels": SMOOTHING_LABELS, "smoothing": smoothing}
        for test, name in TESTS.items():
            cells = [of(test, measured, **wanted) for measured in ("accuracy", "calibration_error")]
            lines.append(f"| {smoothing} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Plots accuracy over the number of labels into an image file."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = figure.subplots(1, len(TESTS), sharey=True)
    for axes, (test, title) in zip(panels, TESTS.items(), strict=True):
        for method in METHODS:
            points = [
                [r[test]["accuracy"] for r in results if (r["method"], r["labels"], r["smoothing"]) == (method, n, 0.1)]
                for n in EPOCHS
            ]
            error = [stdev(p) if len(p) > 1 else 0.0 for p in points]
            axes.errorbar(list(EPOCHS), [mean(p) for p in points], error, marker="o", capsize=3, label=method)
        axes.axhline(0.5, color="gray", linewidth=0.8, linestyle=":")
        axes.set(xscale="log", xlabel="labeled pairs", title=title)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy")
    panels[0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Runs all trials, two at a time by default, and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("training-benchmark"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, of one thread each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    make_inputs(options.output, options.seeds)
    with ThreadPoolExecutor(options.jobs) as pool:
        seeds = range(options.seeds)
        list(tqdm(pool.map(lambda seed: pretrain(options.output, seed), seeds), total=len(seeds), desc="stage 1"))
        wanted = trials(options.seeds)
        results = list(
            tqdm(pool.map(lambda trial: run(options.output, trial), wanted), total=len(wanted), desc="trials")
        )
    print(tables(results))
    if options.plot:
        plot(results, options.plot)
    record = {
        "benchmark": "training",
        "transformers": transformers.__version__,
        "shape": SHAPE,
        "unlabeled": UNLABELED,
        "share_right": SHARE_RIGHT,
        "bf16": _C.has_amx(),
        "kinds": [kind.__name__ for kind in KINDS],
        "unseen_kinds": [kind.__name__ for kind in UNSEEN],
        "generated_per_second": generated_per_second(),
        "results": results,
    }
    print(json.dumps(environment() | record))


if __name__ == "__main__":
    main()
