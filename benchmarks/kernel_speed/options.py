"""The command line of benchmarks/kernel_speed/run.py."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.kernel_speed.rivals import RIVALS
from benchmarks.kernel_speed.shapes import FORESTS
from benchmarks.random_judge import SHAPES
from gram_fast.kernels.compilation import LaunchShape

REAL = "real"
DEFAULTS: dict[str, dict[str, Sequence[str]]] = {
    "cpu": {"forests": ["tiny"], "heads": ["small"]},
    "cuda": {"forests": [name for name in FORESTS if name != "tiny"], "heads": ["qwen3-8b", "qwen3-1.7b"]},
}


def launch_shape(text: str) -> LaunchShape:
    """Reads MxNxWARPSxSTAGES."""
    if not re.fullmatch(r"\d+(x\d+){3}", text):
        raise argparse.ArgumentTypeError(f"expected MxNxWARPSxSTAGES, such as 128x64x8x3, got {text!r}")
    return LaunchShape(*map(int, text.split("x")))


def read_options(device: torch.device, description: str) -> argparse.Namespace:
    """Reads the command line; its defaults depend on the device."""
    defaults = DEFAULTS[device.type]
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--forests", choices=[*FORESTS, REAL], nargs="+", default=defaults["forests"])
    parser.add_argument("--heads", choices=SHAPES, nargs="+", default=defaults["heads"], help="those of these models")
    parser.add_argument("--rivals", choices=RIVALS, nargs="*", default=list(RIVALS), help="of attention over a forest")
    parser.add_argument(
        "--shapes",
        type=launch_shape,
        nargs="*",
        default=[],
        metavar="MxNxWARPSxSTAGES",
        help="launch shapes of our tree attention, beside the one that it takes",
    )
    parser.add_argument("--data", type=Path, help=f"what the forest {REAL!r} is made of; measured where it is given")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if REAL in options.forests and options.data is None:
        parser.error(f"--forests {REAL}: needs --data")
    if options.data and REAL not in options.forests:
        options.forests = [*options.forests, REAL]
    return options
