"""Checkpoints, data and runs small enough to train in tests."""

import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

from gram_fast.training.config import RunConfig, Stage
from gram_fast.training.small_judge.tasks import SEEN, labeled_row, tasks, unlabeled_row
from gram_fast.training.train import train
from helpers.small_models import write_judge

TRAINING = {
    "use_cpu": True,
    "disable_tqdm": True,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
}


def write_checkpoint(folder: Path, name: str = "qwen3", **more: Any) -> Path:
    """A tiny random judge with weights as small as those that training starts with."""
    return write_judge(folder, name, **{"initializer_range": 0.05, **more})


def write_pairs(path: Path, count: int, labeled: bool = True, seed: int = 0) -> Path:
    """That many pairs of generated tasks, as JSON lines."""
    rng = random.Random(seed)
    row = labeled_row if labeled else unlabeled_row
    rows = [row(task, rng) for task in islice(tasks(SEEN, seed), count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_obvious_pairs(path: Path, count: int) -> Path:
    """Preferences that one word decides: what a tiny model can learn in a dozen steps."""
    rows = [{"prompt": f"Question {n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def run(stage: Stage, model: Path, data: Path, output: Path, **more: Any) -> Path:
    """Trains and returns the folder of the result."""
    values = {
        "model_name_or_path": str(model),
        "train_data": str(data),
        "output_dir": str(output),
        "preset": "short",
        **TRAINING,
        **more,
    }
    return train(stage, *RunConfig.parse(values, "test"))
