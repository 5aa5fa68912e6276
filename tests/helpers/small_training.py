"""Checkpoints, data and runs small enough to train in tests."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from gram_fast.training import train as training
from gram_fast.training.config import RunConfig, Stage
from gram_fast.training.small_judge.tasks import SEEN, labeled_row, tasks, unlabeled_row
from helpers.small_models import write_judge

TRAINING = {
    "use_cpu": True,
    "disable_tqdm": True,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
}
STEPS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}
"""Of six steps of an epoch: a run that ends within an epoch, with a checkpoint after every step."""
SGD = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
"""Moves weights by their gradients alone."""


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
    return training.train(stage, *RunConfig.parse(values, "test"))


def arguments_for(folder: Path, **more: Any) -> TrainingArguments:
    values = {"model_name_or_path": "m", "train_data": "d", "output_dir": str(folder), **TRAINING, **more}
    return RunConfig.parse(values, "test")[1]


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def stop_at_the_save(function: Callable[[], Any]) -> None:
    """Interrupts a run when all its checkpoints are written and the trained model is not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "staged_model", interrupt)
        with pytest.raises(KeyboardInterrupt):
            function()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(first: Path, second: Path, tolerance: float = 0.0) -> None:
    """Of two folders with models."""
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def logged(folder: Path, key: str) -> list[Any]:
    """All values of a key that the run logged, up to its last checkpoint."""
    state = max(folder.glob("checkpoint-*/trainer_state.json"), key=lambda p: int(p.parent.name.split("-")[1]))
    return [entry[key] for entry in json.loads(state.read_text())["log_history"] if key in entry]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def launch(*arguments: Any, processes: int = 1) -> "subprocess.Popen[str]":
    """Starts `gram-fast train`."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    command = [sys.executable, "-m", *(launcher if processes > 1 else []), "gram_fast.cli", "train"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    """Waits for a run that should end well, and returns what it printed."""
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def write_config(path: Path, base: Path, data: Path, output: Path, **more: Any) -> Path:
    """Writes the configuration of a run."""
    values = {
        "model_name_or_path": str(base), "train_data": str(data), "output_dir": str(output), "preset": "short",
        "use_cpu": True, "per_device_train_batch_size": 4, "learning_rate": 1e-2, **more,
    }  # fmt: skip
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()))
    return path
