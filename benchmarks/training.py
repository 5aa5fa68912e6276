"""Does GRAM's stage 1 raise accuracy, and label smoothing improve calibration? Both tested at small scale.

    python -m benchmarks.training [--output FOLDER] [--jobs 2] [--seeds 3] [--plot docs/training.png]

On generated tasks (gram_fast.training.small_judge.tasks) a small Qwen3 shape is trained

- in two stages, in stage 2 alone, and with a scalar head, on 100, 1,000 and 10,000 labels;
- in two stages on 1,000 labels with label smoothing 0, 0.05, 0.1 and 0.15;

and tested in and out of distribution, each with several seeds, which determine the untrained model, the labels and
their order. Stage 2 alone and the scalar head start from the untrained model. Results of earlier runs in the output
folder are reused. Prints tables and, last, one JSON line.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import transformers
from matplotlib.figure import Figure
from scipy.special import expit
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gram_fast import PairwiseJudge
from gram_fast.training.small_judge.make import (
    make_base,
    make_data,
    read_labeled_rows,
    small_tokenizer,
    tokenizer_texts,
)

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
UNLABELED = 100_000
METHODS = ("two stages", "stage 2 alone", "scalar head")
# Number of labels -> epochs: fewer labels are seen more often.
EPOCHS = {100: 20, 1_000: 4, 10_000: 2}
SMOOTHING = (0.0, 0.05, 0.1, 0.15)
SMOOTHING_LABELS = 1_000


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
    config = folder.with_suffix(".yaml")
    values = {
        "output_dir": str(folder), "preset": "short", "cutoff_len": 512, "use_cpu": True, "bf16": True,
        "lr_scheduler_type": "cosine", "warmup_ratio": 0.05, "adam_beta2": 0.98, "save_strategy": "no",
        "disable_tqdm": True, **values,
    }  # fmt: skip
    config.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()), "utf-8")
    command = [sys.executable, "-m", "gram_fast.cli", "train", stage, str(config)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")


def make_inputs(folder: Path, seeds: int) -> None:
    """Writes the data, with different labels for every seed, and the untrained models."""
    data, labels = folder / "data", max(EPOCHS)
    if not (data / "pretrain.jsonl").exists():
        make_data(data, UNLABELED, seeds * labels)
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
            )  # fmt: skip
        torch.set_num_threads(1)
        probabilities = scalar_probabilities if trial.method == "scalar head" else judge_probabilities
        tests = {t: read_labeled_rows(folder / "data" / f"test-{t}.jsonl") for t in ("seen", "unseen")}
        found = {test: measure(probabilities(output, rows)) for test, rows in tests.items()}
        result.write_text(json.dumps({**asdict(trial), **found}), "utf-8")
    return dict(json.loads(result.read_text("utf-8")))


def judge_probabilities(folder: Path, rows: Sequence[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """Scores rows with a judge -> float64 [R], P(chosen better), mean of both orders."""
    judge = PairwiseJudge.from_pretrained(folder)
    pairs = [(row["chosen"], row["rejected"]) for row in rows]
    return np.array([c.p for c in judge.compare_many([row["prompt"] for row in rows], pairs)])


@torch.inference_mode()
def scalar_probabilities(folder: Path, rows: Sequence[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """Scores rows with a scalar reward model -> [R], P(chosen better), the sigmoid of the difference of rewards."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def rewards(key: str) -> np.ndarray[Any, Any]:
        found = []
        for row in rows:
            turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[key]}]
            ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)
            found.append(model(**ids).logits.item())
        return np.array(found)

    return np.asarray(expit(rewards("chosen") - rewards("rejected")))


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
        for test in ("seen", "unseen"):
            cells = [of(test, "accuracy", method=m, labels=labels, smoothing=0.1) for m in METHODS]
            lines.append(f"| {labels:,} | {test} kinds | " + " | ".join(cells) + " |")
    lines += ["", "| smoothing | accuracy, seen | unseen | calibration error, seen | unseen |", "|---" * 5 + "|"]
    for smoothing in SMOOTHING:
        wanted = {"method": "two stages", "labels": SMOOTHING_LABELS, "smoothing": smoothing}
        cells = [of(test, m, **wanted) for m in ("accuracy", "calibration_error") for test in ("seen", "unseen")]
        lines.append(f"| {smoothing} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Plots accuracy over the number of labels into an image file."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, test, title in zip(
        panels, ("seen", "unseen"), ("kinds of the training", "kinds never seen"), strict=True
    ):
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
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps({"benchmark": "training", "shape": SHAPE, "unlabeled": UNLABELED, **versions, "results": results}))


if __name__ == "__main__":
    main()
