"""The command `gram-fast self-train`."""

import logging
from typing import Annotated

import typer
from rich.console import Console

from gram_fast.commands.options import stderr
from gram_fast.errors import BackendError, InterruptedRunError
from gram_fast.training.command import Overrides


def self_train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file: docs/self_training.md.")],
    overrides: Overrides = None,
) -> None:
    """Train a judge in rounds on labels of its own, with rationales by a proving model; goes on where it was ended."""
    try:
        from gram_fast.training.self_training.config import SelfTrainConfig
        from gram_fast.training.self_training.report import missing_lines, report_table
        from gram_fast.training.self_training.run import run_rounds
    except ModuleNotFoundError as error:
        raise BackendError(f"training wants the extra 'train', pip install 'gram_fast[train]': {error}") from None
    logging.getLogger("gram_fast").setLevel(logging.INFO)
    settings = SelfTrainConfig.load(config, overrides or ())
    try:
        reports, was_done = run_rounds(settings, config)
    except KeyboardInterrupt:
        raise InterruptedRunError("interrupted: the same command goes on") from None
    Console().print(report_table(reports), "", *missing_lines(reports), sep="\n", markup=False, highlight=False)
    had = "had been finished before: its" if was_done else "is finished: the"
    stderr.print(
        f"gram-fast: the run in {settings.output_dir} {had} last judge is round-{settings.rounds}/model", markup=False
    )
