"""Options that commands share, and their registration as command line flags."""

import inspect
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Self, get_args, get_origin

import typer
from rich.console import Console

from gram_fast.commands.output import Output
from gram_fast.commands.reasoning import ReasoningFlags
from gram_fast.comparing.comparer import Comparer
from gram_fast.errors import GramFastError, InputError, one_line
from gram_fast.judge import PairwiseJudge
from gram_fast.models.options import Flag, JudgeOptions
from gram_fast.ranking.play import check_verifies

_RECORDED = (
    "model", "revision", "preset", "chat_template_kwargs", "tokenizer", "include_reasoning", "deterministic",
)  # fmt: skip

ReadingMode = Annotated[
    str, typer.Option("--mode", help="full, or factored: each response is read by itself, by judges trained for it.")
]

stderr = Console(stderr=True, soft_wrap=True, highlight=False)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(JudgeOptions):
    """Options of the commands that load a judge."""

    PATHS: ClassVar[tuple[str, ...]] = ("model", "preset", "tokenizer")
    """Options that may be paths."""
    model: Annotated[
        str, typer.Option("--model", "-m", help="Checkpoint: a folder, a .gguf file, or a name on the hub.")
    ]

    @property
    def loads_model(self) -> bool:
        """Whether the judge has a model here, not a server's alone."""
        return True

    def for_other_folders(self) -> Self:
        """The same options for processes that run elsewhere, with whole paths of what is here."""
        from gram_fast.text.prompts import preset_names

        given = {name: value for name in self.PATHS if (value := getattr(self, name)) is not None}
        if self.preset in ("auto", *preset_names()):
            del given["preset"]  # a name, whatever else is called so here
        return replace(self, **{name: os.path.abspath(path) for name, path in given.items() if os.path.exists(path)})

    @property
    def recorded(self) -> dict[str, Any]:
        """Options that every output row records, and the digest of the checkpoint's configuration."""
        from gram_fast.models.checkpoint import load_config
        from gram_fast.models.digest import config_digest

        options = {name: getattr(self, name) for name in (*_RECORDED, "max_length")}
        return {**options, "config_digest": config_digest(load_config(self.model, **self.hub))}

    def load(self, output: Output, verifies: bool = False) -> PairwiseJudge:
        """Loads the judge, and records what its answers depend on, as found in place of each "auto".

        Raises errors like PairwiseJudge.from_pretrained, and like `Output.record`; and InputError on a verifier, or
        where one is wanted (`verifies`) on another judge.
        """
        comparer, found = self.load_comparer(verifies)
        output.record(**found)
        output.check_settings()
        return PairwiseJudge(comparer, include_reasoning=self.include_reasoning)

    def load_comparer(self, verifies: bool = False) -> tuple[Comparer, dict[str, Any]]:
        """Loads the judge's comparer -> it, and what its answers depend on. Raises as `load`, but for the output."""
        from gram_fast.comparing.loading import load_comparer

        return _checked(load_comparer(self.model, self), verifies)


@dataclass(frozen=True, kw_only=True)
class RowOptions(ReasoningFlags, ModelOptions):
    """Options of the commands that read rows; the judge may be one that reasons."""

    resume: Annotated[bool, typer.Option("--resume", help="Go on with the output that an earlier run began.")] = False
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Pass over bad rows, name them and count them.")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.reasoning  # raises on wrong ones

    @property
    def recorded(self) -> dict[str, Any]:
        """As of other judges; of a server's model, of which nothing is here, without its configuration."""
        if self.loads_model:
            return super().recorded
        return {name: getattr(self, name) for name in (*_RECORDED, "max_length")}

    @property
    def loads_model(self) -> bool:
        """Not where a server writes and gives the probabilities."""
        return self.reasoning is None or self.reasoning.second_step or not self.reasoning.urls

    def load_comparer(self, verifies: bool = False) -> tuple[Comparer, dict[str, Any]]:
        """Loads the judge's comparer; one that reasons where that is asked for, or the judge's prompt says so."""
        from gram_fast.comparing.loading import load_template
        from gram_fast.generating.loading import load_reasoning_comparer
        from gram_fast.generating.options import ReasoningOptions

        options = self.reasoning
        if options is None:
            if not load_template(self.model, self).reasons:
                return super().load_comparer(verifies)
            options = ReasoningOptions()
        return _checked(load_reasoning_comparer(self.model, self, options), verifies)


def _checked(comparer: Any, verifies: bool) -> tuple[Comparer, dict[str, Any]]:
    """A comparer, and what its answers depend on. Raises InputError on one that verifies, or does not, as asked."""
    check_verifies(comparer, verifies)
    return comparer, getattr(comparer, "comparers", [comparer])[0].recorded


@dataclass(frozen=True)
class BadRows:
    """Handler of bad rows: raises the error or, with `skip`, prints it on standard error and records it."""

    skip: bool
    skipped: list[str] = field(default_factory=list)

    def __call__(self, error: GramFastError) -> None:
        """Handles the error of one row."""
        if not self.skip:
            raise error
        self.skipped.append(str(error))
        stderr.print(f"gram-fast: skipped: {error}", markup=False)

    def check(self, num_good: int) -> None:
        """Raises InputError where rows were skipped and none is good: that is no success."""
        if self.skipped and not num_good:
            raise InputError(f"none of {len(self.skipped)} rows could be scored, the first: {self.skipped[0]}")


def changed_mode(mode: str) -> dict[str, str]:
    """The mode among the settings of a command, where it is not the usual one."""
    return {} if mode == "full" else {"mode": mode}


def command(app: typer.Typer, name: str, options: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command whose first parameter is an `options`; its flags are their fields and its own parameters.

    `options`: a dataclass, such as JudgeOptions.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        # The model and what the command adds come first: a judge's own options are many and have defaults.
        inherited = inspect.signature(JudgeOptions).parameters
        fields = sorted(inspect.signature(options).parameters.values(), key=lambda p: p.name in inherited)
        shared = [found for p in fields if (found := _on_command_line(p))]
        names = [parameter.name for parameter in shared]
        objects = [p.name for p in fields if isinstance(flag := _flag_of(p), Flag) and flag.type is dict]

        def run(**given: Any) -> None:
            # None: the flag was not given, so that the field's default holds.
            values = {name: value for name in names if (value := given.pop(name)) is not None}
            values |= {name: _read_object(name, values[name]) for name in objects if name in values}
            function(options(**values), **given)

        own = list(inspect.signature(function).parameters.values())[1:]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*shared, *own)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__doc__ = function.__doc__
        app.command(name)(run)
        return function

    return register


def _flag_of(parameter: inspect.Parameter) -> Any:
    """What a field's annotation says of the command line: a Flag, typer's own option, or None."""
    return get_args(parameter.annotation)[1] if get_origin(parameter.annotation) is Annotated else None


def _on_command_line(parameter: inspect.Parameter) -> inspect.Parameter | None:
    """Converts a field's parameter to a typer option; None for a field without a flag."""
    flag = _flag_of(parameter)
    if not isinstance(flag, Flag):
        return parameter if flag else None
    # Naming the flag keeps typer from adding a --no- form. A default of another type than the flag's becomes None.
    declared = [f"--{parameter.name.replace('_', '-')}"] if flag.type is bool else []
    option = typer.Option(*declared, help=flag.help)
    if isinstance(parameter.default, flag.type):
        return parameter.replace(annotation=Annotated[flag.type, option])
    kind = str if flag.type is dict else flag.type
    return parameter.replace(annotation=Annotated[kind | None, option], default=None)


def _read_object(name: str, text: str) -> dict[str, Any]:
    """Reads the JSON object that was given as option `name`. Raises InputError on anything else."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"{name}: expected a JSON object, got {text!r}: {one_line(error)}") from None
    if not isinstance(value, dict):
        raise InputError(f"{name}: expected a JSON object, got {text!r}")
    return value
