"""Runs everything that needs a GPU, stage by stage: benchmarks/run_gpu.sh has the command line and what to expect.

A stage is stopped when the stages up to it have taken as long as their limits together: what one leaves is the next
one's, and the last line of the plan never moves. Python's standard library is all that is needed before the build.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate
from pathlib import Path

from benchmarks.gpu.stages import AGAIN_SECONDS, DEFAULT_SECONDS, STAGES, Command, Place, Stage, chosen

REPOSITORY = Path(__file__).resolve().parents[2]
DRY_SECONDS = 3600.0
"""Of a dry run, which is not stopped: a busy machine may take long to import torch so many times."""
GRACE = 5.0
"""Seconds from the request to stop to the end."""
OUT_OF_TIME = "out of time"
KEPT_OF_LOG = 2**20
"""Bytes of a log's beginning, and of its end, that the archive has."""


@dataclass(frozen=True)
class Outcome:
    """How a stage went."""

    stage: Stage
    seconds: float
    failed: dict[str, str]
    """Commands that failed -> why."""
    last_line: str
    """Of the first command, or of the first that failed."""
    must_stop: bool

    @property
    def line(self) -> str:
        """The stage in one line."""
        how = ", ".join(f"{name}: {why}" if name else why for name, why in self.failed.items()) or "ok"
        return f"{self.stage.name:<12} {self.seconds:4.0f} s of {self.stage.seconds:3}  {how}  {self.last_line}"


def environment(place: Place) -> dict[str, str]:
    """Makes the environment of all stages: this tree, caches that stay, no network."""
    # cmake and ninja of a virtual environment stand beside its Python, nvcc where nobody may have looked for it.
    folders = [str(Path(place.python).parent), os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    found = os.environ | {
        "PATH": os.pathsep.join(folders),
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONUNBUFFERED": "1",
        "TRITON_CACHE_DIR": str(place.work / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(place.work / "inductor"),
        "HF_HUB_OFFLINE": "1",
    }
    found.pop("TRITON_INTERPRET", None)
    if place.is_dry:
        found |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    return found


class Running:
    """One command while it runs, its output in a file; `with` ends it."""

    def __init__(self, stage: Stage, command: Command, place: Place) -> None:
        self.command = command
        self.log = place.results / f"{'-'.join(filter(None, [stage.name, command.name]))}.log"
        with self.log.open("wb") as output:
            # A group of its own, to stop it with all its children.
            self._process = subprocess.Popen(
                command.argv,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=REPOSITORY,
                env=environment(place) | command.environment,
                process_group=0,
            )

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *exception: object) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()

    def problem(self, deadline: float) -> str | None:
        """Waits until it ends or the deadline, by time.monotonic -> what went wrong."""
        try:
            status = self._process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            return OUT_OF_TIME
        return f"failed ({status})" if status else None

    def interrupt(self) -> None:
        """Asks it to stop, as Ctrl-C does: pytest then prints what it has."""
        self._signal(signal.SIGINT)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    @property
    def last_line(self) -> str:
        """What it printed last but JSON, shortened."""
        lines = self.log.read_text("utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip() and line[0] != "{"), "")[:400]


def run_stage(stage: Stage, place: Place, deadline: float) -> Outcome:
    """Runs a stage's commands side by side until the deadline, by time.monotonic."""
    began = time.monotonic()
    commands = stage.commands(place, deadline - began)
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        running = []
        for command in commands:
            try:
                running.append(stack.enter_context(Running(stage, command, place)))
            except OSError as error:
                failed[command.name] = str(error)
        for process in running:
            if why := process.problem(deadline):
                failed[process.command.name] = why
        late = [process for process in running if failed.get(process.command.name) == OUT_OF_TIME]
        for process in late:
            process.interrupt()
        for process in late:
            process.problem(deadline + GRACE)
    told = [process.last_line for process in running if process.command.name in failed or not failed]
    must_stop = any(command.is_vital for command in commands if command.name in failed)
    return Outcome(stage, time.monotonic() - began, failed, told[0] if told else "", must_stop)


def shortened(path: Path) -> bytes:
    """Reads a file without the middle, where it is a long log."""
    content = path.read_bytes()
    if path.suffix != ".log" or len(content) <= 2 * KEPT_OF_LOG:
        return content
    return content[:KEPT_OF_LOG] + b"\n[...]\n" + content[-KEPT_OF_LOG:]


def keep(place: Place, archive: Path) -> None:
    """Writes the archive of all results so far; there is a whole one at any time."""
    partial = archive.with_name(f"{archive.name}.partial")
    with tarfile.open(partial, "w:gz") as packed:
        for path in sorted(place.results.iterdir()):
            content = shortened(path)
            info = tarfile.TarInfo(path.name)
            info.size, info.mtime = len(content), path.stat().st_mtime
            packed.addfile(info, BytesIO(content))
    partial.replace(archive)


def deadlines(stages: Sequence[Stage], seconds: float) -> list[float]:
    """Finds when each stage is stopped at the latest, in seconds from the beginning: by `seconds`, all."""
    return [min(planned, seconds) for planned in accumulate(stage.seconds for stage in stages)]


def run_all(stages: Sequence[Stage], ends: Sequence[float], place: Place, archive: Path) -> int:
    """Runs stages in their order, each to its end, in seconds from the beginning -> the exit code."""
    began, code = time.monotonic(), 0
    for stage, end in zip(stages, ends, strict=True):
        try:
            outcome = run_stage(stage, place, began + end)
            print(outcome.line, flush=True)
            with (place.results / "summary.txt").open("a", encoding="utf-8") as summary:
                summary.write(outcome.line + "\n")
        finally:
            keep(place, archive)
        code = 1 if outcome.failed else code
        if outcome.must_stop:
            print("stopped: nothing after that is worth the time")
            break
    return code


def handle_signals() -> None:
    """Makes SIGTERM, and SIGINT where a shell's background processes ignore it, do as Ctrl-C: what runs is stopped.

    Children listen to SIGINT again too: what is ignored is inherited.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def main() -> int:
    """Reads the command line, and runs the stages that it asks for."""
    parser = argparse.ArgumentParser(prog="benchmarks/run_gpu.sh")
    parser.add_argument("out", type=Path, metavar="OUTDIR")
    names = [stage.name for stage in STAGES[1:]]
    parser.add_argument("--again", nargs="+", choices=names, default=[], metavar="STAGE", help=", ".join(names))
    parser.add_argument(
        "--dry-run", action="store_true", help="all stages, tiny and on the CPU: does each start and end?"
    )
    options = parser.parse_args()
    out = options.out.resolve()
    work = out / "dry-run" if options.dry_run else REPOSITORY / "build" / "gpu"
    place = Place(sys.executable, work, work / "results", options.dry_run)
    shutil.rmtree(place.results, ignore_errors=True)
    for folder in (out, place.results, place.judge("").parent):
        folder.mkdir(parents=True, exist_ok=True)
    if options.dry_run:
        stages, ends = list(STAGES), [DRY_SECONDS] * len(STAGES)
    else:
        stages = chosen(options.again)
        ends = deadlines(stages, AGAIN_SECONDS if options.again else DEFAULT_SECONDS)
    handle_signals()
    return run_all(stages, ends, place, out / "results.tar.gz")


if __name__ == "__main__":
    sys.exit(main())
