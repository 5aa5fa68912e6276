"""Tiny judges and provers that write the right forms, and runs of self-training that are killed and go on.

As a program it runs a configuration to its end through many forks of a process that has imported everything, so that a
start takes no seconds: `python self_training.py VALUES KILLS SEED EVENTS` prints how often a run was killed.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

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


def digests(folder: Path) -> dict[str, str]:
    """Digest of every file in a folder by its path there."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run_killed(values: dict[str, Any], kills: int, seed: int, events: int) -> int:
    """Runs a configuration, killed that often -> kills that took place.

    Each is at a random moment, within a quarter of a second after a random number of writes to the disk, of which an
    undisturbed run has `events`.
    """
    arguments = (json.dumps(values), str(kills), str(seed), str(events))
    found = subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return int(found.stdout.splitlines()[-1])


def _main(values: dict[str, Any], kills: int, seed: int, events: int) -> None:
    rng = random.Random(seed)
    done = 0
    while True:
        writes, delay = rng.randint(1, max(1, 2 * events // (kills + 5))), rng.uniform(0, 0.25)
        child = os.fork()
        if child == 0:
            if done < kills:
                _kill_after(writes, delay)
            run_rounds(SelfTrainConfig.parse(values, "test"), "test")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            break
        assert os.WIFSIGNALED(status), status
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        done += 1
    print(done)


def _kill_after(writes: int, delay: float) -> None:
    """Has this process killed a moment after so many calls of fsync."""
    fsync, left = os.fsync, [writes]

    def counted(file: Any) -> None:
        fsync(file)
        left[0] -= 1
        if left[0] == 0:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    os.fsync = counted


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]), *map(int, sys.argv[2:]))
