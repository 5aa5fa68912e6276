"""Endpoints: from a request to the answer or the refusal of its protocol."""

import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, FailFast, ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gram_fast.errors import InputError
from gram_fast.serving.refusal import STATUSES, ClientGoneError, Dialect, RefusedError
from gram_fast.serving.service import Answer, Service

logger = logging.getLogger(__name__)


class _First(FailFast):
    """FailFast in unions, whose members need a hash."""

    def __hash__(self) -> int:
        return hash(self.fail_fast)


T = TypeVar("T")
Listed = Annotated[list[T], _First()]
"""A list, of which the first wrong element alone is an error: a body may have millions, and seconds go by on them."""

# Of a body with many wrong fields, as many are named.
_NAMED = 4
# A body may have a million fields that there are not. To list their errors takes seconds.
_MOST_ERRORS = 1000
# pydantic's own, where it reads JSON itself.
_WORDS = {
    "list_type": "Input should be a valid array",
    "dict_type": "Input should be an object",
    "model_type": "Input should be an object",
}
# Characters of a field's name in a message.
_LONGEST_NAME = 80
# What nobody reads; nginx's number for it, in the log alone.
_GONE = 499


@dataclass(frozen=True)
class Form:
    """One kind of request that an endpoint takes."""

    dialect: Dialect
    model: type[BaseModel]
    """What the body holds."""
    answer: Answer
    sign: str | None = None
    """Field that tells this form from others of the same path; None: what no other form is told by."""

    def read(self, body: Any) -> BaseModel:
        """Checks a body. Raises RefusedError, which names the fields."""
        try:
            return self.model.model_validate(body)
        except ValidationError as error:
            count = error.error_count()
            if count > _MOST_ERRORS:
                raise RefusedError("field", f"expected the fields of this request, got {count} wrong ones") from None
            errors = error.errors(include_url=False, include_context=False, include_input=False)
        names = [_name(found["loc"]) for found in errors]
        told = [f"{name}: {_of_json(found)}" for name, found in zip(names, errors, strict=True)][:_NAMED]
        rest = f"; and {count - _NAMED} more" if count > _NAMED else ""
        raise RefusedError("field", "; ".join(told) + rest, names[0])


def add_endpoint(router: APIRouter, service: Service, paths: Sequence[str], *forms: Form, summary: str) -> None:
    """Adds an endpoint that takes requests of these forms; one without a sign, the last, stands for what has none."""

    async def read_and_answer(request: Request) -> Response:
        form = forms[-1]
        try:
            service.client_of(request)  # nothing of a stranger is read
            async with service.bodies.read(request) as body:
                form = next((form for form in forms if isinstance(body, dict) and form.sign in body), form)
                return as_json(await form.answer(service, request, form.read(body)))
        except RefusedError as refusal:
            return form.dialect.refuse(refusal)
        except InputError as error:
            param = next(iter(error.reasons), None)
            return form.dialect.refuse(RefusedError("input", str(error), param, error.reasons))
        except ClientGoneError:
            raise
        except Exception:
            logger.exception("request %s failed", request.state.id)
            return form.dialect.refuse(RefusedError("failed", "the server failed on this request"))

    for number, path in enumerate(paths):
        router.add_api_route(
            path,
            accounted(service, path, read_and_answer),
            methods=["POST"],
            summary=summary,
            response_class=JSONResponse,
            response_model=None,
            openapi_extra=_described(forms),
            responses={status: {"description": "refused"} for status in _statuses(forms)},
            include_in_schema=number == 0,
            name=path,
        )


def accounted(
    service: Service, path: str, answer: Callable[[Request], Awaitable[Response]]
) -> Callable[[Request], Awaitable[Response]]:
    """Counts and logs what is answered, under an id: that of the header X-Request-Id, or a new one."""

    async def handle(request: Request) -> Response:
        began = time.monotonic()
        given = request.headers.get("x-request-id", "")
        request.state.id = given if given.isascii() and given.isprintable() and 0 < len(given) <= 128 else _new_id()
        status = _GONE
        try:
            response = await answer(request)
            status = response.status_code
        except ClientGoneError:
            service.metrics.gone.inc()
            response = Response(status_code=status)
        finally:
            seconds = time.monotonic() - began
            service.metrics.requests.labels(path, str(status)).inc()
            service.metrics.seconds.labels(path).observe(seconds)
            level = logging.INFO if request.method == "POST" else logging.DEBUG  # what looks in every second
            logger.log(
                level,
                "%s %d",
                path,
                status,
                extra={"request_id": request.state.id, "path": path, "status": status, "seconds": seconds},
            )
        response.headers["X-Request-Id"] = request.state.id
        if service.is_closing:  # so that the client sends no other request into a connection that is about to end
            response.headers["Connection"] = "close"
        return response

    return handle


def as_json(answer: Any) -> Response:
    """The JSON of an answer, which may hold results as they are: 6 MB with 49,770 preferences take 0.05 seconds.

    A number of the request that is too large for a float, and is told back, is null, as in JavaScript.
    """
    return Response(to_json(answer, inf_nan_mode="null"), media_type="application/json")


def _of_json(error: Mapping[str, Any]) -> str:
    """What is wrong with a field, in words of JSON rather than of Python."""
    return _WORDS.get(error["type"]) or str(error["msg"])


def _name(place: Sequence[str | int]) -> str:
    """Names a field; where there is no such field, the name is the client's own, and may be anything."""
    name = ".".join(map(str, place))[:_LONGEST_NAME]
    return (name if name.isprintable() else ascii(name)) or "the body"


def _new_id() -> str:
    return uuid.uuid4().hex


def _described(forms: Sequence[Form]) -> dict[str, Any]:
    """Describes the body of an endpoint for OpenAPI."""
    schemas = [_whole(form.model.model_json_schema()) for form in forms]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _whole(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with its definitions in their places: inside of another document, references to them lead nowhere."""
    definitions = schema.pop("$defs", {})

    def put(value: Any) -> Any:
        if isinstance(value, list):
            return [put(one) for one in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return put(definitions[value["$ref"].rpartition("/")[2]])
        return {name: put(one) for name, one in value.items()}

    return {name: put(value) for name, value in schema.items()}


def _statuses(forms: Sequence[Form]) -> list[int]:
    return sorted({form.dialect.status(kind) for form in forms for kind in STATUSES})
