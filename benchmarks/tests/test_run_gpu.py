"""benchmarks/run_gpu.sh with a stand-in for python: what it runs, and what it makes of a part that fails."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "benchmarks" / "run_gpu.sh"
HELPERS = REPOSITORY / "tests" / "helpers"


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


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The test files that the script gives to pytest."""
    folder = tmp_path_factory.mktemp("files")
    run(folder, 'echo "$*"', str(folder / "out"))
    return set(re.findall(r"tests/\S+\.py", (folder / "out" / "tests.log").read_text("utf-8")))


def marks_gpu(node: ast.AST) -> bool:
    """Whether `mark.gpu` stands somewhere in that source."""
    return any(
        isinstance(inner, ast.Attribute) and inner.attr == "gpu" and ast.unparse(inner.value).endswith("mark")
        for inner in ast.walk(node)
    )


def names_in(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def helpers_that_mark() -> set[str]:
    """Names that a module of tests/helpers gives to something marked gpu."""
    found = set()
    for path in HELPERS.glob("*.py"):
        for statement in ast.parse(path.read_text("utf-8")).body:
            if isinstance(statement, ast.Assign) and marks_gpu(statement.value):
                found |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
            elif isinstance(statement, ast.FunctionDef) and marks_gpu(statement):
                found.add(statement.name)
    return found


def test_it_finds_every_file_with_tests_marked_gpu_and_no_other(files: set[str]) -> None:
    helpers, marked = helpers_that_mark(), set()
    assert helpers == {"on_each_device"}
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        if marks_gpu(tree) or names_in(tree) & helpers:
            marked.add(path.relative_to(REPOSITORY).as_posix())
    assert files == marked


def test_pytest_collects_from_those_files_and_not_from_others(files: set[str]) -> None:
    """On a few small files: one marked by the helper, one marked itself, one without tests for a GPU."""
    some = {"tests/ops/test_swiglu.py", "tests/models/dense/test_graphs.py", "tests/ops/test_offline.py"}
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *sorted(some)], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stdout
    assert set(re.findall(r"^(\S+\.py)::", done.stdout, re.MULTILINE)) == files & some


def imported(path: Path) -> Iterator[str]:
    """Top-level packages that a test file imports, by itself or through tests/helpers."""
    for statement in ast.parse(path.read_text("utf-8")).body:
        if isinstance(statement, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            module = str(statement.module)
            if module.startswith("helpers."):
                yield from imported(HELPERS / f"{module.removeprefix('helpers.')}.py")
            yield module.partition(".")[0]


def test_the_header_names_what_those_files_import(files: set[str]) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    required = {re.split("[^a-z]", name)[0] for name in project["dependencies"]}
    header = SCRIPT.read_text("utf-8").partition("set -")[0]
    found = {name for file in files for name in imported(REPOSITORY / file)} | set(imported(HELPERS / "fixtures.py"))
    for name in found - required - set(sys.stdlib_module_names) - {"helpers", "gram_fast", "torch"}:
        assert re.search(rf"\b{name}\b", header), name


def test_what_it_refers_to_exists() -> None:
    text = SCRIPT.read_text("utf-8")
    paths, modules = re.findall(r"benchmarks/[\w/.]+\.\w+", text), re.findall(r"-m (benchmarks[\w.]+)", text)
    assert paths
    assert modules
    assert all((REPOSITORY / path).exists() for path in paths)
    assert all(importlib.util.find_spec(module) for module in modules)
