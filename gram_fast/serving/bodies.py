"""Bodies of requests: read within limits of size, time and memory, and parsed."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from gram_fast.serving.limits import Limits
from gram_fast.serving.refusal import ClientGoneError, RefusedError


class Bodies:
    """The bodies of open requests: their bytes count from when they come until the request has its answer.

    Those that wait for the judge or for their group are most of them, and held as long as they wait.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.num_bytes = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[Any]:
        """Reads the JSON of a request, which is answered within the context.

        Raises RefusedError on a body that is none, too large or too slow, and where others leave no room for it;
        ClientGoneError when the client has gone.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise RefusedError("media", "expected a body with Content-Type: application/json")
        request.state.num_bytes = 0
        try:
            yield parsed(await self._whole(request))
        finally:
            self.num_bytes -= request.state.num_bytes

    async def _whole(self, request: Request) -> bytes:
        seconds = self._limits.body_timeout
        try:
            return await asyncio.wait_for(self._bytes(request), seconds)
        except TimeoutError:
            raise RefusedError("slow", f"expected the whole body within {seconds:g} seconds") from None
        except ClientDisconnect:
            raise ClientGoneError from None

    async def _bytes(self, request: Request) -> bytes:
        announced = request.headers.get("content-length", "")
        # No more digits than those of any size, which Python takes for a number.
        size = int(announced[:20]) if announced.isdecimal() else 0
        self._check(size, more=size)
        parts = []
        async for part in request.stream():
            self._check(request.state.num_bytes + len(part), more=len(part))
            self.num_bytes += len(part)
            request.state.num_bytes += len(part)
            parts.append(part)
        return b"".join(parts)

    def _check(self, size: int, more: int) -> None:
        """Raises RefusedError on a body of this size, with so many bytes more than were counted."""
        if size > (most := self._limits.max_body_bytes):
            raise RefusedError("size", f"expected a body of at most {most} bytes, got more")
        if self.num_bytes + more > self._limits.max_open_bytes:
            raise RefusedError("busy", f"open requests have {self.num_bytes} bytes, try again later")


def parsed(body: bytes) -> Any:
    """Parses JSON, of which NaN and infinities are no part. Raises RefusedError on what is none.

    JSON has no cycles, and their collector would go over what there is so far again and again: 12 MB of `[]` take 0.2
    seconds, with it 4. The event loop stands still for as long, in whatever thread: the parser keeps Python's lock.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RefusedError("json", f"expected a body of JSON: {error}") from None
    finally:
        if collects:
            gc.enable()
