"""The application: all endpoints of one judge, for any ASGI server."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

import gram_fast
from gram_fast import InputError, PairwiseJudge
from gram_fast.serving.endpoint import accounted
from gram_fast.serving.groups import Groups
from gram_fast.serving.hosts import add_hosts
from gram_fast.serving.keys import ApiKeys
from gram_fast.serving.limits import Limits
from gram_fast.serving.native import add_native
from gram_fast.serving.page import add_page
from gram_fast.serving.places import with_spare
from gram_fast.serving.refusal import OPENAI, RefusedError
from gram_fast.serving.rerank import add_rerank
from gram_fast.serving.rounds import add_rounds
from gram_fast.serving.scoring import add_scoring
from gram_fast.serving.service import Service

# Threads beside those of open requests, which count pairs.
_MORE_THREADS = 8


def make_app(
    judge: PairwiseJudge,
    *,
    model: str = "judge",
    limits: Limits | None = None,
    keys: ApiKeys | None = None,
    cache_bytes: int = 2**30,
    policy_tokenizer: str | None = None,
    rollouts_per_prompt: int = 1,
    replicas: int = 1,
) -> FastAPI:
    """Makes the application of a judge.

    Args:
        judge: one that compares or one that verifies. It is the server's from now on.
        model: the name under which clients know it.
        limits: of requests.
        keys: that clients need; None: everybody may ask.
        cache_bytes: of keys and values of recent prompts and responses, which later requests share, on each device.
        policy_tokenizer: folder or name of the tokenizer whose chat template OpenRLHF's and slime's texts are written
            in; None: they are plain text.
        rollouts_per_prompt: responses of a group of NeMo-Gym's `/verify`; 1: none is compared.
        replicas: applications behind the same address, this one included, which clients may want to ask side by side.

    `state.close()` of the application, in any thread, answers those who wait for others of their group. Raises
    InputError where the judge cannot be served: one that is divided among processes.
    """
    if cache_bytes < 0:
        raise InputError(f"cache_bytes: expected at least 0, got {cache_bytes}")
    if (advance := getattr(judge.comparer, "advance_together", None)) is not None:
        advance(cache_bytes)
    service = Service(judge, model, limits or Limits(), keys or ApiKeys(), replicas)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # A thread for each open request: most of them wait for their turn.
        with ThreadPoolExecutor(with_spare(service.limits.max_requests) + _MORE_THREADS, "gram_fast.serving") as pool:
            asyncio.get_running_loop().set_default_executor(pool)
            yield
            groups.close()

    app = FastAPI(
        title="gram_fast",
        version=gram_fast.__version__,
        description="A generative pairwise reward model.",
        lifespan=lifespan,
        docs_url=None,  # these pages of FastAPI load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    router = APIRouter()
    add_native(router, service)
    add_rerank(router, service)
    add_hosts(router, service, policy_tokenizer)
    add_rounds(router, service)
    comparer = next(iter(getattr(judge.comparer, "comparers", [judge.comparer])))
    if hasattr(comparer, "engine"):
        add_scoring(router, service, comparer)
    groups = Groups(service, rollouts_per_prompt)
    groups.add_to(router)
    app.state.close = groups.close
    add_page(router, service)
    _add_states(router, service)
    app.include_router(router)
    return app


def _add_states(router: APIRouter, service: Service) -> None:
    """Adds what says how the server is: open to everybody, but /info."""

    async def health(request: Request) -> Response:
        return Response(status_code=503 if service.is_broken else 200)

    async def ready(request: Request) -> Response:
        return Response(status_code=503 if service.is_broken or service.is_closing else 200)

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def info(request: Request) -> Response:
        try:
            service.client_of(request)
        except RefusedError as refusal:
            return OPENAI.refuse(refusal)
        return JSONResponse(_info(service))

    for path, answer, made, summary in (
        ("/health", health, Response, "Whether the server runs"),
        ("/ready", ready, Response, "Whether it takes requests"),
        ("/metrics", metrics, PlainTextResponse, "Metrics for Prometheus"),
        ("/info", info, JSONResponse, "The judge and its limits"),
        ("/v1/models", info, JSONResponse, "The same, in the form of OpenAI's list of models"),
    ):
        router.add_api_route(
            path,
            accounted(service, path, answer),
            methods=["GET"],
            summary=summary,
            response_class=made,
            response_model=None,
            name=path,
        )


def _info(service: Service) -> dict[str, Any]:
    """What clients may want to know; `object` and `data` are OpenAI's list of models."""
    limits = service.limits
    return {
        "model_id": service.model,
        "version": gram_fast.__version__,
        "verifies": getattr(service.judge.comparer, "verifies", False),
        "max_input_length": service.judge.max_length,
        "markers": list(getattr(service.judge.comparer, "markers", ())),
        "max_batch_tokens": service.judge.comparer.tokens_at_once,
        "max_client_batch_size": limits.max_items,
        "max_concurrent_requests": limits.max_requests,
        "max_comparisons": limits.max_comparisons,
        "max_body_bytes": limits.max_body_bytes,
        "timeout": limits.timeout,
        "replicas": service.replicas,
        "object": "list",
        "data": [{"id": service.model, "object": "model", "owned_by": "gram_fast"}],
    }
