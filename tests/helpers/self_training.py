"""Tiny judges and provers that write the right forms, and runs of self-training that are killed and go on.

As a program it runs a configuration to its end through many forks of a process that has imported everything, so that a
start takes no seconds: `python self_training.py VALUES POINTS`.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from gram_fast.training.self_training.config import SelfTrainConfig
from gram_fast.training.self_training.run import run_rounds

PRESET = """+++
answer_prefix = "</think>\\n"
reasons = true
+++
Q: {input}
A: {response_a}
B: {response_b}
Better?"""


def write_rows(path: Path, rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def pair(number: int, **more: Any) -> dict[str, Any]:
    """A pair that one word decides, B better in every second."""
    good, bad = f"good {number}", f"bad {number}"
    return {"prompt": f"Question {number}?", "responses": [good, bad][:: 1 if number % 2 else -1], **more}


def label(number: int) -> str:
    return "A" if number % 2 else "B"


def configuration(made: Path, output: Path) -> dict[str, Any]:
    """A configuration of two short rounds, of the files in a folder."""
    return {
        "output_dir": str(output),
        "judge": str(made / "judge"),
        "prover": str(made / "prover"),
        "base": str(made / "judge"),
        "unlabeled_data": str(made / "unlabeled.jsonl"),
        "eval_data": str(made / "held-out.jsonl"),
        "seed_data": [str(made / "seed.jsonl"), str(made / "long.jsonl")],
        "preset": str(made / "preset.txt"),
        "rounds": 2,
        "pairs_per_round": 8,
        "chunk_rows": 3,
        "device": "cpu",
        "predict": {"votes": 2, "temperature": 1.0, "max_new_tokens": 40},
        "denoise": {"min_probability": 0.5},
        "prove": {"proofs": 2, "temperature": 1.0, "max_new_tokens": 120},
        "evaluate": {"max_new_tokens": 40},
        "train": {
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-4,
            "save_steps": 1,
            "cutoff_len": 512,
            "disable_tqdm": True,
        },
    }


def digests(folder: Path) -> dict[str, str]:
    """Digest of every file in a folder by its path there."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def weight_differences(folder: Path, other: Path) -> dict[str, float]:
    """Largest difference of a weight in every model of two folders by its path: rounding, or another training."""
    return {
        str(path.relative_to(folder)): max(
            float((weight - theirs).abs().max())
            for weight, theirs in zip(
                load_file(path).values(), load_file(other / path.relative_to(folder)).values(), strict=True
            )
        )
        for path in sorted(folder.rglob("*.safetensors"))
    }


@dataclass(frozen=True)
class Ended:
    """A run that has come to its end."""

    kills: int
    writes: int
    """To the disk, since its last start."""
    seconds: float
    """Since its last start."""


def run_killed(values: dict[str, Any], points: Sequence[tuple[int, float]]) -> Ended:
    """Runs a configuration to its end, killed by SIGKILL.

    Each start but the last is killed so many seconds after so many writes to the disk.
    """
    found = subprocess.run(
        [sys.executable, __file__, json.dumps(values), json.dumps(points)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return Ended(**json.loads(found.stdout.splitlines()[-1]))


def _main(values: dict[str, Any], points: Sequence[tuple[int, float]]) -> None:
    kills = 0
    while True:
        started = time.perf_counter()
        child = os.fork()
        if child == 0:
            count = _counted(*(points[kills] if kills < len(points) else (0, 0.0)))
            run_rounds(SelfTrainConfig.parse(values, "test"), "test")
            ended = {"kills": kills, "writes": count[0], "seconds": time.perf_counter() - started}
            print(json.dumps(ended), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return
        assert os.WIFSIGNALED(status), status
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        kills += 1


def _counted(writes: int, delay: float) -> list[int]:
    """Counts calls of fsync; after so many, this process is killed, at once or after a moment."""
    fsync, count = os.fsync, [0]

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(file: Any) -> None:
        fsync(file)
        count[0] += 1
        if count[0] == writes:
            threading.Timer(delay, kill).start() if delay else kill()

    os.fsync = counted
    return count


if __name__ == "__main__":
    _main(*map(json.loads, sys.argv[1:]))
