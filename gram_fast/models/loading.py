"""Loads a checkpoint into runners, one for each device, and chooses the kind of runner."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from gram_fast.devices import find_dtype, on_device
from gram_fast.errors import BackendError, UnsupportedModelError
from gram_fast.models.checkpoint import load_model
from gram_fast.models.dense.runner import DenseRunner
from gram_fast.models.dense.weights import dense_problem, read_dense_model
from gram_fast.models.options import RUNNERS, JudgeOptions
from gram_fast.models.transformers_runner import TransformersRunner
from gram_fast.scoring.processes import ALONE, join_processes
from gram_fast.scoring.runner import Runner

logger = logging.getLogger(__name__)


def load_runners(
    name: str, config: Any, label_ids: tuple[int, int], devices: Sequence[torch.device], options: JudgeOptions
) -> Iterator[Runner]:
    """Yields one runner for each device, loaded when the iterator reaches it.

    `name` and `config` are those of the checkpoint; `label_ids`: token ids of the two labels. Raises the errors of
    PairwiseJudge.from_pretrained; options that cannot be combined fail before anything is loaded.
    """
    needs_dense = {"deterministic=True": options.deterministic, "tensor_parallel=True": options.tensor_parallel}
    needed_for = [option for option, is_set in needs_dense.items() if is_set]
    kind = find_runner(options.runner, name, config, needed_for=needed_for, **options.hub)
    processes = ALONE
    if options.tensor_parallel:
        if len(devices) > 1:
            raise BackendError(f"tensor_parallel=True: expected one device a process, got {len(devices)}")
        processes, device = join_processes(devices[0])
        devices = [device]
    for device in devices:
        dtype = find_dtype(options.dtype, device)
        runner: Runner
        with on_device(device):
            if kind == "dense":
                exact = dtype if isinstance(dtype, torch.dtype) else None
                files = {"revision": options.revision, "token": options.token}
                dense = read_dense_model(name, config, label_ids, device, exact, processes, **files)
                runner = DenseRunner(dense, config, options.attention, deterministic=options.deterministic)
            else:
                model = load_model(name, dtype, **options.hub).to(device).eval().requires_grad_(False)
                runner = TransformersRunner(model, label_ids, options.attention)
        # Behind the context: until the next runner is asked for, the current device is the caller's.
        yield runner


def find_runner(runner: str, name: str, config: Any, *, needed_for: Sequence[str] = (), **hub: Any) -> str:
    """The kind of runner that `runner` stands for; the choice of "auto" is logged.

    Args:
        runner: one of RUNNERS.
        name, config: those of the checkpoint.
        needed_for: options in use that only "dense" has.
        hub: revision, token and trust_remote_code as in transformers.

    Raises BackendError for an unknown runner and for an option that the runner lacks, UnsupportedModelError where the
    dense runner is required and cannot run the checkpoint.
    """
    if runner not in RUNNERS:
        raise BackendError(f"there is no runner {runner!r}: expected one of {', '.join(RUNNERS)}")
    if needed_for and runner == "transformers":
        raise BackendError(f"{needed_for[0]} needs runner 'dense', got 'transformers'")
    if runner == "transformers":
        return runner
    problem = dense_problem(name, config, **hub)
    if problem and (runner == "dense" or needed_for):
        raise UnsupportedModelError(f"runner 'dense' cannot run {name!r}: {problem}")
    if runner == "auto":
        logger.info("runner: %s", f"transformers ({problem})" if problem else "dense")
    return "transformers" if problem else "dense"
