"""Rerankers' protocols: Jina's, Cohere's and vLLM's `/rerank`, and that of text-embeddings-inference.

A document's relevance is P(it is better than an average one of the request): the sigmoid of its Bradley-Terry strength,
whose mean is 0. A single document has 0.5, as there is nothing to compare it with.

Sources: vLLM 0.32 (vllm/entrypoints/pooling/scoring), Cohere's OpenAPI of v1 and v2, Jina's clients, TEI 1.9.3
(router/src/http).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.requests import Request

from gram_fast import InputError
from gram_fast.ranking.tournament import StrategyName
from gram_fast.results import ForwardStats, Ranking, Stats
from gram_fast.serving.endpoint import Form, Listed, add_endpoint
from gram_fast.serving.refusal import OPENAI, Dialect, Kind, RefusedError
from gram_fast.serving.service import Service

# All pairs up to so many documents; above, each meets so many others.
_OPPONENTS = 8


def _text_of(document: Any) -> Any:
    """The text of a document, which may stand in an object; not of one with an image, which nobody would see."""
    return document.get("text") if isinstance(document, dict) and "image" not in document else document


def _listed(documents: Any) -> Any:
    """Documents of vLLM, which may be a single one."""
    return [documents] if isinstance(documents, str | dict) else documents


Document = Annotated[str, BeforeValidator(_text_of)]


class RerankAsked(BaseModel):
    """Documents to order by their relevance to a query. Fields that are not here are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model: str | None = None
    query: Annotated[str, Field(min_length=1), BeforeValidator(_text_of)]
    documents: Annotated[Listed[Document], BeforeValidator(_listed)] = Field(
        description='Texts, or objects {"text": ...}; or one of them.'
    )
    top_n: int | None = Field(None, ge=0, description="Most results; none or 0: all.")
    return_documents: bool = True


class TeiAsked(BaseModel):
    """Texts to order by their relevance to a query.

    Fields that are not here are ignored, `truncate` too: a text that is too long is an error, and none is cut.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    query: str
    texts: Listed[str]
    raw_scores: bool = False
    return_text: bool = False


def add_rerank(router: APIRouter, service: Service) -> None:
    """Adds the endpoints of these protocols; `/rerank` tells them by the field `texts`."""
    of_texts = Form(TEI, TeiAsked, tei, sign="texts")
    of_documents = Form(OPENAI, RerankAsked, rerank)
    summary = "Order documents by relevance"
    add_endpoint(router, service, ["/rerank"], of_texts, of_documents, summary=summary)
    add_endpoint(router, service, ["/v1/rerank", "/v2/rerank"], of_documents, summary=summary)


async def rerank(service: Service, request: Request, asked: RerankAsked) -> dict[str, Any]:
    """Answers like vLLM, Jina and Cohere: the best `top_n`, best first."""
    if not asked.documents:
        raise RefusedError("empty", "documents: expected at least one", "documents")
    ranking = await _ranked(service, request, asked.query, asked.documents, "documents")
    relevance = _sigmoid(np.array(ranking.scores))
    order = list(ranking.order)[: asked.top_n or None]
    found = [
        {"index": k, "relevance_score": float(relevance[k])}
        | ({"document": {"text": asked.documents[k]}} if asked.return_documents else {})
        for k in order
    ]
    tokens = ranking.stats.tokens_tree if isinstance(ranking.stats, ForwardStats) else 0
    return {
        "id": request.state.id,
        "model": asked.model or service.model,
        "object": "list",
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "results": found,
        "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
    }


async def tei(service: Service, request: Request, asked: TeiAsked) -> list[dict[str, Any]]:
    """Answers like text-embeddings-inference: all texts, best first; of equal ones the last first."""
    if not asked.texts:
        raise RefusedError("empty", "`texts` cannot be empty", "texts")
    ranking = await _ranked(service, request, asked.query, asked.texts, "texts")
    scores = np.array(ranking.scores) if asked.raw_scores else _sigmoid(np.array(ranking.scores))
    order = sorted(range(len(scores)), key=lambda k: (-scores[k], -k))
    return [
        {"index": k, **({"text": asked.texts[k]} if asked.return_text else {}), "score": float(scores[k])}
        for k in order
    ]


async def _ranked(service: Service, request: Request, query: str, texts: Sequence[str], name: str) -> Ranking:
    """Ranks texts, with Bradley-Terry strengths as scores. An over-long one is an error that names it."""
    if len(texts) == 1:
        return Ranking(0, (0,), (0.0,), (), {}, Stats(comparisons=0, seconds=0.0))
    strategy: StrategyName = "round_robin" if len(texts) <= _OPPONENTS else "opponents"
    k = None if strategy == "round_robin" else _OPPONENTS
    await service.check_work([len(texts)], name, strategy, k, "both")
    try:
        return await service.judged(
            request, lambda: service.judge.rank(query, texts, strategy, scores="bradley_terry", k=k)
        )
    except InputError as error:
        named = {
            place.replace("responses", name).replace("prompt", "query"): why for place, why in error.reasons.items()
        }
        raise InputError.of(named) if named else error from None


def _sigmoid(strengths: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-strengths)))


_TEI_TYPES: Mapping[Kind, str] = {"busy": "Overloaded", "failed": "Backend", "late": "Backend", "empty": "Empty"}


def _tei_error(refusal: RefusedError, status: int) -> dict[str, str]:
    return {"error": refusal.message, "error_type": _TEI_TYPES.get(refusal.kind, "Validation")}


TEI = Dialect(_tei_error, {"json": 422, "field": 422, "input": 422, "busy": 429, "failed": 424, "late": 424})
"""The form of text-embeddings-inference; what is wrong before the field `texts` is read has that of the others."""
