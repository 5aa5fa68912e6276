"""Applications of the server for tests: in this process without a socket, and on a real one behind uvicorn."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI

from gram_fast import PairwiseJudge
from gram_fast.serving.app import make_app
from helpers.comparers import LengthComparer


class Client:
    """Asks an application from outside of its event loop. Exceptions that leave the application are raised here."""

    def __init__(self, portal: BlockingPortal, client: httpx.AsyncClient) -> None:
        self._portal, self._client = portal, client

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.request("GET", path, **more)

    def post(self, path: str, json: Any = None, **more: Any) -> httpx.Response:
        return self.request("POST", path, **({} if json is None else {"json": json}), **more)

    def post_raw(self, path: str, content: bytes, **headers: str) -> httpx.Response:
        """Posts bytes as JSON, whatever they are; `headers` may say that they are something else."""
        return self.request("POST", path, content=content, headers={"content-type": "application/json", **headers})

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self._portal.call(lambda: self._client.request(method, path, **more))


def length_app(comparer: LengthComparer | None = None, **options: Any) -> FastAPI:
    """The application of a judge without a model, "judge" by name."""
    return make_app(PairwiseJudge(comparer or LengthComparer()), **options)


@contextmanager
def in_process(app: FastAPI) -> Iterator[Client]:
    """A client of an application that runs in an event loop of its own, between its start and its end."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(app.router.lifespan_context(app)),
    ):
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://judge", timeout=30)
        with portal.wrap_async_context_manager(client):
            yield Client(portal, client)


@contextmanager
def on_a_port(app: Any, port: int = 0) -> Iterator[str]:
    """The address of an application that uvicorn serves in a thread, on a free port unless one is given."""
    with socket.create_server(("127.0.0.1", port)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", http="h11"))
        thread = threading.Thread(target=server.run, args=([listening],), name="uvicorn")
        thread.start()
        try:
            # Those that come before the server has started wait in the socket's queue.
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


class HeldComparer(LengthComparer):
    """One whose calls begin to compare when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.is_held, self.let_go = threading.Event(), threading.Event()

    @contextmanager
    def open(self, *args: Any, **more: Any) -> Iterator[Any]:
        self.is_held.set()
        assert self.let_go.wait(30)
        with super().open(*args, **more) as session:
            yield session


@contextmanager
def busy(comparer: HeldComparer, ask: Any) -> Iterator[None]:
    """Runs a block while the server judges what `ask` asks for in a thread; it may let the comparer go itself."""
    thread = threading.Thread(target=ask)
    thread.start()
    try:
        assert comparer.is_held.wait(30)
        yield
    finally:
        comparer.let_go.set()
        thread.join()


def until(condition: Any) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
