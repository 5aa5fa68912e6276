"""Command-line interface of training: gram-fast train pretrain | finetune | scalar | reason | prove | recipes."""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from gram_fast.commands.options import stderr
from gram_fast.errors import BackendError, InterruptedRunError

if TYPE_CHECKING:
    from gram_fast.training.config import Stage

app = typer.Typer(
    help="Train a judge: both stages of GRAM, one that reasons, or a scalar reward model to compare with.",
    no_args_is_help=True,
)

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a recipe.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys that override the file's.")]


@app.command("pretrain")
def pretrain(config: Config, overrides: Overrides = None) -> None:
    """Stage 1: language modelling of unlabeled response pairs."""
    _run("pretrain", config, overrides)


@app.command("finetune")
def finetune(config: Config, overrides: Overrides = None) -> None:
    """Stage 2: preferences, by cross entropy over the two labels."""
    _run("finetune", config, overrides)


@app.command("scalar")
def scalar(config: Config, overrides: Overrides = None) -> None:
    """The baseline: a scalar reward head on the same backbone, trained on Bradley-Terry's likelihood."""
    _run("scalar", config, overrides)


@app.command("reason")
def reason(config: Config, overrides: Overrides = None) -> None:
    """A judge that reasons: supervised fine-tuning on rationales with their labels, or on labels alone."""
    _run("reason", config, overrides)


@app.command("prove")
def prove(config: Config, overrides: Overrides = None) -> None:
    """The proving model: supervised fine-tuning on justifications of given labels, made of rationales."""
    _run("prove", config, overrides)


@app.command("recipes")
def list_recipes() -> None:
    """List the recipes and the accelerate configurations that ship with the package."""
    from gram_fast.training.config import accelerate_configs, recipes

    table = Table(box=None)
    table.add_column("name", style="bold")
    table.add_column("file", overflow="fold")
    for name, path in recipes().items():
        table.add_row(name, str(path))
    for path in accelerate_configs():
        table.add_row(f"accelerate: {path.stem}", str(path))
    Console().print(table)


def _run(stage: "Stage", name: str, overrides: list[str] | None) -> None:
    from torch import distributed

    try:
        from gram_fast.training.checkpoints import how_to_go_on
        from gram_fast.training.config import RunConfig
        from gram_fast.training.train import train
    except ModuleNotFoundError as error:
        raise BackendError(f"training wants the extra 'train', pip install 'gram_fast[train]': {error}") from None
    logging.getLogger("gram_fast").setLevel(logging.INFO)
    config, arguments = RunConfig.load(name, stage, overrides or ())
    try:
        folder = train(stage, config, arguments)
    except KeyboardInterrupt:
        if arguments.process_index > 0:
            _exit_at_once(130)
        raise InterruptedRunError(f"interrupted: {how_to_go_on(Path(config.output_dir))}") from None
    if arguments.process_index == 0:
        stderr.print(f"gram-fast: the model and its loss curve are in {folder}", markup=False)
    elif distributed.is_initialized() and distributed.get_backend() == "gloo":
        # Exit without interpreter shutdown: gloo's threads may still release the last tensors, and one that does so
        # during shutdown aborts the process and with it the whole run (torch 2.13, on loaded machines).
        _exit_at_once(0)


def _exit_at_once(code: int) -> NoReturn:
    sys.stderr.flush()
    os._exit(code)
