"""The servers of one model: which of them is asked, when again, and what their refusals become."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from gram_fast.errors import InputError, ServerError, one_line, shown_value
from gram_fast.generating.generator import Generation
from gram_fast.generating.openai_protocol import UnreadableError, read_answers
from gram_fast.web import CONNECT_TIMEOUT, wait_before_try

# Another try may have an answer, as with every status from 500.
_AGAIN = (408, 429)
_SHOWN = 300


@dataclass
class Server:
    """One server. All of it is used in one thread."""

    url: str
    """Without /v1."""
    in_flight: int = 0
    """Requests that it has and has not answered."""
    failures: int = 0
    """How often it could not be reached since it last was."""
    rest_until: float = 0.0
    """When it is to be asked again, by time.monotonic, if another can be asked meanwhile."""
    takes_n: bool = True
    """Whether it may be asked for several answers at once."""

    def was_reached(self) -> None:
        """Notes that it is there."""
        self.failures, self.rest_until = 0, 0.0

    def was_not_reached(self) -> None:
        """Notes that it is not."""
        self.rest_until = time.monotonic() + wait_before_try(self.failures, None)
        self.failures += 1


class UnreachableError(ServerError):
    """No server can be reached any more."""


class RefusedError(Exception):
    """A request that a server refuses, and would refuse again."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class FailedTryError(Exception):
    """A try without an answer; another may have one."""

    def __init__(self, message: str, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def options(headers: dict[str, str], timeout: float, is_encrypted: bool) -> dict[str, Any]:
    """Arguments of clients of httpx."""
    return {
        "headers": headers,
        "timeout": httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT)),
        # Made once: it takes 25 ms.
        "verify": httpx.create_ssl_context() if is_encrypted else False,
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=64),
    }


def check_server(client: httpx.Client, url: str, model: str) -> None:
    """Raises ServerError or InputError unless the server is there, takes the key and has the model."""
    place = f"{url}/v1/models"
    try:
        found = client.get(place, timeout=CONNECT_TIMEOUT)
    except (httpx.InvalidURL, ValueError) as error:
        raise InputError(f"url: expected http://HOST:PORT, got {shown_value(url)}: {one_line(error)}") from None
    except httpx.TransportError as error:
        raise ServerError(f"{url}: expected a server that can be reached: {one_line(error)}") from None
    if found.status_code in (401, 403):
        raise InputError(f"{place}: expected a valid API key, got status {found.status_code}")
    names = _model_names(found)
    if names is None:
        raise ServerError(
            f"{place}: expected a server of OpenAI's protocol with a list of its models, got status {found.status_code}"
        )
    if model not in names:
        raise InputError(f"{url}: expected the model {model!r}, but it has {', '.join(map(repr, names)) or 'none'}")


def _model_names(found: httpx.Response) -> list[str] | None:
    try:
        return [str(each["id"]) for each in found.json()["data"]] if found.status_code == 200 else None
    except (ValueError, KeyError, TypeError):
        return None


class Servers:
    """Servers of one model, for the tasks of one event loop."""

    def __init__(self, client: httpx.AsyncClient, urls: Sequence[str], timeout: float, retries: int, most: int) -> None:
        """`retries`: how often all are tried again. `most`: requests in flight at once, in all."""
        self._client, self._timeout, self._retries = client, timeout, retries
        self._servers = [Server(url) for url in urls]
        self._places = asyncio.Semaphore(most)

    async def ask(self, path: str, body: dict[str, Any], n: int, seed: int, wants_tokens: bool) -> list[Generation]:
        """Asks for n answers until it has them.

        Where a server gives fewer than it was asked for, it, or another, is asked for the others with another seed: the
        one that vLLM would have taken for them. Raises InputError where the request is refused, and ServerError where
        it failed at every try, UnreachableError where no server can be reached any more.
        """
        answers: list[Generation] = []
        # A request keeps its place while it waits: further tries are not made behind all other requests, and servers
        # that are busy get fewer.
        async with self._places:
            while len(answers) < n:
                its_seed = (seed + len(answers)) % 2**31
                found = await self._ask_again(path, {**body, "seed": its_seed}, n - len(answers), wants_tokens)
                answers += found[: n - len(answers)]
        return answers

    async def _ask_again(self, path: str, body: dict[str, Any], n: int, wants_tokens: bool) -> list[Generation]:
        """Asks until a server has given one answer or more. Each wait is after a try at every server."""
        failed: Server | None = None
        problem = ""
        for number in range((self._retries + 1) * len(self._servers)):
            server = self._choose(failed)
            try:
                return await self._ask_for(server, path, body, n, wants_tokens)
            except RefusedError as error:
                raise InputError(str(error)) from None
            except FailedTryError as error:
                failed, problem, retry_after = server, str(error), error.retry_after
            rounds, is_within = divmod(number + 1, len(self._servers))
            if not is_within and rounds <= self._retries:
                await asyncio.sleep(wait_before_try(rounds - 1, retry_after))
        raise (UnreachableError if all(server.failures for server in self._servers) else ServerError)(problem)

    def _choose(self, failed: Server | None) -> Server:
        """The server with the fewest requests in flight; others before one that cannot be reached, or just failed."""
        now = time.monotonic()
        return min(self._servers, key=lambda server: (server.rest_until > now, server is failed, server.in_flight))

    async def _ask_for(
        self, server: Server, path: str, body: dict[str, Any], n: int, wants_tokens: bool
    ) -> list[Generation]:
        # vLLM refuses several answers where they are all the same.
        if n == 1 or not server.takes_n or body.get("temperature") == 0:
            return await self._post(server, path, body, wants_tokens)
        try:
            return await self._post(server, path, {**body, "n": n}, wants_tokens)
        except RefusedError as error:
            if error.status not in (400, 422):
                raise
            # Because of n, if it takes the request without.
            answers = await self._post(server, path, body, wants_tokens)
            server.takes_n = False
            return answers

    async def _post(self, server: Server, path: str, body: dict[str, Any], wants_tokens: bool) -> list[Generation]:
        """One try. Raises RefusedError and FailedTryError."""
        place = f"{server.url}{path}"
        server.in_flight += 1
        try:
            # httpx's own limit is for each part of an answer, and starts anew with the next.
            async with asyncio.timeout(self._timeout):
                found = await self._client.post(place, json=body)
        except (TimeoutError, httpx.ReadTimeout):
            raise FailedTryError(f"{place}: expected an answer within {self._timeout:g} seconds, got none") from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            server.was_not_reached()
            raise FailedTryError(f"{server.url}: expected a server that can be reached: {one_line(error)}") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise FailedTryError(f"{place}: expected a whole answer: {one_line(error)}") from None
        finally:
            server.in_flight -= 1
        server.was_reached()
        status = found.status_code
        if status in _AGAIN or status >= 500:
            raise FailedTryError(f"{place}: {_message(found)}", found.headers.get("Retry-After"))
        if status != 200:
            raise RefusedError(status, f"{place}: {_message(found)}")
        try:
            return read_answers(found.json(), wants_tokens)
        except (ValueError, UnreadableError) as error:
            said = error if isinstance(error, UnreadableError) else "expected JSON"
            raise FailedTryError(f"{place}: {said}, got {_beginning(found.text)}") from None


def _message(found: httpx.Response) -> str:
    """What a server says of an error, in the forms that there are: {"error": {"message"}}, {"message"}, {"detail"}."""
    status = f"got status {found.status_code}"
    try:
        answer = found.json()
    except ValueError:
        return f"expected an answer, {status}: {_beginning(found.text)}"
    if isinstance(answer, dict):
        inner = answer.get("error")
        said = inner.get("message") if isinstance(inner, dict) else inner
        if said := said or answer.get("message") or answer.get("detail"):
            return f"expected an answer, {status}: {_beginning(str(said))}"
    return f"expected an answer, {status}"


def _beginning(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
