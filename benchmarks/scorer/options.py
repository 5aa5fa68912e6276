"""The command line of benchmarks/scorer/run.py."""

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_judge import DTYPES, SHAPES

CONTENDERS = ("fp8", "deterministic", "split", "transformers", "packed", "prefix", "padded", "loop", "vllm")
"""All but ours on its dense runner, which says what is compared and always runs."""
STRATEGIES = ("reference", "knockout", "round_robin", "rewards", "unshared")
"""Kinds of workloads. The sizes of each but "rewards" are the option of its name."""
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {
        "shape": "small",
        "dtype": "float32",
        "tokens": 64,
        "reference": [8, 24, 64],
        "knockout": [64],
        "round_robin": [6, 16],
        "prompts": 4,
        "unshared": [6, 24],
    },
    "cuda": {
        "shape": "qwen3-1.7b",
        "dtype": "bfloat16",
        "tokens": 512,
        "reference": [2, 8, 64, 256],
        "knockout": [2, 8, 64, 256],
        "round_robin": [16],
        "prompts": 32,
        "unshared": [64],
    },
}


def read_options(device: torch.device, description: str) -> argparse.Namespace:
    """Reads the command line; its defaults depend on the device."""
    defaults = DEFAULTS[device.type]
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shape", choices=SHAPES, default=defaults["shape"])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default=defaults["dtype"])
    parser.add_argument("--prompt-tokens", type=int, default=defaults["tokens"])
    parser.add_argument("--response-tokens", type=int, default=defaults["tokens"])
    for sizes in ("--reference", "--knockout", "--round-robin", "--unshared"):
        parser.add_argument(sizes, type=int, nargs="*", default=defaults[sizes[2:].replace("-", "_")])
    parser.add_argument("--prompts", type=int, default=defaults["prompts"])
    parser.add_argument("--of-prompt", type=int, default=8, help="responses of each of the --prompts")
    parser.add_argument("--strategies", choices=STRATEGIES, nargs="+", default=STRATEGIES, help="of the workloads")
    parser.add_argument("--only", choices=CONTENDERS, nargs="*", default=CONTENDERS, help="beside ours, dense")
    parser.add_argument("--vllm", type=Path, metavar="PYTHON", help="the Python of an environment with vLLM")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=600.0, help="seconds")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    for strategy in set(STRATEGIES) - set(options.strategies):
        if strategy == "rewards":
            options.prompts = 0
        else:
            setattr(options, strategy, [])
    return options


def kept_options(options: argparse.Namespace) -> dict[str, Any]:
    """Lists the options that a measurement depends on, files by name only."""
    values = {key: value for key, value in vars(options).items() if key not in ("output", "plot")}
    return {key: value.name if isinstance(value, Path) else value for key, value in values.items()}
