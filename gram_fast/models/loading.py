"""Loads a checkpoint into runners, one for each device, and chooses the kind of runner."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from gram_fast.devices import find_dtype, on_device
from gram_fast.errors import UnsupportedModelError
from gram_fast.models.checkpoint import load_model
from gram_fast.models.dense.runner import DenseRunner
from gram_fast.models.dense.weights import dense_problem, read_dense_model
from gram_fast.models.files import find_files, find_source
from gram_fast.models.options import JudgeOptions
from gram_fast.models.sizes import check_sizes
from gram_fast.models.supported import attention_span
from gram_fast.models.transformers_runner import TransformersRunner
from gram_fast.scoring.processes import ALONE, join_processes
from gram_fast.scoring.runner import Runner

logger = logging.getLogger(__name__)


def load_runners(
    name: str, config: Any, label_ids: tuple[int, int], devices: Sequence[torch.device], options: JudgeOptions
) -> Iterator[Runner]:
    """Yields one runner for each device, loaded when the iterator reaches it.

    `name` and `config` are those of the checkpoint; `label_ids`: token ids of the two labels. Raises the errors of
    PairwiseJudge.from_pretrained.
    """
    kind = find_runner(name, config, options)
    processes = ALONE
    if options.tensor_parallel:
        processes, device = join_processes(devices[0])
        devices = [device]
    for device in devices:
        dtype = find_dtype(options.dtype, device)
        runner: Runner
        with on_device(device):
            if kind == "dense":
                exact = dtype if isinstance(dtype, torch.dtype) else None
                files = {"revision": options.revision, "token": options.token}
                dense = read_dense_model(
                    name, config, label_ids, device, exact, processes, options.quantization, **files
                )
                runner = DenseRunner(
                    dense,
                    config,
                    options.attention,
                    products=options.products,
                    deterministic=options.deterministic,
                )
            else:
                model = load_model(name, dtype, config=config, **options.hub).to(device).eval().requires_grad_(False)
                runner = TransformersRunner(model, label_ids, options.attention)
        # Behind the context: until the next runner is asked for, the current device is the caller's.
        yield runner


def find_runner(name: str, config: Any, options: JudgeOptions) -> str:
    """The kind of runner that `options.runner` stands for; the choice of "auto" is logged.

    `name` and `config` are those of the checkpoint. Raises UnsupportedModelError for an architecture that no runner can
    run and where the dense runner is required and cannot run the checkpoint, InputError for sizes beyond its files.
    """
    attention_span(config.get_text_config(decoder=True))
    if options.runner == "transformers":
        return "transformers"
    source = find_source(name, **options.hub)
    if source.gguf is None:
        check_sizes(config, find_files(source.name, **source.hub), f"checkpoint {source.name!r}")
    problem = dense_problem(name, config, **options.hub)
    if problem and (options.runner == "dense" or options.dense_only):
        raise UnsupportedModelError(f"runner 'dense' cannot run {name!r}: {problem}")
    if options.runner == "auto":
        logger.info("runner: %s", f"transformers ({problem})" if problem else "dense")
    return "transformers" if problem else "dense"
