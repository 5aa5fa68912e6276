"""The command `gram-fast serve`, and the options that a server has wherever it runs."""

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from gram_fast.commands.options import ModelOptions
from gram_fast.errors import InputError
from gram_fast.judge import PairwiseJudge

if TYPE_CHECKING:
    from fastapi import FastAPI

    from gram_fast.serving.keys import ApiKeys
    from gram_fast.serving.limits import Limits

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class ServiceOptions(ModelOptions):
    """Options of a judge's application."""

    PATHS: ClassVar[tuple[str, ...]] = (*ModelOptions.PATHS, "api_keys", "policy_tokenizer")
    name: Annotated[str | None, typer.Option(help="Name under which clients know the model; default: as --model.")] = (
        None
    )
    api_keys: Annotated[str | None, typer.Option(help="File of API keys, one a line; clients need one of them.")] = None
    cache_bytes: Annotated[int, typer.Option(min=0, help="Memory for recent prompts and responses.")] = 2**30
    max_requests: Annotated[
        int, typer.Option(min=1, help="Requests open at once; a quarter more for clients with few.")
    ] = 256
    max_items: Annotated[int, typer.Option(min=1, help="Responses of a request.")] = 1024
    max_comparisons: Annotated[int, typer.Option(min=1, help="Comparisons of a request.")] = 100_000
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Size of a request.")] = 16 * 2**20
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds that a request may take.")] = 600.0
    policy_tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer of the policy, for what OpenRLHF and slime send.")
    ] = None
    rollouts_per_prompt: Annotated[int, typer.Option(min=1, help="Responses to a prompt in NeMo-Gym's /verify.")] = 1

    def read_keys(self) -> "ApiKeys":
        """Reads the API keys. Raises InputError where there are none to be had."""
        from gram_fast.serving.keys import ApiKeys

        return ApiKeys() if self.api_keys is None else ApiKeys.read(self.api_keys)

    @property
    def limits(self) -> "Limits":
        """What requests may ask."""
        from gram_fast.serving.limits import Limits

        return Limits(
            max_requests=self.max_requests,
            max_items=self.max_items,
            max_comparisons=self.max_comparisons,
            max_body_bytes=self.max_body_bytes,
            timeout=self.timeout,
        )

    def load_app(self, keys: "ApiKeys", replicas: int = 1) -> "FastAPI":
        """Loads the judge and makes its application, one of so many that stand behind the same address."""
        from gram_fast.comparing.loading import load_comparer
        from gram_fast.serving.app import make_app

        return make_app(
            PairwiseJudge(load_comparer(self.model, self), include_reasoning=self.include_reasoning),
            model=self.name or self.model,
            limits=self.limits,
            keys=keys,
            cache_bytes=self.cache_bytes,
            policy_tokenizer=self.policy_tokenizer,
            rollouts_per_prompt=self.rollouts_per_prompt,
            replicas=replicas,
        )


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ServiceOptions):
    """Options of `serve`."""

    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need --api-keys.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000
    open_to_all: Annotated[
        bool, typer.Option("--open-to-all", help="Listen on other addresses than loopback without API keys.")
    ] = False


def serve_judge(options: ServeOptions) -> None:
    """Loads the judge and serves it until the process is told to end."""
    try:
        from gram_fast.serving.server import listen, log_as_json, make_server
    except ImportError as error:
        raise InputError(
            f"serve needs FastAPI, uvicorn and prometheus-client: pip install gram_fast[serve] ({error})"
        ) from None
    if options.host not in _LOOPBACK and options.api_keys is None and not options.open_to_all:
        raise InputError(
            f"--host {options.host}: expected --api-keys, or --open-to-all where everybody who can reach it may ask"
        )
    keys, limits = options.read_keys(), options.limits
    listening = listen(options.host, options.port)  # before the minutes of loading
    app = options.load_app(keys)
    log_as_json()
    with suppress(KeyboardInterrupt):  # which has ended it
        make_server(app, limits).run(sockets=[listening])
