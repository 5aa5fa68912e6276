"""benchmarks/run_gpu.sh with a stand-in for python: what it runs, and what it makes of a part that fails."""

import os
import re
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "run_gpu.sh"


def run(folder: Path, python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    stub = folder / "python-for-run-gpu"
    stub.write_text(f"#!/bin/sh\n{python}\n", "utf-8")
    stub.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(stub), "TMPDIR": str(folder)}
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


def summary(folder: Path) -> dict[str, str]:
    lines = (folder / "summary.txt").read_text("utf-8").splitlines()
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}


def test_every_part_runs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(tmp_path, 'echo "ran $*"', str(out), str(tmp_path / "data.json"))
    assert done.returncode == 0, done.stderr
    assert {"build", "tests", "sanitizer", "kernel_speed", "scorer-1.7b", "scorer-8b"} == set(summary(out))
    assert "build_ext --inplace" in (out / "build.log").read_text("utf-8")
    tests = (out / "tests.log").read_text("utf-8")
    assert "-m gpu" in tests
    assert "tests/ops/test_tree_attention.py" in tests
    assert "tests/evaluation/test_evaluation.py" not in tests
    benchmark = (out / "kernel_speed.log").read_text("utf-8")
    assert f"--data {tmp_path}/data.json --output {out}/kernel_speed.json" in benchmark
    for size in ("1.7b", "8b"):
        scorer = (out / f"scorer-{size}.log").read_text("utf-8")
        assert f"-m benchmarks.scorer.run --shape qwen3-{size} --limit" in scorer
        assert f"--output {out}/scorer-{size}.json" in scorer
    assert done.stdout.endswith((out / "summary.txt").read_text("utf-8"))


def test_a_part_that_fails_does_not_stop_the_next(tmp_path: Path) -> None:
    done = run(tmp_path, 'case "$*" in *setup.py*) echo broken; exit 3;; esac; echo fine', str(tmp_path / "out"))
    assert done.returncode == 1
    parts = summary(tmp_path / "out")
    assert parts["build"].startswith("failed (3)")
    assert parts["build"].endswith("broken")
    assert parts["kernel_speed"].startswith("ok")
    assert parts["kernel_speed"].endswith("fine")


@pytest.mark.parametrize("arguments", [[], ["a", "b", "c"]])
def test_how_it_is_called(tmp_path: Path, arguments: list[str]) -> None:
    done = run(tmp_path, "exit 0", *arguments)
    assert done.returncode == 2
    assert "usage: benchmarks/run_gpu.sh OUTDIR [DATA]" in done.stderr


def part_limits() -> dict[str, int]:
    lines = [line.split() for line in SCRIPT.read_text("utf-8").splitlines() if "part " in line.strip()[:5]]
    return {words[1]: int(words[2]) for words in lines}


def test_its_parts_take_less_than_twenty_minutes() -> None:
    limits = part_limits()
    assert len(limits) == 6
    assert sum(limits.values()) < 1200


def test_the_benchmark_ends_before_its_part_does() -> None:
    own = dict(re.findall(r"part (scorer-\S+) .* --limit (\d+) ", SCRIPT.read_text("utf-8")))
    assert set(own) == {"scorer-1.7b", "scorer-8b"}
    assert all(int(seconds) < part_limits()[name] - 30 for name, seconds in own.items())
