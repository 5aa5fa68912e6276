"""What does it cost to read the label logits behind k rationales on one pair, in a token tree and one by one?

    python -m benchmarks.second_step [--shape smollm2-135m] [--prompt 1500] [--rationale 200] [--votes 8] [--repeats 5]

A judge with random weights, in float32 on a CPU and bfloat16 on a GPU, reads k rationales of so many random tokens
behind one prompt of random tokens:

- tree: the dense runner, as the second step of a judge that reasons does it (gram_fast/generating/second_step.py);
- one by one: the same runner, a sequence at a time, nothing shared;
- transformers: the model's own plain forward, a sequence at a time, logits of the last token alone;
- one batch: the same of all sequences at once.

All give the same logits, which is checked. Each repeat runs them in turn; times are medians. Memory is the growth of
the process's peak while one of them runs, each in a process of its own (on a GPU, of what torch has allocated). Prints
one line of JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.environment import environment
from benchmarks.memory import peak_growth
from benchmarks.random_judge import SHAPES, random_model
from benchmarks.timing import timed
from gram_fast.models.dense.runner import DenseRunner
from gram_fast.models.dense.weights import read_dense_model
from gram_fast.scoring.engine import Engine
from gram_fast.text.encoded import EncodedRound

LABELS = (33, 34)
WAYS = ("tree", "one by one", "transformers", "one batch")
Way = Callable[[], np.ndarray]


def draw(options: argparse.Namespace, vocab: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draws the prompt's ids and those of each rationale, verdict's prefix included."""
    rng = np.random.default_rng(0)
    return (
        rng.integers(100, vocab, options.prompt).astype(np.int32),
        [rng.integers(100, vocab, options.rationale).astype(np.int32) for _ in range(options.votes)],
    )


def ways(options: argparse.Namespace, only: str | None = None) -> dict[str, Way]:
    """Makes what is timed, or one of them, without the models of others."""
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = random_model(SHAPES[options.shape], device, dtype).eval().requires_grad_(False)
    prompt, rationales = draw(options, model.config.vocab_size)
    found: dict[str, Way] = {}
    if only in (None, "transformers", "one batch"):
        found["transformers"] = lambda: np.concatenate([plain(model, prompt, [r]) for r in rationales])
        found["one batch"] = lambda: plain(model, prompt, rationales)
    if only in (None, "tree", "one by one"):
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            dense = read_dense_model(folder, model.config, LABELS, device, dtype)
        runner = DenseRunner(dense, model.config, "auto")
        if only is not None:
            del model
        engine = Engine(runner)
        found["tree"] = lambda: read(engine, prompt, rationales)
        found["one by one"] = lambda: np.concatenate([read(engine, prompt, [rationale]) for rationale in rationales])
    return {name: found[name] for name in WAYS if name in found and only in (None, name)}


def read(engine: Engine, prompt: np.ndarray, rationales: list[np.ndarray]) -> np.ndarray:
    """Reads label logits, float32 [k, 2], behind rationales that share the prompt."""
    numbers = np.arange(1, 1 + len(rationales), dtype=np.int32)
    sequences = np.column_stack([np.zeros(len(rationales), np.int32), numbers])
    with engine.request(np.empty(0, np.int32)) as request:
        request.add(EncodedRound([prompt, *rationales], sequences, reusable=1))
        return request.score(more_rounds=False)


@torch.inference_mode()
def plain(model: Any, prompt: np.ndarray, rationales: list[np.ndarray]) -> np.ndarray:
    """Reads the same by one plain forward of whole sequences."""
    ids = torch.from_numpy(np.stack([np.concatenate([prompt, rationale]) for rationale in rationales])).long()
    logits = model(input_ids=ids.to(model.device), use_cache=False, logits_to_keep=1).logits[:, -1]
    return np.asarray(logits[:, list(LABELS)].float().cpu())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times all ways, compares their logits, and has the memory of each measured in a process of its own."""
    found = ways(options)
    logits = {name: way() for name, way in found.items()}
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(options.repeats):
        for name, way in found.items():
            seconds[name].append(timed(way)[0])
    del found
    again = [sys.executable, "-m", "benchmarks.second_step", *sys.argv[1:], "--only"]
    medians = {name: statistics.median(of_way) for name, of_way in seconds.items()}
    return {
        "benchmark": "second_step",
        "settings": {name: value for name, value in vars(options).items() if name != "only"},
        "threads": torch.get_num_threads(),
        "seconds": medians,
        "times_tree": {name: value / medians["tree"] for name, value in medians.items()},
        "peak_growth_bytes": {
            name: int(subprocess.run([*again, name], check=True, capture_output=True, text=True).stdout)
            for name in WAYS
        },
        "largest_difference": {
            name: float(np.abs(of_way - logits["transformers"]).max()) for name, of_way in logits.items()
        },
        "largest_logit": float(np.abs(logits["transformers"]).max()),
        "environment": environment(),
    }


def parser() -> argparse.ArgumentParser:
    """Makes what reads the command line."""
    found = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    found.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    found.add_argument("--prompt", type=int, default=1500, help="tokens")
    found.add_argument("--rationale", type=int, default=200, help="tokens")
    found.add_argument("--votes", type=int, default=8)
    found.add_argument("--repeats", type=int, default=5)
    found.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    found.add_argument("--output", type=Path, help="file for the JSON line; default: standard output alone")
    return found


def main() -> None:
    """Measures what the command line asks for."""
    options = parser().parse_args()
    if options.only:
        (way,) = ways(options, options.only).values()
        print(peak_growth(way))
        return
    output = options.output
    del options.output
    line = json.dumps(measure(options))
    print(line)
    if output:
        output.write_text(line + "\n", "utf-8")


if __name__ == "__main__":
    main()
