"""A connection to a server: posts JSON, tries again where that may help, and turns refusals into errors."""

import asyncio
import os
import time
from collections.abc import Mapping
from typing import Any

import httpx

from gram_fast.errors import InputError, ServerError, one_line, shown_value
from gram_fast.web import CONNECT_TIMEOUT, authorization, check_retries, check_timeout, check_url, wait_before_try

# Another try may have an answer: too many requests, or a server that is starting or being replaced.
_AGAIN = (408, 429, 502, 503)
# No other try would do better.
_FINAL = (httpx.ReadTimeout, httpx.UnsupportedProtocol, httpx.LocalProtocolError)


class Connection:
    """One server, for any number of threads and tasks."""

    def __init__(self, url: str, api_key: str | None, timeout: float, retries: int) -> None:
        """Arguments as for `from_server`. Raises InputError on one that is wrong."""
        check_url(url)
        check_timeout(timeout)
        check_retries(retries)
        self.url, self.timeout, self.retries = url.rstrip("/"), timeout, retries
        self._options: dict[str, Any] = {
            "base_url": self.url,
            "headers": authorization(api_key),
            "timeout": httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT)),
            # Made once: it takes 25 ms.
            "verify": httpx.create_ssl_context() if url.startswith("https") else False,
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=64),
        }
        try:
            self._client, self._process = httpx.Client(**self._options), os.getpid()
        except (httpx.InvalidURL, ValueError) as error:
            raise InputError(f"url: expected http://HOST:PORT, got {shown_value(url)}: {one_line(error)}") from None

    def get(self, path: str) -> Any:
        """The JSON at a path. Raises errors like `post`."""
        return self._send("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any], session: str | None = None) -> Any:
        """Posts JSON -> the JSON of the answer.

        `session`: digest of what requests have in common that should go to one of a server's replicas.

        Where the server is busy or cannot be reached, tries again, up to `retries` times: what is posted must be the
        same however often it is. Raises InputError on what the server refuses, with its `reasons`, and ServerError
        where it cannot be reached, fails or answers something else.
        """
        return self._send("POST", path, body, session)

    async def post_async(self, path: str, body: Mapping[str, Any], session: str | None = None) -> Any:
        """Posts like `post`, without stopping the event loop."""
        # A client belongs to one event loop, and threads may have one each: it lives as long as its request.
        async with httpx.AsyncClient(**self._options) as client:
            for attempt in range(self.retries + 1):
                try:
                    found: httpx.Response | httpx.TransportError = await client.post(
                        path, json=body, headers=_of_session(session)
                    )
                except httpx.TransportError as error:
                    found = error
                wait = self._wait_after(attempt, found)
                if wait is None:
                    break
                await asyncio.sleep(wait)
        return self._answer(path, found)

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None, session: str | None = None) -> Any:
        for attempt in range(self.retries + 1):
            if self._process != os.getpid():  # a forked child would share its parent's sockets
                self._client, self._process = httpx.Client(**self._options), os.getpid()
            try:
                found: httpx.Response | httpx.TransportError = self._client.request(
                    method, path, json=body, headers=_of_session(session)
                )
            except httpx.TransportError as error:
                found = error
            wait = self._wait_after(attempt, found)
            if wait is None:
                break
            time.sleep(wait)
        return self._answer(path, found)

    def _wait_after(self, attempt: int, found: httpx.Response | httpx.TransportError) -> float | None:
        """Seconds to wait before another attempt; None where there is to be none."""
        if attempt == self.retries or isinstance(found, _FINAL):
            return None
        if isinstance(found, httpx.TransportError):
            return wait_before_try(attempt, None)
        # Of a proxy whose replica ended: Ray Serve's has plain text. The server's own 500 says what it was.
        is_of_proxy = found.status_code == 500 and "json" not in found.headers.get("Content-Type", "")
        if found.status_code not in _AGAIN and not is_of_proxy:
            return None
        return wait_before_try(attempt, found.headers.get("Retry-After"))

    def _answer(self, path: str, found: httpx.Response | httpx.TransportError) -> Any:
        """The JSON of a response. Raises errors like `post`."""
        if isinstance(found, httpx.ReadTimeout):
            raise ServerError(f"{self.url}{path}: expected an answer within {self.timeout:g} seconds, got none")
        if isinstance(found, httpx.TransportError):
            raise ServerError(f"{self.url}: expected a server that can be reached: {one_line(found)}")
        place, status = f"{self.url}{path}", found.status_code
        try:
            answer = found.json()
        except ValueError:
            raise ServerError(f"{place}: expected JSON of a gram-fast server, got status {status} without it") from None
        if status == 200:
            return answer
        error = answer.get("error") if isinstance(answer, dict) else None
        if not isinstance(error, dict) or not isinstance(error.get("message"), str):
            raise ServerError(f"{place}: expected a gram-fast server, got status {status}")
        reasons = error.get("reasons")
        if isinstance(reasons, dict):
            raise InputError.of(reasons)
        kind = InputError if status in (400, 401, 404, 413) else ServerError
        raise kind(f"{place}: {error['message']}")


def _of_session(session: str | None) -> dict[str, str]:
    """The header by which Ray Serve and other proxies choose the replica."""
    return {} if session is None else {"X-Session-Id": session}
