"""Describes the machine and software that a benchmark ran on."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import gram_fast


def output_of(*command: str) -> str:
    """Returns what a command prints, or "unknown" where it is missing, fails or prints nothing."""
    if shutil.which(command[0]) is None:
        return "unknown"
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else "unknown"


def environment() -> dict[str, Any]:
    """Collects device, driver, versions and commit for a benchmark's record."""
    is_cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if is_cuda else platform.machine(),
        "driver": output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": version("triton") if find_spec("triton") else None,
        "python": platform.python_version(),
        "gram_fast": gram_fast.__version__,
        # A tree that was copied to a machine may have come without its history.
        "commit": os.environ.get("COMMIT") or output_of("git", "describe", "--always", "--dirty"),
    }
