"""The stages of benchmarks/run_gpu.sh: their limits, what becomes of one that fails, and what the archive keeps."""

import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple
from pathlib import Path

import pytest
import torch

from benchmarks import random_judge
from benchmarks.gpu import canary
from benchmarks.gpu import run as gpu_run
from benchmarks.gpu.run import deadlines, keep, run_all
from benchmarks.gpu.stages import (
    AGAIN_SECONDS,
    DEFAULT_SECONDS,
    JUDGES,
    LAUNCH_SHAPES,
    OPS,
    STAGES,
    Command,
    Place,
    Stage,
    chosen,
)
from benchmarks.kernel_speed.options import launch_shape as read_launch_shape
from benchmarks.kernel_speed.options import read_options as kernel_options
from benchmarks.scorer.options import read_options as scorer_options
from gram_fast import ops
from gram_fast.kernels.tree_attention_triton import OTHER_SHAPES, launch_shape
from gram_fast.ops.backends import op_module

REPOSITORY = Path(__file__).parents[2]
CUDA = torch.device("cuda")


@pytest.fixture
def signals() -> Iterator[None]:
    """Those of a run, whatever the tests were started by."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    gpu_run.handle_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    found = Place(sys.executable, tmp_path, tmp_path / "results")
    found.results.mkdir()
    return found


def python(source: str, name: str = "", is_vital: bool = False) -> Command:
    return Command(name, [sys.executable, "-c", source], is_vital=is_vital)


def stage(name: str, *commands: Command, seconds: int = 60) -> Stage:
    return Stage(name, seconds, lambda place, left: list(commands))


def run(place: Place, *stages: Stage) -> tuple[int, list[str], dict[str, str]]:
    """Exit code, summary, and what the archive has."""
    archive = place.work / "results.tar.gz"
    code = run_all(stages, deadlines(stages, 1000), place, archive)
    kept = contents(archive)
    return code, kept["summary.txt"].splitlines(), kept


def contents(archive: Path) -> dict[str, str]:
    with tarfile.open(archive) as packed:
        return {name: packed.extractfile(name).read().decode() for name in packed.getnames()}  # type: ignore[union-attr]


def test_the_figures_come_within_440_seconds_and_all_within_ten_minutes() -> None:
    stages = chosen([])
    ends = dict(zip([stage.name for stage in stages], deadlines(stages, DEFAULT_SECONDS), strict=True))
    assert list(ends) == ["build", "canary", "kernels", "scorer-1.7b", "scorer-8b", "tests", "tests-large"]
    assert ends["scorer-8b"] <= 440
    assert ends["tests-large"] + gpu_run.GRACE <= 590
    assert ends["tests-large"] == sum(stage.seconds for stage in stages)  # nothing is cut


def test_stages_are_repeated_within_four_minutes_behind_a_build_of_what_they_need(place: Place) -> None:
    stages = chosen(["sanitizer", "scorer-8b", "tests"])
    assert [stage.name for stage in stages] == ["build", "scorer-8b", "tests", "sanitizer"]
    assert max(deadlines(stages, AGAIN_SECONDS)) + gpu_run.GRACE <= 240
    assert [command.name for command in stages[0].commands(place, 9.0)] == ["extension", "qwen3-8b"]
    place.judge("qwen3-8b").mkdir(parents=True)
    assert [command.name for command in stages[0].commands(place, 9.0)] == ["extension"]
    assert [command.name for command in chosen([])[0].commands(place, 9.0)] == ["extension", "qwen3-1.7b"]


def test_the_canary_has_a_process_for_every_op_that_runs_on_a_gpu(place: Place) -> None:
    on_gpu = [name for name in ops.BACKENDS if len(op_module(name).BACKENDS.names) > 1 + len(cpu_only(name))]
    assert sorted([*OPS, "tree_attention"]) == sorted(on_gpu) == sorted(canary.CASES)
    commands = next(stage for stage in STAGES if stage.name == "canary").commands(place, 50.0)
    assert [command.name for command in commands] == ["tree_attention", "cascade", *OPS, "judge"]
    assert [command.name for command in commands if command.is_vital] == ["tree_attention"]


def cpu_only(op: str) -> tuple[str, ...]:
    found: tuple[str, ...] = op_module(op).BACKENDS.cpu_only
    return found


def test_the_scorer_ends_before_its_stage(place: Place) -> None:
    for name in ("scorer-1.7b", "scorer-8b"):
        (command,) = next(stage for stage in STAGES if stage.name == name).commands(place, 90.0)
        assert float(command.argv[command.argv.index("--limit") + 1]) == 75.0
        assert str(place.judge(f"qwen3-{name.removeprefix('scorer-')}")) in command.argv
    assert {need for stage in STAGES for need in stage.needs} == set(JUDGES)


def test_the_launch_shapes_are_those_that_the_kernel_names() -> None:
    large, small = (launch_shape(128, 2, 4, programs, 9) for programs in (1000, 10))
    timed = [read_launch_shape(text) for text in LAUNCH_SHAPES]
    assert sorted(map(astuple, timed)) == sorted(map(astuple, {small, *OTHER_SHAPES} - {large}))


def test_every_command_line_is_understood(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a real run, which a dry run does not start."""
    readers = {
        "benchmarks.scorer.run": lambda: scorer_options(CUDA, ""),
        "benchmarks.kernel_speed.run": lambda: kernel_options(CUDA, ""),
        "benchmarks.gpu.canary": lambda: canary.parser().parse_args(),
        "benchmarks.random_judge": lambda: random_judge.parser().parse_args(),
    }
    read = []
    for stage in STAGES:
        for command in stage.commands(place, 90.0):
            name = command.argv[2]
            if name in readers:
                monkeypatch.setattr("sys.argv", ["program", *command.argv[3:]])
                readers[name]()
                read.append(name)
    assert set(read) == set(readers)
    assert len(read) == len(JUDGES) + 2 + len(OPS) + 1 + 1 + len(JUDGES)


def test_what_a_stage_leaves_is_the_next_ones() -> None:
    stages = [stage(name, seconds=seconds) for name, seconds in (("a", 10), ("b", 20), ("c", 30))]
    assert deadlines(stages, 50) == [10, 30, 50]


def test_a_stage_that_fails_does_not_stop_the_next(place: Place) -> None:
    broken = stage("broken", python("print('so far'); raise SystemExit('why it broke')"))
    code, summary, kept = run(place, broken, stage("fine", python("print('a figure'); print('{\"json\": 1}')")))
    assert code == 1
    assert summary[0].split(maxsplit=5)[5] == "failed (1)  why it broke"
    assert summary[1].split(maxsplit=5)[5] == "ok  a figure"
    assert kept["broken.log"] == "so far\nwhy it broke\n"


def test_a_program_that_is_missing_is_named(place: Place) -> None:
    code, summary, _ = run(place, stage("tool", Command("", ["no-such-sanitizer", "--option"])))
    assert code == 1
    assert "No such file or directory: 'no-such-sanitizer'" in summary[0]


def test_a_failure_of_what_is_vital_ends_the_run(place: Place) -> None:
    one, other = python("raise SystemExit('wrong')", "tree", is_vital=True), python("print('right')", "other")
    code, summary, kept = run(place, stage("canary", one, other), stage("after", python("")))
    assert code == 1
    assert len(summary) == 1
    assert summary[0].endswith("tree: failed (1)  wrong")
    assert kept["canary-other.log"] == "right\n"
    code, summary, _ = run(place, stage("canary", python("raise SystemExit(1)", "other"), python("", "tree", True)))
    assert summary[-1].split(maxsplit=5)[5].startswith("other: failed (1)")


@pytest.mark.usefixtures("signals")
def test_a_stage_is_stopped_with_its_children_and_says_what_it_has(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
import subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", deaf])
print(child.pid, flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("so far", flush=True)
    time.sleep(60)
"""
    began = time.monotonic()
    monkeypatch.setattr(gpu_run, "GRACE", 1.0)
    code, summary, kept = run(place, stage("slow", python(source), seconds=5))
    assert time.monotonic() - began < 30
    assert code == 1
    assert summary[0].endswith("out of time  so far")
    assert eventually(lambda: not is_running(int(kept["slow.log"].split()[0])))


def is_running(process: int) -> bool:
    """A zombie, which waits for whoever adopts it, is not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(condition: Callable[[], bool]) -> bool:
    for _ in range(100):
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_the_archive_is_whole_whenever_it_ends(tmp_path: Path) -> None:
    source = f"""
import sys
from pathlib import Path
from benchmarks.gpu.run import handle_signals, run_all
from benchmarks.gpu.stages import Command, Place, Stage
place = Place(sys.executable, Path({str(tmp_path)!r}), Path({str(tmp_path / "results")!r}))
place.results.mkdir()
def stage(name, source):
    return Stage(name, 60, lambda place, left: [Command("", [sys.executable, "-c", source])])
stages = stage("first", "print(1)"), stage("second", "import time; print(2, flush=True); time.sleep(60)")
handle_signals()
run_all(stages, [60, 120], place, place.work / "results.tar.gz")
"""
    with subprocess.Popen([sys.executable, "-c", source], cwd=REPOSITORY, stderr=subprocess.DEVNULL) as process:
        log = tmp_path / "results" / "second.log"
        assert eventually(lambda: log.exists() and log.read_text() == "2\n")
        assert contents(tmp_path / "results.tar.gz")["first.log"] == "1\n"
        os.kill(process.pid, signal.SIGTERM)
    assert process.returncode != 0
    assert contents(tmp_path / "results.tar.gz")["second.log"] == "2\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results", "results.tar.gz"]


def test_long_logs_are_kept_without_their_middle(place: Place) -> None:
    lines = [f"line {number}" for number in range(400_000)]
    (place.results / "long.log").write_text("\n".join(lines))
    keep(place, place.work / "results.tar.gz")
    kept = contents(place.work / "results.tar.gz")["long.log"]
    assert len(kept) < 2.1 * 2**20
    assert kept.startswith("line 0\n")
    assert kept.endswith("line 399999")


def test_a_random_judge_is_written_without_the_extension(tmp_path: Path) -> None:
    source = """
import sys
sys.modules["gram_fast"] = None
from benchmarks import random_judge
random_judge.SHAPES["small"] = random_judge.ModelSizes(32, 48, 2, 4, 2, 8)
sys.argv = ["random_judge.py", "judge", "--dtype", "bfloat16"]
random_judge.main()
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", source]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "judge").iterdir()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["judge"]


def test_files_that_miss_a_package_are_left_out_of_the_tests(tmp_path: Path) -> None:
    (tmp_path / "test_missing.py").write_text("import no_such_package")
    (tmp_path / "test_broken.py").write_text("import helpers.no_such_module")
    (tmp_path / "test_fine.py").write_text("def test_fine():\n    pass")
    options = ["-p", "benchmarks.gpu.left_out", "-p", "no:cacheprovider", "--continue-on-collection-errors", "-rs"]
    command = [sys.executable, "-m", "pytest", "--rootdir", str(tmp_path), *options, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs the package no_such_package" in done.stdout
    assert "1 passed, 1 skipped, 1 error" in done.stdout


def test_the_script_and_the_pages_name_every_stage() -> None:
    script = (REPOSITORY / "benchmarks/run_gpu.sh").read_text("utf-8")
    assert all(f"#   {stage.name:<13} " in script for stage in STAGES)
