"""The judge's own protocol: compare, rank, best of n, verify, and rewards of whole groups."""

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from gram_fast.comparing.modes import Mode
from gram_fast.comparing.orders import Orders
from gram_fast.ranking.rewards import Duplicates, RewardsName
from gram_fast.ranking.scores import ScoresName
from gram_fast.ranking.tournament import StrategyName
from gram_fast.results import Rewards
from gram_fast.serving.endpoint import Form, Listed, add_endpoint
from gram_fast.serving.refusal import OPENAI
from gram_fast.serving.service import Service
from gram_fast.text.arguments import OnError

Text = str | Listed[dict[str, Any]]
"""A prompt or a response: text, or chat messages."""
Texts = Annotated[Listed[Text], Field(min_length=1)]
if TYPE_CHECKING:
    MaybeText: TypeAlias = Any
else:
    MaybeText = Text | None  # null is a response that cannot be judged, as None is in process


class Asked(BaseModel):
    """What all requests may have."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = Field(None, description="Name of the judge; the server has one.")
    timeout: float | None = Field(None, gt=0, description="Seconds that the client waits; the server has a limit too.")
    orders: Orders = Field("both", description="Which of a pair stands in slot A.")
    mode: Mode = Field("full", description="Whether response B is read after A, or each by itself, by judges for it.")


class CompareAsked(Asked):
    """Two responses to a prompt."""

    prompt: Text
    a: Text
    b: Text


class BestAsked(Asked):
    """Two or more responses to a prompt, of which the best is wanted."""

    prompt: Text
    responses: Texts
    strategy: StrategyName = "knockout"
    scores: ScoresName = "auto"
    seed: int = Field(0, ge=0)
    rejudge: int | None = Field(None, ge=2, description="With mode factored, how many are judged again in full.")


class RankAsked(BestAsked):
    """Two or more responses to a prompt, which are to be ordered."""

    responses: Annotated[Listed[MaybeText], Field(min_length=1)]
    strategy: StrategyName = "round_robin"
    k: int | None = Field(None, ge=1)
    on_error: OnError = Field("none", description="What becomes of responses that cannot be judged.")


class VerifyAsked(BaseModel):
    """Responses to a prompt, which a verifier reads one by one."""

    model_config = Asked.model_config

    model: str | None = None
    timeout: float | None = Field(None, gt=0)
    prompt: Text
    responses: Texts


class RewardsAsked(Asked):
    """Groups of responses, of any size, and their prompts."""

    prompts: Listed[Text]
    groups: Listed[Listed[MaybeText]]
    references: Listed[Text] | None = None
    strategy: StrategyName | None = None
    scores: RewardsName = "auto"
    seed: int = Field(0, ge=0)
    k: int | None = Field(None, ge=1)
    duplicates: Duplicates = "merged"
    on_error: OnError = Field("none", description="What becomes of responses that cannot be judged.")


def add_native(router: APIRouter, service: Service) -> None:
    """Adds the endpoints of this protocol."""
    for path, model, answer, summary in (
        ("/v1/compare", CompareAsked, compare, "Compare two responses: P(a better than b)"),
        ("/v1/rank", RankAsked, rank, "Rank responses"),
        ("/v1/best_of_n", BestAsked, best_of_n, "Choose the best response"),
        ("/v1/verify", VerifyAsked, verify, "Verify responses one by one, with a verifier"),
        ("/v1/rewards", RewardsAsked, rewards, "Rewards of groups of responses"),
    ):
        add_endpoint(router, service, [path], Form(OPENAI, model, answer), summary=summary)


async def compare(service: Service, request: Request, asked: CompareAsked) -> dict[str, Any]:
    """Answers with a Comparison."""
    service.check_model(asked.model)
    result = await service.judged(
        request, lambda: service.judge.compare(asked.prompt, asked.a, asked.b, asked.orders, asked.mode), asked.timeout
    )
    return _answer(service, request, vars(result))


async def rank(service: Service, request: Request, asked: RankAsked) -> dict[str, Any]:
    """Answers with a Ranking."""
    service.check_model(asked.model)
    size = len(asked.responses)
    await service.check_work([size], "responses", asked.strategy, asked.k, asked.orders, asked.rejudge)
    settings = asked.model_dump(exclude={"model", "timeout", "prompt", "responses"})
    result = await service.judged(
        request, lambda: service.judge.rank(asked.prompt, asked.responses, **settings), asked.timeout
    )
    return _answer(service, request, vars(result))


async def best_of_n(service: Service, request: Request, asked: BestAsked) -> dict[str, Any]:
    """Answers with a Selection."""
    service.check_model(asked.model)
    size = len(asked.responses)
    await service.check_work([size], "responses", asked.strategy, None, asked.orders, asked.rejudge)
    settings = asked.model_dump(exclude={"model", "timeout", "prompt", "responses"})
    result = await service.judged(
        request, lambda: service.judge.best_of_n(asked.prompt, asked.responses, **settings), asked.timeout
    )
    return _answer(service, request, vars(result))


async def verify(service: Service, request: Request, asked: VerifyAsked) -> dict[str, Any]:
    """Answers with a Verification."""
    service.check_model(asked.model)
    service.check_items(len(asked.responses), "responses")
    result = await service.judged(request, lambda: service.judge.verify(asked.prompt, asked.responses), asked.timeout)
    return _answer(service, request, vars(result))


async def rewards(service: Service, request: Request, asked: RewardsAsked) -> dict[str, Any]:
    """Answers with the rewards of each group, None for what was not judged, and their comparisons."""
    service.check_model(asked.model)
    name = "reference" if asked.references is not None else asked.strategy or "round_robin"
    more = int(asked.references is not None)
    sizes = [len(group) + more for group in asked.groups]
    await service.check_work(sizes, "groups", name, asked.k, asked.orders)
    settings = asked.model_dump(exclude={"model", "timeout", "prompts", "groups"})
    result: Rewards = await service.judged(
        request, lambda: service.judge.rewards(asked.prompts, asked.groups, **settings), asked.timeout
    )
    found = {
        "rewards": list(result),
        "comparisons": result.comparisons,
        "errors": result.errors,
        "flagged": result.flagged,
        "stats": result.stats,
    }
    return _answer(service, request, found)


def _answer(service: Service, request: Request, found: dict[str, Any]) -> dict[str, Any]:
    return {"id": request.state.id, "model": service.model, **found}
