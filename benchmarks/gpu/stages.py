"""The stages of benchmarks/run_gpu.sh: what each runs, in which order, and how long it may take.

Needs Python alone: the first stage builds what all others import.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path

OPS = (
    "leaf_attention",
    "path_attention",
    "merge_states",
    "label_logits",
    "add_rms_norm",
    "rotary_into_cache",
    "swiglu",
    "invariant_linear",
    "quantize_rows",
    "add_rms_norm_fp8",
    "swiglu_fp8",
)
"""Those with a backend for a GPU, beside tree attention."""
JUDGES = ("qwen3-1.7b", "qwen3-8b")
"""Models whose random checkpoints are measured."""
LAUNCH_SHAPES = ("64x64x4x3", "128x128x8x2", "64x64x4x2")
"""Of tree attention on sm_90, beside 128x64x8x3, which it takes for a large pass."""
TO_FINISH = 15.0
"""Seconds of a stage that the scorer's own limit leaves for its imports and for its last measurement."""
WORKERS = 12
"""Most test processes at once: each has some 0.5 GB of the GPU's memory before its first test."""


@dataclass(frozen=True)
class Place:
    """Where stages run."""

    python: str
    work: Path
    """Outlives a call: checkpoints, caches of compilers."""
    results: Path
    """What the archive is made of."""
    is_dry: bool = False
    """Whether everything is tiny and on the CPU."""

    def judge(self, shape: str) -> Path:
        """Names the checkpoint of a random judge; in a dry run one stands for all."""
        return self.work / "judges" / ("small" if self.is_dry else shape)


@dataclass(frozen=True)
class Command:
    """One process of a stage."""

    name: str
    """Beside the name of the stage, where that has several."""
    argv: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    is_vital: bool = False
    """Whether nothing after it is worth the time where it fails."""


@dataclass(frozen=True)
class Stage:
    """Commands that run side by side."""

    name: str
    seconds: int
    """Longest that it is planned to take."""
    commands: Callable[[Place, float], list[Command]]
    """Given where, and the seconds until they are stopped."""
    needs: Sequence[str] = ()
    """Judges that must have been written."""
    is_default: bool = True


def module(place: Place, name: str, *arguments: object) -> list[str]:
    """Makes the command line of one of the benchmarks' modules."""
    return [place.python, "-m", f"benchmarks.{name}", *map(str, arguments)]


def build(place: Place, seconds: float, judges: Sequence[str]) -> list[Command]:
    """The extension, for Hopper alone; beside it the random judges that are not there yet."""
    setup, cuda = [place.python, "setup.py", "build_ext"], {"GRAM_FAST_CUDA": "ON", "CUDAARCHS": "90-real"}
    found = [Command("extension", [*setup, "--help" if place.is_dry else "--inplace"], cuda, is_vital=True)]
    for folder in dict.fromkeys(map(place.judge, judges)):
        if not folder.exists():
            options = ("--shape", folder.name, "--dtype", "bfloat16")
            found.append(Command(folder.name, module(place, "random_judge", folder, *options)))
    return found


def canary(place: Place, seconds: float) -> list[Command]:
    """A process for each op, so that one which breaks the GPU's state spoils no other; a tiny judge on all runners."""
    tree = module(place, "gpu.canary", "tree_attention", "--backend")
    found = [Command("tree_attention", [*tree, "triton"], is_vital=True), Command("cascade", [*tree, "cascade"])]
    if place.is_dry:
        return found[:1]
    found += [Command(name, module(place, "gpu.canary", name)) for name in OPS]
    tiny = ["--shape", "small", "--prompt-tokens", 64, "--response-tokens", 64, "--reference", 8, "--knockout", 8]
    few = ["--strategies", "reference", "knockout", "--only", "transformers", "fp8", "deterministic", "--repeats", 1]
    limits = ["--dtype", "bfloat16", "--limit", max(seconds - TO_FINISH, 1)]
    return [*found, Command("judge", module(place, "scorer.run", *tiny, *few, *limits))]


def kernels(place: Place, seconds: float) -> list[Command]:
    """Every kernel's speed at the sizes of the larger model; attention over one forest, in four launch shapes."""
    chosen = ["--forests", "mixed-lengths", "--heads", "qwen3-8b", "--shapes", *LAUNCH_SHAPES]
    if place.is_dry:
        chosen = ["--forests", "tiny", "--heads", "small", "--shapes", "16x16x4x2", "--rivals", "SDPA, dense mask"]
    return [Command("", module(place, "kernel_speed.run", *chosen, "--output", place.results / "kernels.json"))]


def scorer(place: Place, seconds: float, judge: str) -> list[Command]:
    """From text to preferences, 64 responses, all contenders that fit into the time."""
    sizes = ["--reference", 64, "--knockout", 64, "--strategies", "reference", "knockout", "--dtype", "bfloat16"]
    if place.is_dry:
        sizes = ["--reference", 4, "--strategies", "reference", "--only", "padded", "--repeats", 1]
    where = ["--model", place.judge(judge), "--output", place.results / f"scorer-{judge}.json"]
    return [Command("", module(place, "scorer.run", *where, *sizes, "--limit", max(seconds - TO_FINISH, 1)))]


def factored(place: Place, seconds: float) -> list[Command]:
    """A round robin of 64 responses of 512 tokens, each read by itself, beside exact sharing and padded batches."""
    sizes = ["--n", 64, "--responses", 512, "--prompt", 512, "--most-tokens", 200_000]
    if place.is_dry:
        sizes = ["--n", 2, "--responses", 8, "--prompt", 8, "--repeats", 1]
    where = ["--model", place.judge("qwen3-8b"), "--output", place.results / "factored.json"]
    return [Command("", module(place, "factored", *where, *sizes))]


def pytest(place: Place, markers: str, *arguments: str) -> list[str]:
    """Makes the command line of the tests with these markers, all that there are unless paths are given."""
    plugins = ["-p", "no:cacheprovider", "-p", "benchmarks.gpu.left_out", "--continue-on-collection-errors"]
    options = ["-v", "-m", markers, *plugins, *arguments]
    few = ["tests/ops/test_swiglu.py"] if place.is_dry else []
    return [place.python, "-m", "pytest", *options, *few]


def tests(place: Place, seconds: float) -> list[Command]:
    """The tests that need a GPU, side by side."""
    options = ["-n", str(min(os.cpu_count() or 1, WORKERS)), "--dist", "worksteal"] if find_spec("xdist") else []
    options += ["--timeout", "60"] if find_spec("pytest_timeout") else []
    return [Command("", pytest(place, "gpu and not large_memory", *options), {"OMP_NUM_THREADS": "1"})]


def large_tests(place: Place, seconds: float) -> list[Command]:
    """Those that take more than 4 GB of its memory, one after the other."""
    return [Command("", pytest(place, "gpu and large_memory"))]


def sanitizer(place: Place, seconds: float) -> list[Command]:
    """Tests of strides under compute-sanitizer; each tensor is an allocation of its own: a step beyond it is seen."""
    under = [] if place.is_dry else ["compute-sanitizer", "--error-exitcode", "9"]
    of_strides = pytest(place, "gpu and not large_memory", "-k", "test_strides or test_strided_inputs")
    return [Command("", [*under, *of_strides], {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})]


STAGES = (
    Stage("build", 100, partial(build, judges=JUDGES)),
    Stage("canary", 50, canary),
    Stage("kernels", 60, kernels),
    Stage("scorer-1.7b", 80, partial(scorer, judge="qwen3-1.7b"), needs=("qwen3-1.7b",)),
    Stage("scorer-8b", 150, partial(scorer, judge="qwen3-8b"), needs=("qwen3-8b",)),
    Stage("tests", 100, tests),
    Stage("tests-large", 40, large_tests),
    Stage("factored", 110, factored, needs=("qwen3-8b",), is_default=False),
    Stage("sanitizer", 120, sanitizer, is_default=False),
)
"""In the order in which they run; the first builds, and is part of every call."""
DEFAULT_SECONDS, AGAIN_SECONDS = 580, 230
"""Longest that a call takes, with all default stages and with some that are repeated, but for ten seconds to stop."""


def chosen(again: Sequence[str]) -> list[Stage]:
    """Lists the stages of a call: the default ones, or those to repeat behind a build of what they need."""
    if not again:
        return [stage for stage in STAGES if stage.is_default]
    found = [stage for stage in STAGES[1:] if stage.name in again]
    judges = [judge for judge in JUDGES if any(judge in stage.needs for stage in found)]
    return [Stage("build", STAGES[0].seconds, partial(build, judges=judges)), *found]
