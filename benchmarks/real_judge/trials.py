"""What is tried, on a CPU and on a GPU, and what of it fits into the time that is left."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from benchmarks.real_judge.inputs import Sizes
from gram_fast.extension import _C
from gram_fast.training.config import Stage

Method = Literal["zero-shot", "stage 1", "stage 2", "two stages", "scalar head"]

_STAGES: dict[Method, Stage] = {
    "stage 1": "pretrain",
    "stage 2": "finetune",
    "two stages": "finetune",
    "scalar head": "scalar",
}


@dataclass(frozen=True)
class Trial:
    """One training run and its tests. Stage 1 is a run of its own, from which the trials of two stages start."""

    method: Method
    pairs: int = 0
    """Labeled pairs, in stage 1 unlabeled ones."""
    smoothing: float = 0.1
    seed: int = 0
    epochs: int = 1
    both_modes: bool = False
    """Stage 2 with each pair in mode "full" or "factored", and tests in both."""

    @property
    def name(self) -> str:
        """The name of the trial's folder."""
        again = f"-{self.epochs}-epochs" if self.epochs > 1 else ""
        modes = "-both-modes" if self.both_modes else ""
        return f"{self.method.replace(' ', '-')}-{self.pairs}-{self.smoothing}-{self.seed}{again}{modes}"

    @property
    def stage(self) -> Stage | None:
        """The stage that is trained, None for zero-shot."""
        return _STAGES.get(self.method)

    @property
    def is_tested(self) -> bool:
        """Whether it makes a judge of its own."""
        return self.method != "stage 1"


@dataclass(frozen=True)
class Plan:
    """Trials, the most telling first, and how they are trained."""

    sizes: Sizes
    trials: Sequence[Trial]
    keys: dict[str, Any]
    """Keys of every training run."""
    stages: dict[Stage, dict[str, Any]] = field(default_factory=dict)
    """Keys of the runs of one stage."""
    judge: dict[str, Any] = field(default_factory=dict)
    """Options with which judges are loaded."""
    probe_steps: int = 3
    """Steps of the run by which the speed of training is measured before the first trial."""


Seconds = Callable[[Trial], float]
"""Estimates how long a trial takes, training and tests, from where an interrupted one goes on."""

_PARTS = (1, 2, 4)
"""A trial that does not fit is tried with a half and a quarter of its pairs, but not with fewer."""


def choose(trials: Sequence[Trial], done: Collection[Trial], seconds: Seconds, left: float) -> Trial | None:
    """Chooses the first trial that can be run in `left` seconds, with fewer pairs where all would not fit.

    Args:
        trials: in the order of how much they tell.
        done: trials that are finished, also those with fewer pairs than planned.
        seconds: estimates the time of a trial.
        left: seconds that are left.

    Trials of two stages wait for their stage 1, and stage 1 is run only where one of them fits behind it.
    """
    for trial in trials:
        if trial.method == "two stages" and stage_1_of(trial, done) is None:
            continue
        after = 0.0
        if trial.method == "stage 1":
            if stage_1_of(trial, done) is not None:
                continue
            followers = (t for t in trials if t.method == "two stages" and t.seed == trial.seed)
            after = min(map(seconds, followers), default=0.0)
        for smaller in open_sizes(trial, done):
            if seconds(smaller) + after <= left:
                return smaller
    return None


def open_sizes(trial: Trial, done: Collection[Trial]) -> Iterator[Trial]:
    """Yields a trial with all its pairs, then with fewer, down to the largest number that is done."""
    for part in _PARTS if trial.pairs else (1,):
        smaller = replace(trial, pairs=trial.pairs // part)
        if smaller in done:
            return
        yield smaller


def stage_1_of(trial: Trial, done: Collection[Trial]) -> Trial | None:
    """Finds the finished stage 1 from which a trial starts, of the same seed."""
    found = [other for other in done if other.method == "stage 1" and other.seed == trial.seed]
    return max(found, key=lambda other: other.pairs, default=None)


# Without AMX, products in bfloat16 take twice as long as in float32: 85 and 159 GFLOP/s of a core with AVX-512.
_CPU_DTYPE = "bfloat16" if _C.has_amx() else "float32"
_LAST_LAYERS = list(range(22, 30))
_KEYS = {
    "cutoff_len": 2048,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "bf16": True,
    "logging_steps": 5,
    "save_total_limit": 1,
}
CPU = Plan(
    Sizes(4000, 4000, {"dev": 300, "rmbench": 12, "judgebench": 40}, max_tokens=320, max_test_tokens=1024),
    (
        Trial("zero-shot"),
        Trial("stage 2", 250),
        Trial("stage 1", 1000),
        Trial("two stages", 250),
        Trial("stage 2", 1000),
        Trial("two stages", 1000),
        Trial("scalar head", 1000),
        Trial("stage 2", 1000, smoothing=0.0),
        Trial("scalar head", 250),
        Trial("stage 2", 4000),
        Trial("stage 2", 4000, both_modes=True),
        Trial("two stages", 4000),
        Trial("scalar head", 4000),
    ),
    # Adapters in float32 on the last 8 of 30 layers: on a core with AMX, 690 tokens a second against 205 with all
    # weights, which are in bfloat16 there, so that steps of this size are lost in rounding. Short pairs: the same
    # labels, sooner.
    {
        **_KEYS,
        "use_cpu": True,
        "bf16": _CPU_DTYPE == "bfloat16",
        "dtype": _CPU_DTYPE,
        "lora": {"r": 64, "lora_alpha": 128, "layers_to_transform": _LAST_LAYERS},
        # Of 8 pairs, 125 steps of stage 2 did not leave the loss of a judge that does not know, 0.693.
        "per_device_train_batch_size": 4,
        # Both orders of a pair share the prompt: a quarter of the tokens.
        "pairs_together": 2,
        "learning_rate": 3e-4,
    },
    judge={"device": "cpu", "dtype": _CPU_DTYPE},
)
GPU = Plan(
    Sizes(17508, 20000, {"dev": 1062, "rmbench": 129, "judgebench": 350}, max_tokens=2048, max_test_tokens=4096),
    (
        Trial("zero-shot"),
        Trial("stage 2", 4000, epochs=2),
        Trial("stage 1", 20000),
        Trial("two stages", 4000, epochs=2),
        Trial("scalar head", 4000, epochs=2),
        Trial("stage 2", 1000, epochs=3),
        Trial("two stages", 1000, epochs=3),
        Trial("stage 2", 17508),
        Trial("two stages", 17508),
        Trial("stage 2", 4000, smoothing=0.0, epochs=2),
        Trial("stage 2", 17508, both_modes=True),
        Trial("scalar head", 17508),
        Trial("scalar head", 1000, epochs=3),
        Trial("stage 2", 250, epochs=3),
        Trial("two stages", 250, epochs=3),
    ),
    {**_KEYS, "per_device_train_batch_size": 8, "learning_rate": 5e-5},
    {"pretrain": {"per_device_train_batch_size": 32}},
    {"device": "cuda", "dtype": "bfloat16"},
    probe_steps=10,
)
TINY = replace(
    CPU,
    sizes=Sizes(8, 16, {"dev": 2, "rmbench": 1, "judgebench": 1}, max_tokens=300, max_test_tokens=640, groups=1),
    trials=(
        Trial("zero-shot"),
        Trial("stage 1", 16),
        Trial("two stages", 8),
        Trial("scalar head", 8),
        Trial("stage 2", 8, both_modes=True),
    ),
    probe_steps=1,
)
"""For trying out whether everything starts and ends."""
PLANS = {"cpu": CPU, "cuda": GPU, "tiny": TINY}
