"""Trains the judges of one seed with the package's own commands, and tests each of them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.reasoning.inputs import PRESET, TESTS, UNLABELED, rows_of_test
from benchmarks.reasoning.measures import VOTES, measure
from benchmarks.training import train
from gram_fast.judge import PairwiseJudge
from gram_fast.reasoning_judge import ReasoningJudge

ROUNDS = 2
TEMPERATURE = 0.5
"""With 1,000 labels, the answer that a rationale computes was right in 18 of 100 at 1.0, in 37 at 0.5 and in 36
greedily, in other wordings."""
MAX_NEW_TOKENS = 160
"""More than any rationale of the generator has, with its verdict."""
JUDGES = {
    "direct": "labels alone, read from logits",
    "rationales": "the same labels with the generator's rationales",
    "round-1": "and the first half of the unlabeled pairs, labeled and proved",
    "round-2": "and the second half",
}
_BATCH = {"per_device_train_batch_size": 32, "learning_rate": 1e-3}
# Of 1,000 pairs. A judge learns to quote responses in its rationales long after it has learned their labels: with 8
# epochs its answers are right in 80 of 100, its quotes in 56, and its verdicts are at chance.
_EPOCHS, _EPOCHS_OF_RATIONALES = 8, 32
# Of 11 and of 21 times as many.
_EPOCHS_OF_ROUNDS = 2


def run(folder: Path, seed: int) -> list[dict[str, Any]]:
    """Trains and tests all judges of a seed; what is there already is not done again -> a result a judge."""
    data, base = folder / "data", str(folder / "base")
    labeled = str(data / f"labeled-{seed}.jsonl")
    trained = {"model_name_or_path": base, "train_data": labeled, "seed": seed, "num_train_epochs": _EPOCHS, **_BATCH}
    reasons = {**trained, "preset": str(PRESET), "num_train_epochs": _EPOCHS_OF_RATIONALES}
    _once(folder / f"direct-{seed}", "finetune", {**trained, "pairs_together": 2, "per_device_train_batch_size": 16})
    _once(folder / f"rationales-{seed}", "reason", reasons)
    _once(folder / f"prover-{seed}", "prove", reasons)
    _self_train(folder, seed, base, labeled)
    places = {
        **{name: folder / f"{name}-{seed}" for name in ("direct", "rationales")},
        **{f"round-{n}": folder / f"self-{seed}" / f"round-{n}" / "model" for n in range(1, ROUNDS + 1)},
    }
    return [_tested(folder / f"{name}-{seed}.json", name, place, seed) for name, place in places.items()]


def _once(folder: Path, stage: str, values: dict[str, Any]) -> None:
    if not (folder / "model.safetensors").exists():
        train(stage, folder, **values)


def _self_train(folder: Path, seed: int, base: str, labeled: str) -> None:
    """Runs both rounds; interrupted, it goes on."""
    output = folder / f"self-{seed}"
    if (output / f"round-{ROUNDS}" / "report.json").exists():
        return
    config = {
        "output_dir": str(output), "judge": str(folder / f"rationales-{seed}"), "base": base,
        "prover": str(folder / f"prover-{seed}"), "preset": str(PRESET), "seed": seed, "device": "cpu",
        "unlabeled_data": str(folder / "data" / f"unlabeled-{seed}.jsonl"),
        "eval_data": str(folder / "data" / "heldout.jsonl"), "seed_data": labeled,
        "rounds": ROUNDS, "pairs_per_round": UNLABELED // ROUNDS,
        "predict": {"votes": 2, "temperature": TEMPERATURE, "max_new_tokens": MAX_NEW_TOKENS},
        "denoise": {"min_probability": 0.7},
        "prove": {"proofs": 2, "temperature": TEMPERATURE, "max_new_tokens": MAX_NEW_TOKENS},
        "evaluate": {"max_new_tokens": MAX_NEW_TOKENS},
        "train": {
            "cutoff_len": 512, "use_cpu": True, "lr_scheduler_type": "cosine", "warmup_ratio": 0.05,
            "adam_beta2": 0.98, "num_train_epochs": _EPOCHS_OF_ROUNDS, "save_strategy": "no", **_BATCH,
        },
    }  # fmt: skip
    path = folder / f"self-{seed}.yaml"
    path.write_text(yaml.safe_dump(config), "utf-8")
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
    subprocess.run([sys.executable, "-m", "gram_fast.cli", "self-train", str(path)], check=True, env=surroundings)


def _tested(result: Path, name: str, place: Path, seed: int) -> dict[str, Any]:
    """Tests a judge, or reads its earlier result."""
    if not result.exists():
        torch.set_num_threads(1)
        options: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
        judge = (
            PairwiseJudge.from_pretrained(place, **options)
            if name == "direct"
            else ReasoningJudge.from_pretrained(
                place, votes=max(VOTES), temperature=TEMPERATURE, max_new_tokens=MAX_NEW_TOKENS, **options
            )
        )
        began = time.perf_counter()
        found = {test: measure(judge, rows_of_test(test)) for test in TESTS}
        line = {"judge": name, "seed": seed, **found, "seconds": time.perf_counter() - began}
        result.write_text(json.dumps(line), "utf-8")
    return dict(json.loads(result.read_text("utf-8")))
