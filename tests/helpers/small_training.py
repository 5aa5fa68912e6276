"""Checkpoints, data sets and training runs small enough for tests."""

import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

from gram_fast.training.config import RunConfig, Stage
from gram_fast.training.small_judge.tasks import SEEN, labeled_row, tasks, unlabeled_row
from gram_fast.training.train import train
from helpers.small_models import tiny_model, tiny_tokenizer

TRAINING = {
    "use_cpu": True,
    "disable_tqdm": True,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
}


def write_checkpoint(folder: Path, name: str = "qwen3", **more: Any) -> Path:
    """Writes a tiny random model and a tokenizer with Qwen's chat template into `folder`."""
    tokenizer = tiny_tokenizer()
    more = {"vocab_size": len(tokenizer), "max_position_embeddings": 4096, "initializer_range": 0.05, **more}
    tiny_model(name, **more).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_pairs(path: Path, count: int, labeled: bool = True, seed: int = 0) -> Path:
    """Writes `count` pairs of generated tasks as JSON Lines."""
    rng = random.Random(seed)
    row = labeled_row if labeled else unlabeled_row
    rows = [row(task, rng) for task in islice(tasks(SEEN, seed), count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_obvious_pairs(path: Path, count: int) -> Path:
    """Writes preferences that one word decides, which a tiny model learns in a dozen steps."""
    rows = [{"prompt": f"Question {n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def run(stage: Stage, model: Path, data: Path, output: Path, **more: Any) -> Path:
    """Trains a model and returns the folder of the result."""
    values = {
        "model_name_or_path": str(model),
        "train_data": str(data),
        "output_dir": str(output),
        "preset": "short",
        **TRAINING,
        **more,
    }
    return train(stage, *RunConfig.parse(values, "test"))
