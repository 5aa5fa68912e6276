"""How fast training and tests were on this machine, and what a trial will take by that."""

import json
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks.real_judge.inputs import Inputs
from benchmarks.real_judge.trials import Plan, Trial
from gram_fast.training.config import Stage

_MARGIN = 1.1
"""On what is measured, as machines are not equally fast all the time."""
_BOTH_MODES = 3.5
"""On the tests of one mode, for those of both and the groups: on a CPU core they took 41 and 12 minutes."""
_OTHER_STAGE = 1.5
"""On what was measured of another stage: stage 1 also multiplies by the whole output embedding."""
# Dense bfloat16 products with float32 sums, FLOP/s, from the data sheets of the SXM cards.
_PEAKS = {"H100": 989e12, "H200": 989e12}


@dataclass(frozen=True)
class Work:
    """What a training run computes."""

    tokens: int
    """In all epochs."""
    steps: int


def work_of(trial: Trial, plan: Plan, inputs: Inputs) -> Work:
    """Counts the work of a trial's training."""
    if trial.stage is None:
        return Work(0, 0)
    keys = keys_of(trial.stage, plan)
    tokens = int(inputs.lengths(trial.stage)[: trial.pairs].sum())
    return Work(tokens * trial.epochs, ceil(trial.pairs / keys["per_device_train_batch_size"]) * trial.epochs)


def keys_of(stage: Stage, plan: Plan) -> dict[str, Any]:
    """The keys of the training runs of a stage."""
    return {**plan.keys, **plan.stages.get(stage, {})}


class Speeds:
    """Measured speeds, kept in a file: tokens a second and start of each stage, seconds of the tests."""

    def __init__(self, path: Path) -> None:
        """Reads what earlier runs measured."""
        self._path = path
        self._measured: dict[str, dict[str, float]] = json.loads(path.read_text("utf-8")) if path.exists() else {}

    @property
    def knows_training(self) -> bool:
        """Whether training of some stage was measured."""
        return any(stage in self._measured for stage in get_args(Stage))

    def keep(self, name: str, **values: float) -> None:
        """Keeps a measurement, instead of an earlier one: of a stage, or of tests by the name of `tests_of`."""
        self._measured[name] = values
        self._path.write_text(json.dumps(self._measured, indent=2), "utf-8")

    def training(self, stage: Stage, tokens: float) -> float:
        """Estimates the seconds of a training run of so many tokens; 0 where nothing was measured."""
        margins = {other: _MARGIN * (1 if other == stage else _OTHER_STAGE) for other in (stage, *get_args(Stage))}
        found = ((margins[name], self._measured[name]) for name in margins if name in self._measured)
        return next((margin * (of["start"] + tokens / of["tokens_a_second"]) for margin, of in found), 0.0)

    def tests(self, trial: Trial) -> float:
        """Estimates the seconds of a trial's tests; those of a scalar head are at most a judge's."""
        if not trial.is_tested:
            return 0.0
        if measured := self._measured.get(tests_of(trial)):
            return _MARGIN * measured["seconds"]
        times = _BOTH_MODES if trial.both_modes else 1.0
        return _MARGIN * times * self._measured.get("judge", {"seconds": 0.0})["seconds"]


def tests_of(trial: Trial) -> str:
    """Names the kind of tests that a trial has, by which their seconds are kept."""
    if trial.method == "scalar head":
        return "scalar head"
    return "judge in both modes" if trial.both_modes else "judge"


def peak_of(device: str) -> float | None:
    """The most that a device computes, in FLOP/s of products of bfloat16; None where it is not known."""
    return next((flops for name, flops in _PEAKS.items() if name in device), None)


def flops_a_token(stage: Stage, config: dict[str, Any], lengths: np.ndarray[Any, Any]) -> float:
    """Counts what training computes for a token: the products of the forward, and twice as many in the backward.

    They are those of every weight of the layers with every token, in stage 1 of the output embedding with nearly every
    token, and of causal attention. `config` is the model's config.json, `lengths` are those of the sequences.
    """
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or width // heads
    weights = layers * width * (2 * head * (heads + groups) + 3 * config["intermediate_size"])
    weights += config["vocab_size"] * width if stage == "pretrain" else 0
    attention = layers * 2 * heads * head * (lengths.astype(np.float64) ** 2).sum() / lengths.sum()
    return float(3 * (2 * weights + attention))
