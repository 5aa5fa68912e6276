"""From a checkpoint's name to runners, one a device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gram_fast.errors import BackendError
from gram_fast.models.checkpoint import find_dtype, load_model
from gram_fast.models.dense.runner import DenseRunner, find_runner
from gram_fast.models.dense.weights import read_dense_model
from gram_fast.models.transformers_runner import TransformersRunner
from gram_fast.ranking.arena import on_device
from gram_fast.scoring.processes import ALONE, join_processes

Runner = TransformersRunner | DenseRunner


@dataclass(frozen=True)
class RunnerOptions:
    """What PairwiseJudge.from_pretrained is told of how a model is to be run, under the same names."""

    dtype: str | torch.dtype
    runner: str
    attention: str
    deterministic: bool
    tensor_parallel: bool


def load_runners(
    name: str,
    config: Any,
    label_ids: tuple[int, int],
    devices: Sequence[torch.device],
    options: RunnerOptions,
    **hub: Any,
) -> Iterator[Runner]:
    """One runner a device, each loaded when it is asked for; what cannot be had is refused at the first.

    `hub`: revision, token and trust_remote_code. Raises errors as PairwiseJudge.from_pretrained.
    """
    needs_dense = {"deterministic=True": options.deterministic, "tensor_parallel=True": options.tensor_parallel}
    needed_for = [option for option, is_set in needs_dense.items() if is_set]
    if options.deterministic and options.tensor_parallel:
        raise BackendError("deterministic=True: sums over processes change with a pass; leave out tensor_parallel")
    if options.deterministic and options.attention != "auto":
        raise BackendError(
            f"deterministic=True has attention of its own: expected attention 'auto', got {options.attention!r}"
        )
    kind = find_runner(options.runner, name, config, needed_for=needed_for, **hub)
    processes = ALONE
    if options.tensor_parallel:
        if len(devices) > 1:
            raise BackendError(f"tensor_parallel=True: expected one device a process, got {len(devices)}")
        processes, device = join_processes(devices[0])
        devices = [device]
    for device in devices:
        dtype = find_dtype(options.dtype, device)
        with on_device(device):
            if kind == "dense":
                exact = dtype if isinstance(dtype, torch.dtype) else None
                files = {key: hub[key] for key in ("revision", "token")}
                dense = read_dense_model(name, config, label_ids, device, exact, processes, **files)
                yield DenseRunner(dense, config, options.attention, deterministic=options.deterministic)
            else:
                model = load_model(name, dtype, **hub).to(device).eval().requires_grad_(False)
                yield TransformersRunner(model, label_ids, options.attention)
