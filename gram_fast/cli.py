"""The command line: gram-fast compare | rank | best-of-n | doctor."""

import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers.utils import logging as transformers_logging

from gram_fast import doctor
from gram_fast.errors import GramFastError, InputError
from gram_fast.jobs import Row, open_output, read_rows, run_rows
from gram_fast.judge import PairwiseJudge
from gram_fast.preference import check_orders
from gram_fast.scores import find_scores
from gram_fast.tournament import STRATEGIES, find_strategy

app = typer.Typer(
    help="Score and rank responses with a generative pairwise judge.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
stderr = Console(stderr=True, soft_wrap=True, highlight=False)

Score = Callable[[PairwiseJudge, Row], dict[str, Any]]
Orders = Annotated[str, typer.Option(help="Which of a pair stands in slot A: ab, ba or both.")]


@dataclass(frozen=True)
class JudgeOptions:
    """Options of every command that loads a judge; as PairwiseJudge.from_pretrained."""

    model: Annotated[
        str, typer.Option("--model", "-m", help="Checkpoint: a folder, or a name on the Hugging Face hub.")
    ]
    preset: Annotated[str, typer.Option(help="Judge prompt: gram, gram-demo or a template file.")] = "gram"
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto"
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto"
    attention: Annotated[str, typer.Option(help="Attention backend: auto, reference or cascade.")] = "auto"
    max_batch_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of one forward; default: what suits the device.")
    ] = None
    max_length: Annotated[
        int | None, typer.Option(help="Most tokens of one pair; default: what the checkpoint allows.")
    ] = None
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.")
    ] = False

    def load(self) -> PairwiseJudge:
        """The judge."""
        options = {field.name: getattr(self, field.name) for field in fields(JudgeOptions)}
        if options["max_batch_tokens"] is None:
            options["max_batch_tokens"] = "auto"
        return PairwiseJudge.from_pretrained(options.pop("model"), **options)


@dataclass(frozen=True)
class JobOptions(JudgeOptions):
    """Options of every command that works through rows."""

    input: Annotated[str, typer.Option("--input", "-i", help="JSON lines, or - for standard input.")] = "-"
    output: Annotated[str, typer.Option("--output", "-o", help="File for JSON lines, or - for standard output.")] = "-"
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an output file that an earlier run began.")] = (
        False
    )
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Pass over bad rows, name them and count them.")] = False

    def run(self, score: Score, **settings: Any) -> None:
        """Works through the rows and says on standard error what became of them.

        `settings`: of the command; with the judge's they are recorded in every row, and --resume wants the same.
        """
        skipped = 0

        def on_bad(error: GramFastError) -> None:
            nonlocal skipped
            if not self.skip_bad:
                raise error
            skipped += 1
            stderr.print(f"gram-fast: skipped: {error}", markup=False)

        rows = read_rows(self.input, on_bad)
        run = {**settings, "model": self.model, "revision": self.revision, "preset": self.preset, "dtype": self.dtype}
        with open_output(self.output, self.input, self.resume, run) as output:
            judge = self.load()
            written = run_rows(rows, lambda row: {**score(judge, row), "run": run}, output, on_bad)
        stderr.print(f"gram-fast: {written} rows written, {len(output.done)} already there, {skipped} skipped")


def _command(name: str, options: type[JudgeOptions]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command whose first parameter is an `options`: on the command line, their fields and its own."""

    def register(command: Callable[..., None]) -> Callable[..., None]:
        names = [field.name for field in fields(options)]

        def run(**given: Any) -> None:
            command(options(**{name: given.pop(name) for name in names}), **given)

        own = list(inspect.signature(command).parameters.values())[1:]
        shared = inspect.signature(options).parameters.values()
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*shared, *own)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__doc__ = command.__doc__
        app.command(name)(run)
        return command

    return register


@_command("compare", JobOptions)
def compare(options: JobOptions, orders: Orders = "both") -> None:
    """Compare the two responses of every row: P(first better than second)."""
    check_orders(orders)

    def score(judge: PairwiseJudge, row: Row) -> dict[str, Any]:
        if len(row.responses) != 2:
            raise InputError(f"responses: expected 2, got {len(row.responses)}")
        a, b = row.responses
        return asdict(judge.compare(row.prompt, a, b, orders))  # type: ignore[arg-type]

    options.run(score, command="compare", orders=orders)


Strategy = Annotated[str, typer.Option(help=", ".join(STRATEGIES) + ".")]
Scores = Annotated[str, typer.Option(help="auto, win_rate or bradley_terry.")]
Seed = Annotated[int, typer.Option(min=0, help="Draws the bracket of knockout.")]


@_command("rank", JobOptions)
def rank(
    options: JobOptions,
    strategy: Strategy = "round_robin",
    orders: Orders = "both",
    scores: Scores = "auto",
    seed: Seed = 0,
) -> None:
    """Rank the responses of every row."""
    settings = _tournament(strategy, orders, scores, seed)
    options.run(
        lambda judge, row: asdict(judge.rank(row.prompt, row.responses, **settings)), command="rank", **settings
    )


@_command("best-of-n", JobOptions)
def best_of_n(
    options: JobOptions,
    strategy: Strategy = "knockout",
    orders: Orders = "both",
    scores: Scores = "auto",
    seed: Seed = 0,
) -> None:
    """Choose the best response of every row."""
    settings = _tournament(strategy, orders, scores, seed)
    options.run(
        lambda judge, row: asdict(judge.best_of_n(row.prompt, row.responses, **settings)),
        command="best-of-n",
        **settings,
    )


def _tournament(strategy: str, orders: str, scores: str, seed: int) -> dict[str, Any]:
    """The settings of a tournament by name; a wrong one is said before a model is loaded."""
    find_strategy(strategy)
    find_scores(scores, strategy)
    check_orders(orders)
    return {"strategy": strategy, "orders": orders, "scores": scores, "seed": seed}


@app.command("doctor")
def doctor_command(
    model: Annotated[str | None, typer.Option("--model", "-m", help="Checkpoint to try as well.")] = None,
    preset: Annotated[str, typer.Option(help="Its judge prompt.")] = "gram",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    attention: Annotated[str, typer.Option(help="Attention backend: auto, reference or cascade.")] = "auto",
) -> None:
    """Say what is installed and can run; with a checkpoint, test template, labels and engine on a known answer."""
    _print_table(doctor.installation())
    if model is not None:
        judge = PairwiseJudge.from_pretrained(model, preset=preset, device=device, dtype=dtype, attention=attention)
        _print_table(doctor.checkpoint(judge))


def _print_table(rows: Iterable[tuple[str, str]]) -> None:
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", width=28)
    table.add_column(overflow="fold")
    for what, how in rows:
        table.add_row(what, escape(how))
    Console().print(table)


def main() -> None:
    """Entry point: one sentence and exit code 2 for what the user can mend."""
    logging.basicConfig(format="gram-fast: %(message)s")
    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, *_, **__: str(message)
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    try:
        app()
    except GramFastError as error:
        stderr.print(f"gram-fast: {error}", markup=False)
        sys.exit(2)
    except SystemExit as error:
        if error.code == 130:  # what typer makes of an interruption, without a word
            stderr.print("gram-fast: interrupted; rows written to a file so far are whole, --resume goes on")
        raise


if __name__ == "__main__":
    main()
