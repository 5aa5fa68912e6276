"""ServerGenerator: answers of a model behind somebody's server, vLLM's, SGLang's, llama.cpp's or another."""

import asyncio
import os
import queue
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

import httpx

from gram_fast.errors import InputError, ServerError, shown_value
from gram_fast.generating.generator import Generated, Generation, GenerationRequest, Sampling
from gram_fast.generating.openai_protocol import chat_body, completion_body
from gram_fast.generating.servers import Servers, UnreachableError, check_server, options
from gram_fast.scoring.stops import StoppedError, stop_of_call
from gram_fast.web import authorization, check_retries, check_timeout, check_url

# Seconds between two looks at whether the call is to stop.
_LOOK = 0.05


MakeBody = Callable[[GenerationRequest, Sampling], dict[str, Any]]


class ServerGenerator:
    """Has servers that speak OpenAI's protocol write the answers, all of one model.

    Each request goes to the server with the fewest in flight. Where a server is busy, fails, is cut off, is silent for
    too long or says what cannot be read, the request is made again, of another server where there are several, with
    growing pauses. Answers to one request are asked for together, where the server takes `n`, so that it reads the
    prompt once.

    Whether the same seed gives the same answers is the server's affair: vLLM's depend on what else is in its batches as
    far as rounding does.

    All requests run in the event loop of one thread, which the first call starts; calls of several threads share it.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        model: str,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        retries: int = 6,
        concurrency: int = 64,
        by_ids: bool,
    ) -> None:
        """Checks that every server is there and has the model, for ten seconds at most each.

        Args:
            urls: http://HOST:PORT of one server or of several, with /v1 or without.
            model: its name, as the servers have it.
            api_key: sent to all of them.
            timeout: seconds to wait for the answers to one request.
            retries: how often all servers are tried again.
            concurrency: most requests in flight at once, in all.
            by_ids: whether prompts are posted as token ids (/v1/completions), which leaves special tokens' text in a
                response text; else as user messages (/v1/chat/completions), which the servers' chat template frames.

        Raises InputError on a wrong argument, a key that is refused and a model that a server does not have,
        ServerError where a server cannot be reached or speaks another protocol.
        """
        urls = [urls] if isinstance(urls, str) else urls
        if not isinstance(urls, Sequence) or not urls:
            raise InputError(f"urls: expected http://HOST:PORT or a list of these, got {shown_value(urls)}")
        for url in urls:
            check_url(url)
        check_timeout(timeout)
        check_retries(retries)
        if type(concurrency) is not int or concurrency < 1:
            raise InputError(f"concurrency: expected an integer of at least 1, got {shown_value(concurrency)}")
        if not isinstance(model, str) or not model:
            raise InputError(f"model: expected the name of a model, got {shown_value(model)}")
        self._urls = [url.rstrip("/").removesuffix("/v1").rstrip("/") for url in urls]
        self._model = model
        self._path = "/v1/completions" if by_ids else "/v1/chat/completions"
        self._make_body: MakeBody = partial(completion_body if by_ids else chat_body, model)
        self._timeout, self._retries, self._concurrency = timeout, retries, concurrency
        is_encrypted = any(url.startswith("https") for url in urls)
        self._options = options(authorization(api_key), timeout, is_encrypted)
        self._lock, self._process = threading.Lock(), os.getpid()
        self._loop: tuple[asyncio.AbstractEventLoop, Servers] | None = None
        with httpx.Client(**self._options) as client:
            for url in self._urls:
                check_server(client, url, model)

    @property
    def name(self) -> str:
        """The engine and its model."""
        return f"{self._model} at {', '.join(self._urls)}"

    @property
    def at_once(self) -> int:
        """Requests in flight at once, in all."""
        return self._concurrency

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> Iterator[Generated]:
        """Yields answers as `TextGenerator` says, in the order in which they come.

        A request that every try failed at, or that a server refuses, has an error. Raises ServerError where no server
        can be reached after all tries, StoppedError in a call that is to stop.
        """
        is_stopped = stop_of_call()
        found: queue.SimpleQueue[Generated] = queue.SimpleQueue()
        loop, servers = self._running()
        call = asyncio.run_coroutine_threadsafe(
            _ask(partial(servers.ask, self._path), self._make_body, requests, sampling, found.put), loop
        )
        try:
            for _ in requests:
                yield _next(found, call.done, call.result, is_stopped)
        finally:
            call.cancel()

    def _running(self) -> tuple[asyncio.AbstractEventLoop, Servers]:
        """The loop of all requests; a forked child, which does not have the parent's thread, starts its own."""
        if self._process != os.getpid():
            self._lock, self._process, self._loop = threading.Lock(), os.getpid(), None
        with self._lock:
            if self._loop is None:
                self._loop = self._start()
            return self._loop

    def _start(self) -> tuple[asyncio.AbstractEventLoop, Servers]:
        loop, client = asyncio.new_event_loop(), httpx.AsyncClient(**self._options)
        threading.Thread(target=_run, args=(loop, client), name="gram_fast servers", daemon=True).start()
        weakref.finalize(self, loop.call_soon_threadsafe, loop.stop)
        return loop, Servers(client, self._urls, self._timeout, self._retries, self._concurrency)


# These know nothing of the generator, which may be dropped before they end: its end is that of the loop.


async def _ask(
    ask: Callable[..., Awaitable[list[Generation]]],
    make_body: MakeBody,
    requests: Sequence[GenerationRequest],
    sampling: Sampling,
    put: Callable[[Generated], None],
) -> None:
    try:
        async with asyncio.TaskGroup() as tasks:
            for number, request in enumerate(requests):
                tasks.create_task(_ask_for(ask, make_body, number, request, sampling, put))
    except* UnreachableError as group:
        raise group.exceptions[0] from None


async def _ask_for(
    ask: Callable[..., Awaitable[list[Generation]]],
    make_body: MakeBody,
    number: int,
    request: GenerationRequest,
    sampling: Sampling,
    put: Callable[[Generated], None],
) -> None:
    try:
        body = make_body(request, sampling)
        put((number, await ask(body, request.n, request.seed, sampling.top_logprobs > 0)))
    except UnreachableError:
        raise
    except (InputError, ServerError) as error:
        put((number, error))


def _run(loop: asyncio.AbstractEventLoop, client: httpx.AsyncClient) -> None:
    """Runs a loop until it is stopped, and closes its connections."""
    try:
        loop.run_forever()
        loop.run_until_complete(client.aclose())
    finally:
        loop.close()


def _next(
    found: "queue.SimpleQueue[Generated]",
    is_done: Callable[[], bool],
    result: Callable[[], Any],
    is_stopped: Callable[[], bool],
) -> Generated:
    """Waits for the next answers. Raises what the call raised, and StoppedError once it is to stop."""
    while True:
        has_ended = is_done()
        try:
            return found.get(timeout=_LOOK)
        except queue.Empty:
            if has_ended:
                result()  # raises
                raise
        if is_stopped():
            raise StoppedError("the call was stopped while servers were asked")
