"""Refusals: why a request has no answer, and how a protocol says so."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from starlette.responses import JSONResponse, Response

Kind = Literal["media", "json", "field", "empty", "input", "key", "model", "size", "slow", "busy", "late", "failed"]
"""What is wrong: the content type, the JSON, a field of it, a list that is empty, a text that cannot be judged, the API
key, the name of the model, the size of the body, the speed at which it comes; too many requests, or too many bytes of
them; time that is over, an error of the judge."""

STATUSES: Mapping[Kind, int] = MappingProxyType(
    {
        "media": 415, "json": 400, "field": 400, "empty": 400, "input": 400, "key": 401, "model": 404, "size": 413,
        "slow": 408, "busy": 503, "late": 504, "failed": 500,
    }
)  # fmt: skip
"""Status codes that most protocols have."""

# Seconds after which a client may try again. More would leave the judge idle: it answers small requests at once.
_RETRY_AFTER = "1"


class RefusedError(Exception):
    """A request that gets no answer; the message is one sentence."""

    def __init__(
        self, kind: Kind, message: str, param: str | None = None, reasons: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        super().__init__(message)
        self.kind, self.message, self.param, self.reasons = kind, message, param, reasons


class ClientGoneError(Exception):
    """The client went away; nobody reads an answer."""


@dataclass(frozen=True)
class Dialect:
    """How a protocol refuses."""

    body: Callable[[RefusedError, int], Any]
    """The JSON of a refusal with a status."""
    statuses: Mapping[Kind, int] = field(default_factory=dict)
    """Status codes that are not those of `STATUSES`."""

    def status(self, kind: Kind) -> int:
        """The status code of a kind of refusal."""
        return self.statuses.get(kind, STATUSES[kind])

    def refuse(self, refusal: RefusedError) -> Response:
        """Makes the response of a refusal."""
        status = self.status(refusal.kind)
        headers = {}
        if refusal.kind == "busy":
            headers["Retry-After"] = _RETRY_AFTER
        if refusal.kind == "key":
            headers["WWW-Authenticate"] = "Bearer"
        if refusal.kind in ("size", "slow"):
            headers["Connection"] = "close"  # the rest of the body is not read
        return JSONResponse(self.body(refusal, status), status_code=status, headers=headers)


_TYPES: Mapping[Kind, str] = {
    "key": "Unauthorized",
    "model": "NotFoundError",
    "busy": "Service Unavailable",
    "late": "Timeout",
    "failed": "InternalServerError",
    "json": "Bad Request",
    "field": "Bad Request",
}


def openai_error(refusal: RefusedError, status: int) -> dict[str, Any]:
    """The form of OpenAI and vLLM: {"error": {"message", "type", "param", "code"}}, with `reasons` where there are.

    `message` and `detail` stand beside it, where clients of Cohere and Jina read them.
    """
    error: dict[str, Any] = {
        "message": refusal.message,
        "type": _TYPES.get(refusal.kind, "BadRequestError"),
        "param": refusal.param,
        "code": status,
    }
    if refusal.reasons:
        error["reasons"] = dict(refusal.reasons)
    return {"error": error, "message": refusal.message, "detail": refusal.message}


OPENAI = Dialect(openai_error)


def _fastapi_error(refusal: RefusedError, status: int) -> dict[str, Any]:
    return {"detail": [{"type": refusal.kind, "loc": ["body", *filter(None, [refusal.param])], "msg": refusal.message}]}


FASTAPI = Dialect(_fastapi_error, {"json": 422, "field": 422, "empty": 422, "input": 422})
"""The form of FastAPI itself, in which NeMo-Gym's servers refuse."""
