"""benchmarks/run_gpu.sh from its command line: every stage starts without a GPU, finds its files and ends."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks.gpu.stages import JUDGES, STAGES

SCRIPT = Path(__file__).parents[1] / "run_gpu.sh"


def run(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = ["env", f"PYTHON={sys.executable}", "bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def test_a_dry_run_of_all_stages(tmp_path: Path) -> None:
    done = run("out", "--dry-run", folder=tmp_path)
    with tarfile.open(tmp_path / "out/results.tar.gz") as archive:
        kept = {name: archive.extractfile(name).read().decode() for name in archive.getnames()}  # type: ignore[union-attr]
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{kept}"
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [stage.name for stage in STAGES]
    assert all(" ok " in line for line in lines)
    assert kept["summary.txt"] == done.stdout
    assert {"kernels.json", *(f"scorer-{judge}.json" for judge in JUDGES)} < set(kept)
    assert all(any(name.startswith(stage.name) for name in kept) for stage in STAGES)
    assert "tree_attention (triton) at the sizes of small: right" in kept["canary-tree_attention.log"]
    assert "test_offsets_beyond_32_bits[triton-cuda] SKIPPED" in kept["tests-large.log"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.tar.gz", "dry-run"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: OUTDIR"),
        (["out", "more"], "unrecognized arguments: more"),
        (["out", "--again", "everything"], "argument --again: invalid choice: 'everything'"),
        (["out", "--again"], "argument --again: expected at least one argument"),
    ],
)
def test_how_it_is_called(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())
