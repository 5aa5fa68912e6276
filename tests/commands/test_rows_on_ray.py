"""--ray: the rows of a run without it, in order, whatever becomes of judges."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.ray_cluster import Cluster
from helpers.small_models import write_judge
from typer.testing import CliRunner

from gram_fast.cli import app
from gram_fast.commands.options import ModelOptions, RowOptions
from gram_fast.commands.ray_judges import find_places
from gram_fast.errors import InputError

# Small passes make small chunks, of which a run has many.
SMALL = ["--max-batch-tokens", "64"]
ROWS = [
    {"id": k, "prompt": f"Name colour {k}.", "responses": [f"Blue {k}.", "Red. " * (1 + k % 7), f"{k} {k}"]}
    for k in range(240)
]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rank(cluster: Cluster, *arguments: Any, **more: Any) -> subprocess.Popen[str]:
    """Starts the command on the cluster."""
    command = [sys.executable, "-m", "gram_fast", "rank", *map(str, arguments)]
    return subprocess.Popen(command, env=cluster.environment, stderr=subprocess.PIPE, text=True, **more)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def expected(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The output of a run in this process."""
    folder = tmp_path_factory.mktemp("here")
    source, output = write_rows(folder / "in.jsonl", ROWS), folder / "out.jsonl"
    assert (
        CliRunner().invoke(app, list(map(str, ["rank", "-m", checkpoint, "-i", source, "-o", output]))).exit_code == 0
    )
    return read_rows(output)


def check_equal(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)  # other passes, other sums
        assert one["run"] == other["run"]
        assert one["input_digest"] == other["input_digest"]


def test_no_row_is_lost_to_a_judge_that_ends(
    cluster: Cluster, checkpoint: Path, tmp_path: Path, expected: list[Any]
) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    with rank(cluster, "-m", checkpoint, "-i", source, "-o", output, "--ray", "--judges", 2, *SMALL) as run:
        while not (output.exists() and output.stat().st_size):
            assert run.poll() is None, run.stderr and run.stderr.read()
            time.sleep(0.01)
        cluster.kill_one("ray::Judge")
        written = len(read_rows(output))
        assert run.stderr is not None
        said = run.stderr.read()
        assert run.wait() == 0, said
    assert written < len(ROWS) / 2, "it ended too late to show anything"
    assert "a judge on Ray ended, another is started" in said
    assert f"{len(ROWS)} rows written, 0 already there, 0 skipped" in said
    check_equal(read_rows(output), expected)


def test_a_run_goes_on_where_one_without_ray_stopped(
    cluster: Cluster, checkpoint: Path, tmp_path: Path, expected: list[Any]
) -> None:
    """One row of those that are left cannot be scored: it is named, in its place, and passed over."""
    rows = [*ROWS[:40], {**ROWS[40], "prompt": "Name " * 5000}, *ROWS[41:60]]
    source, output = write_rows(tmp_path / "in.jsonl", rows), write_rows(tmp_path / "out.jsonl", expected[:25])
    arguments = ["-m", checkpoint, "-i", source, "-o", output, "--resume", "--skip-bad", "--ray", "--judges", 2]
    with rank(cluster, *arguments, *SMALL) as run:
        said = run.communicate()[1]
    assert run.returncode == 0, said
    assert "in.jsonl line 41: " in said
    assert "34 rows written, 25 already there, 1 skipped" in said
    check_equal(read_rows(output), [*expected[:40], *expected[41:60]])


def test_rows_that_come_live_are_answered_while_the_next_is_not_there(cluster: Cluster, checkpoint: Path) -> None:
    """A judge ends between two of them, and nothing but rows is on standard output."""
    arguments = ["-m", checkpoint, "--ray", "--judges", 1, "--brief"]
    with rank(cluster, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        for row in ROWS[:3]:
            run.stdin.write(json.dumps(row) + "\n")
            run.stdin.flush()
            assert json.loads(run.stdout.readline())["id"] == row["id"]
            if row["id"] == 1:
                cluster.kill_one("ray::Judge")
        run.stdin.close()
        assert run.stderr is not None
        assert "a judge on Ray: behind a prompt that ends in" in run.stderr.read()  # what a random judge warns of
        assert run.wait() == 0


def test_what_cannot_be_loaded_is_one_sentence(cluster: Cluster, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", ROWS[:2])
    with rank(cluster, "-m", tmp_path, "-i", source, "--ray", "--device", "cuda") as run:
        said = run.communicate()[1]
    assert run.returncode == 2
    assert "Traceback" not in said


def test_faults_end_no_more_than_they_must(cluster: Cluster, tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "helpers" / "ray_drivers.py"
    done = subprocess.run(
        [sys.executable, script, "faults", tmp_path / "first"],
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    scored, error = found["poison"]
    assert scored == [0, 1, 2]
    assert "line 3 to line 3: 3 judges on Ray ended on these rows" in error
    assert found["bad row"] == [[10, 11, 12, 13, 14], "line 15: expected JSON"]
    assert found["lacking"] == [list(range(10, 30)), ""]
    assert "fewer go on (there is no checkpoint here)" in done.stderr


NO_GPU, GPUS = {"CPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("device", "count", "machines", "expected"),
    [
        ("auto", None, [NO_GPU, NO_GPU], (2, {"num_cpus": 8})),
        ("auto", None, [{"CPU": 0.0}, NO_GPU, NO_GPU], (2, {"num_cpus": 8})),  # a head that offers nothing
        ("cpu", 3, [{"CPU": 5.0}, {"CPU": 5.0}], (3, {"num_cpus": 2})),
        ("cpu", 20, [NO_GPU, NO_GPU], (20, {"num_cpus": 1})),
        ("auto", None, [NO_GPU, GPUS, GPUS], (8, {"num_gpus": 1})),
        ("cuda", 2, [GPUS], (2, {"num_gpus": 1})),
        ("cpu", None, [GPUS], (1, {"num_cpus": 16})),
    ],
)
def test_there_is_a_judge_for_each_gpu_or_machine(
    device: str, count: int | None, machines: list[dict[str, float]], expected: tuple[int, dict[str, int]]
) -> None:
    assert find_places(ModelOptions(model="m", device=device), count, machines) == expected


def test_a_judge_of_a_server_alone_takes_no_gpu() -> None:
    of_server = RowOptions(model="m", engine="http://h:1", no_second_step=True)
    assert find_places(of_server, None, [GPUS]) == (1, {"num_cpus": 16})
    assert find_places(RowOptions(model="m", engine="http://h:1"), None, [GPUS])[1] == {"num_gpus": 1}


def test_a_gpu_that_no_machine_has_is_an_error() -> None:
    with pytest.raises(InputError, match="--device cuda: expected a Ray cluster with GPUs, this one has none"):
        find_places(ModelOptions(model="m", device="cuda"), None, [NO_GPU])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--judges", "2"], "--judges 2: expected at least 1, beside --ray"), (["--ray", "--judges", "0"], "--judges 0")],
)
def test_wrong_options(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["rank", "-m", "nothing", *arguments])
    assert message in str(result.exception)
