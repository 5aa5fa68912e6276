"""Scores of any text by the next token: vLLM's `/generative_scoring` and SGLang's `/v1/score`.

The labels may be any tokens, and with `apply_softmax` false a score is a probability over the whole vocabulary, so that
both take the model's output embedding, which judging never reads. Items of one query share it. Nothing is cut: what is
too long is an error.

Sources: vLLM 0.32 (vllm/entrypoints/generate/generative_scoring), SGLang 0.5.23 (serving_score.py).
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from gram_fast import InputError
from gram_fast.comparing.label_comparer import LabelComparer
from gram_fast.comparing.next_tokens import next_token_logprobs
from gram_fast.results import ForwardStats
from gram_fast.serving.endpoint import Form, Listed, add_endpoint
from gram_fast.serving.refusal import OPENAI, Dialect, RefusedError
from gram_fast.serving.service import Service
from gram_fast.text.tokens import Ids

Scored = tuple[NDArray[np.float32], ForwardStats]


class VllmAsked(BaseModel):
    """A query and items behind it (or before it), and the tokens whose probabilities are wanted."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model: str | None = None
    query: str | Listed[int]
    items: Listed[str] | Listed[Listed[int]]
    label_token_ids: Listed[int]
    apply_softmax: bool = True
    item_first: bool = False
    add_special_tokens: bool = True
    request_id: str | None = None


class SglangAsked(BaseModel):
    """The same, all of it optional; texts of query and item are joined before they become tokens."""

    model_config = ConfigDict(extra="ignore", strict=True)

    query: str | Listed[int] | None = None
    items: str | Listed[str] | Listed[Listed[int]] | None = None
    label_token_ids: Listed[int] | None = None
    apply_softmax: bool = False
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    item_first: bool = False
    model: str = "default"


def add_scoring(router: APIRouter, service: Service, comparer: LabelComparer) -> None:
    """Adds the endpoints; `comparer`: whose model scores."""
    scoring = _Scoring(comparer)
    add_endpoint(
        router,
        service,
        ["/generative_scoring"],
        Form(OPENAI, VllmAsked, scoring.vllm),
        summary="vLLM's scores by the next token",
    )
    add_endpoint(
        router,
        service,
        ["/v1/score"],
        Form(SGLANG, SglangAsked, scoring.sglang),
        summary="SGLang's scores by the next token",
    )


class _Scoring:
    def __init__(self, comparer: LabelComparer) -> None:
        self._comparer = comparer

    async def vllm(self, service: Service, request: Request, asked: VllmAsked) -> dict[str, Any]:
        """One score an item, that of the first label."""
        service.check_model(asked.model)
        for name in ("label_token_ids", "items"):
            if not getattr(asked, name):
                one = "token ID" if name == "label_token_ids" else "item"
                raise RefusedError("empty", f"{name} must contain at least one {one}.")
        service.check_items(len(asked.items), "items")
        service.check_comparisons(len(asked.items) * len(asked.label_token_ids))
        labels = list(dict.fromkeys(asked.label_token_ids))

        def score() -> Scored:
            query = self._ids(asked.query, asked.add_special_tokens)
            items = [self._ids(item, False) for item in asked.items]
            return self._scored(
                service, [(item, query) if asked.item_first else (query, item) for item in items], labels
            )

        logprobs, stats = await service.judged(request, score)
        scores = _probabilities(logprobs, asked.apply_softmax)[:, 0]
        name = request.state.id if request.headers.get("x-request-id") else asked.request_id or request.state.id
        return {
            "id": f"generative-scoring-{name}",
            "object": "list",
            "created": int(time.time()),
            "model": service.model,
            "data": [{"index": k, "object": "score", "score": float(value)} for k, value in enumerate(scores)],
            "usage": {
                "prompt_tokens": stats.tokens_unshared,
                "total_tokens": stats.tokens_unshared + len(scores),
                "completion_tokens": len(scores),
                "prompt_tokens_details": None,
                "completion_tokens_details": None,
            },
        }

    async def sglang(self, service: Service, request: Request, asked: SglangAsked) -> dict[str, Any]:
        """A row of all labels an item."""
        items = [asked.items] if isinstance(asked.items, str) and asked.items else asked.items or []
        service.check_items(len(items), "items")
        service.check_comparisons(len(items) * len(asked.label_token_ids or []))
        self._check(asked, items)
        sequences_of = self._sequences(asked, items)
        rows, tokens = np.empty((0, 0)), 0
        if items:
            assert asked.label_token_ids is not None
            labels = asked.label_token_ids
            logprobs, stats = await service.judged(request, lambda: self._scored(service, sequences_of(), labels))
            rows, tokens = _probabilities(logprobs, asked.apply_softmax, asked.temperature), stats.tokens_unshared
        return {
            "scores": rows.tolist(),
            "pooled_hidden_states": None,
            "token_logprobs": None,
            "model": asked.model,
            "usage": {
                "prompt_tokens": tokens,
                "total_tokens": tokens,
                "completion_tokens": 0,
                "prompt_tokens_details": None,
                "reasoning_tokens": 0,
                "completion_tokens_details": None,
            },
            "object": "scoring",
        }

    def _check(self, asked: SglangAsked, items: Sequence[Any]) -> None:
        labels = asked.label_token_ids
        if labels is None:
            raise RefusedError("field", "label_token_ids is required for generation (CausalLM) models.")
        if asked.items is None:
            raise RefusedError("field", "items must be provided")
        if not labels:
            raise RefusedError("field", "label_token_ids must be a nonempty list")
        if len(set(labels)) < len(labels):
            raise RefusedError("field", "label_token_ids must not contain duplicate tokens")
        if asked.temperature != 1.0 and not asked.apply_softmax:
            raise RefusedError("field", "temperature: expected 1.0 without apply_softmax")
        kinds = {isinstance(text, str) for text in (*([] if asked.query is None else [asked.query]), *items)}
        if len(kinds) > 1:
            raise RefusedError("field", "Invalid combination of query/items types for score_request.")

    def _sequences(self, asked: SglangAsked, items: Sequence[Any]) -> Any:
        """Makes what makes the sequences, in a thread: strings are joined and then encoded, ids are joined."""

        def sequences() -> list[tuple[Ids, ...]]:
            if items and isinstance(items[0], str):
                text = asked.query or ""
                return [(self._ids(item + text if asked.item_first else f"{text}{item}", True),) for item in items]
            query = self._ids(asked.query or [], False)
            rows = [self._ids(item, False) for item in items]
            return [(item, query) if asked.item_first else (query, item) for item in rows]

        return sequences

    def _ids(self, text: str | Sequence[int], adds_special_tokens: bool) -> Ids:
        if isinstance(text, str):
            return np.array(
                self._comparer.tokenizer.plain.encode(text, add_special_tokens=adds_special_tokens), np.int32
            )
        if not all(0 <= token < 2**31 for token in text):
            raise InputError("token ids: expected numbers from 0 on that fit 32 bits")
        return np.array(text, np.int32)

    def _scored(self, service: Service, sequences: Sequence[Sequence[Ids]], labels: Sequence[int]) -> Scored:
        found, stats = next_token_logprobs(self._comparer, sequences, labels)
        service.metrics.count(stats)
        return found, stats


def _probabilities(
    logprobs_SK: NDArray[np.float32], among_labels: bool, temperature: float = 1.0
) -> NDArray[np.float64]:
    """Probabilities of the labels, among them alone or among all tokens, float64 [S, K]."""
    wide_SK = logprobs_SK.astype(np.float64)
    if among_labels:
        with np.errstate(over="ignore"):  # what is far less likely has none at a temperature of almost 0
            wide_SK = (wide_SK - wide_SK.max(axis=1, keepdims=True)) / temperature
    found_SK: NDArray[np.float64] = np.exp(wide_SK)
    return found_SK / found_SK.sum(axis=1, keepdims=True) if among_labels else found_SK


def _sglang_error(refusal: RefusedError, status: int) -> Any:
    if refusal.kind == "key":
        return {"error": "Unauthorized"}
    types = {"busy": "503", "failed": "InternalServerError", "late": "InternalServerError", "json": "Bad Request"}
    kind = types.get(refusal.kind, "BadRequestError")
    return {"object": "error", "message": refusal.message, "type": kind, "param": None, "code": status}


SGLANG = Dialect(_sglang_error)
