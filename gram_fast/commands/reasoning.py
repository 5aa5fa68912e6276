"""Options of the commands by which a judge that reasons is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from gram_fast.generating.options import ReasoningOptions

# Flags of this class by what ReasoningOptions calls them, where that is another name.
_NAMES = {"vote_seed": "seed", "engine_api_key": "api_key", "engine_timeout": "timeout"}


@dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """Who writes answers, and how they are drawn."""

    engine: Annotated[
        str | None,
        typer.Option(help="Who writes rationales: transformers, transformers-continuous, vllm, or URLs with commas."),
    ] = None
    temperature: Annotated[
        float | None,
        typer.Option(help="Of drawing tokens; default: as the checkpoint's configuration says."),
    ] = None
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer; default: 2,048.")] = None
    engine_api_key: Annotated[
        str | None, typer.Option(envvar="GRAM_FAST_ENGINE_API_KEY", help="Key of the servers.", show_envvar=True)
    ] = field(default=None, repr=False)
    engine_timeout: Annotated[float | None, typer.Option(help="Seconds that one answer may take a server.")] = None
    concurrency: Annotated[int | None, typer.Option(help="Most requests under way at the servers.")] = None


@dataclass(frozen=True, kw_only=True)
class ReasoningFlags(EngineFlags):
    """Who writes rationales, and how votes are counted; any of them makes the judge one that reasons."""

    votes: Annotated[int | None, typer.Option(help="Answers that the judge writes for a pair and order.")] = None
    adaptive: Annotated[
        bool | None, typer.Option("--adaptive", help="Stop with a pair when its majority cannot change any more.")
    ] = None
    verdict: Annotated[
        str | None, typer.Option(help="soft: mean P behind the rationales; hard: majority of votes.")
    ] = None
    vote_seed: Annotated[int | None, typer.Option(help="Of all answers.")] = None
    no_second_step: Annotated[
        bool | None,
        typer.Option("--no-second-step", help="Load no model beside the engine, which gives the probabilities."),
    ] = None

    @property
    def reasoning(self) -> ReasoningOptions | None:
        """The options that were given; None where none was. Raises InputError on wrong ones."""
        names = ReasoningFlags.__dataclass_fields__
        given = engine_options({name: value for name in names if (value := getattr(self, name)) is not None})
        if given.pop("no_second_step", False):
            given["second_step"] = False
        # A key in the environment asks for nothing.
        return ReasoningOptions(**given) if given.keys() - {"api_key"} else None


def engine_options(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags by the names that ReasoningOptions has for them."""
    return {_NAMES.get(name, name): value for name, value in flags.items()}
