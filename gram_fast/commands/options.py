"""Options that commands share, and how a command gets them."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

import typer
from rich.console import Console

from gram_fast.errors import GramFastError
from gram_fast.judge import PairwiseJudge

stderr = Console(stderr=True, soft_wrap=True, highlight=False)


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Options of every command that loads a judge; as PairwiseJudge.from_pretrained."""

    model: Annotated[
        str, typer.Option("--model", "-m", help="Checkpoint: a folder, or a name on the Hugging Face hub.")
    ]
    preset: Annotated[
        str,
        typer.Option(help="Judge prompt: auto (what the checkpoint records, else gram), a preset or a template file."),
    ] = "auto"
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, cuda:all, or several with commas.")] = "auto"
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto"
    runner: Annotated[str, typer.Option(help="auto, dense (this package's own model) or transformers.")] = "auto"
    attention: Annotated[str, typer.Option(help="Attention backend: auto, reference, cascade or triton.")] = "auto"
    max_batch_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of one forward; default: what suits the device.")
    ] = None
    max_length: Annotated[
        int | None, typer.Option(help="Most tokens of one pair; default: what the checkpoint allows.")
    ] = None
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits for a pair whatever else is asked with it.")
    ] = False
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

    @property
    def recorded(self) -> dict[str, Any]:
        """What every output row records of the judge, and --resume wants the same."""
        return {name: getattr(self, name) for name in ("model", "revision", "preset", "dtype")}


@dataclass(frozen=True, kw_only=True)
class RowOptions(JudgeOptions):
    """Options of every command that works through rows."""

    resume: Annotated[bool, typer.Option("--resume", help="Go on with the output that an earlier run began.")] = False
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Pass over bad rows, name them and count them.")] = False


@dataclass(frozen=True)
class BadRows:
    """Takes the error of a bad row: raises it or, to skip the row, says it on standard error and keeps it."""

    skip: bool
    skipped: list[str] = field(default_factory=list)

    def __call__(self, error: GramFastError) -> None:
        """Takes the error."""
        if not self.skip:
            raise error
        self.skipped.append(str(error))
        stderr.print(f"gram-fast: skipped: {error}", markup=False)


def command(
    app: typer.Typer, name: str, options: type[JudgeOptions]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command whose first parameter is an `options`: on the command line, their fields and its own."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        names = [field.name for field in fields(options)]

        def run(**given: Any) -> None:
            function(options(**{name: given.pop(name) for name in names}), **given)

        own = list(inspect.signature(function).parameters.values())[1:]
        shared = inspect.signature(options).parameters.values()
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*shared, *own)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__doc__ = function.__doc__
        app.command(name)(run)
        return function

    return register
