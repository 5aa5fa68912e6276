"""Connections: clients that go away, send or read slowly, send too much, or ask before they are answered."""

import json
import logging
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest
from helpers.served import HeldComparer, busy, in_process, length_app, until
from helpers.small_models import tiny_judge

from gram_fast.serving.app import make_app
from gram_fast.serving.limits import Limits
from gram_fast.serving.server import make_server

pytestmark = pytest.mark.usefixtures("one_thread")

PAIR = {"prompt": "p", "a": "long one", "b": "short"}


@contextmanager
def running(app: Any, limits: Limits) -> Iterator[str]:
    """The address of an application behind the server that the command runs, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = make_server(app, limits)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def connection(url: str) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", httpx.URL(url).port))
    made.settimeout(20)
    return made


def head(path: str, length: int) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


def received(client: socket.socket) -> int:
    """Bytes that still come before the connection ends."""
    count = 0
    with suppress(ConnectionResetError, TimeoutError):
        while part := client.recv(2**20):
            count += len(part)
    return count


def test_a_client_that_goes_away_frees_the_judge(monkeypatch):
    judge = tiny_judge(max_batch_tokens=256)
    running_passes, may_run, passes = threading.Event(), threading.Event(), []
    own = judge.comparer.runner.forward

    def forward(tree_pass: Any, store: Any) -> Any:
        running_passes.set()
        passes.append(tree_pass.num_tokens)
        assert may_run.wait(30)
        return own(tree_pass, store)

    monkeypatch.setattr(judge.comparer.runner, "forward", forward)
    app = make_app(judge)
    with running(app, Limits()) as url, connection(url) as leaving:
        responses = [f"{k} " * 30 for k in range(30)]
        body = json.dumps({"prompt": "p", "responses": responses}).encode()
        leaving.sendall(head("/v1/rank", len(body)) + body)
        assert running_passes.wait(30)
        leaving.close()
        until(lambda: app.state.service.open.count == 0)
        may_run.set()
        assert httpx.post(f"{url}/v1/compare", json=PAIR, timeout=60).status_code == 200
        assert len(passes) < 10  # of hundreds
        assert "gram_fast_requests_gone_total 1.0" in httpx.get(f"{url}/metrics").text


@pytest.mark.parametrize("share", [0.1, 0.9, 1.0])
def test_clients_that_are_killed_cost_others_nothing(share, caplog):
    judge = tiny_judge()
    expected = judge.compare(**PAIR).p
    app = make_app(judge)
    body = json.dumps({"prompt": "p", "responses": [f"{k} " * 10 for k in range(8)]}).encode()
    sent = head("/v1/rank", len(body)) + body
    with running(app, Limits()) as url, ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        asked = pool.map(lambda _: httpx.post(f"{url}/v1/compare", json=PAIR, timeout=60).json()["p"], range(10))
        for _ in range(100):
            killed = stack.enter_context(connection(url))
            killed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # as the kernel does
            killed.sendall(sent[: int(share * len(sent))])
        stack.close()
        assert list(asked) == pytest.approx([expected] * 10, abs=1e-5)
        until(lambda: app.state.service.open.count == app.state.service.bodies.num_bytes == 0)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_near_the_end_a_client_is_told_to_open_no_request_behind_its_last():
    held, limits = HeldComparer(), Limits()
    app = length_app(held)
    with running(app, limits) as url, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{url}/v1/compare", json=PAIR)
        assert held.is_held.wait(30)
        app.state.service.is_closing = True
        held.let_go.set()
        assert answer.result().headers["connection"] == "close"


def test_a_body_over_the_limit_is_not_read():
    with in_process(length_app(limits=Limits(max_body_bytes=100))) as client:
        body = json.dumps(PAIR).encode()
        assert client.post_raw("/v1/compare", body).status_code == 200
        large = json.dumps(PAIR | {"a": "x" * 100}).encode()
        assert client.post_raw("/v1/compare", large).status_code == 413

        async def parts():
            for k in range(0, len(large), 10):
                yield large[k : k + 10]

        answer = client.request("POST", "/v1/compare", content=parts(), headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["message"]) == (
            413,
            "expected a body of at most 100 bytes, got more",
        )
        assert answer.headers["connection"] == "close"


def chunked(path: str, chunk: bytes) -> bytes:
    """A request whose body has this chunk, and perhaps more."""
    return head(path, 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"%x\r\n%b\r\n" % (
        len(chunk),
        chunk,
    )


def test_bodies_that_come_have_a_limit_together():
    limits = Limits(max_body_bytes=1000)
    app = length_app(limits=limits)
    bodies = app.state.service.bodies
    with running(app, limits) as url:
        with ExitStack() as stack:
            for number in range(64):
                slow = stack.enter_context(connection(url))
                slow.sendall(head("/v1/compare", 1000) + b" " * 999 if number % 2 else chunked("/v1/rank", b" " * 999))
            until(lambda: bodies.num_bytes == 64 * 999)
            refused = httpx.post(f"{url}/v1/compare", json=PAIR | {"a": "x" * 100})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json()["error"]["message"] == "open requests have 63936 bytes, try again later"
            gym = httpx.post(f"{url}/compare", json={"conversation_history": [], "response_objs": ["x" * 100]})
            assert (gym.status_code, gym.json()["detail"][0]["type"]) == (503, "busy")
            late = stack.enter_context(connection(url))
            late.sendall(chunked("/v1/compare", b" " * 900))
            assert late.recv(1000).startswith(b"HTTP/1.1 503")
            assert bodies.num_bytes == 64 * 999
        until(lambda: bodies.num_bytes == 0)
        assert httpx.post(f"{url}/v1/compare", json=PAIR).status_code == 200


def test_the_body_of_a_request_counts_until_it_has_its_answer():
    held = HeldComparer()
    app = length_app(held)
    bodies, size = app.state.service.bodies, len(httpx.Request("POST", "http://x", json=PAIR).content)
    with in_process(app) as client:
        with busy(held, lambda: client.post("/v1/compare", PAIR)):
            assert bodies.num_bytes == size
        for body in (PAIR, {"prompt": "p"}, []):
            client.post("/v1/compare", body)
        client.post_raw("/v1/compare", b"{")
        assert bodies.num_bytes == 0


@pytest.mark.parametrize("sent", [b"", b"POST /v1/comp", b"POST /v1/compare HTTP/1.1\r\nHost: x\r\nContent-Le"])
def test_a_head_that_does_not_come_costs_a_connection_for_a_while_only(sent):
    limits = Limits(body_timeout=0.3)
    with running(length_app(limits=limits), limits) as url:
        with connection(url) as slow:
            slow.sendall(sent)
            assert slow.recv(100) == b""  # closed
        assert httpx.post(f"{url}/v1/compare", json=PAIR).status_code == 200


def test_the_second_head_of_a_connection_has_to_come_too():
    limits = Limits(body_timeout=0.3)
    with running(length_app(limits=limits), limits) as url, connection(url) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert slow.recv(1000).startswith(b"HTTP/1.1 200")
        slow.sendall(b"GET /hea")
        assert slow.recv(100) == b""


def test_an_answer_that_is_not_taken_is_dropped():
    limits = Limits(body_timeout=0.2)
    body = json.dumps({"responses_create_params": {"input": "x" * 12_000_000}, "response": {}}).encode()
    sent = head("/verify", len(body)).replace(b"Host: x", b"Host: x\r\nConnection: close") + body
    with running(length_app(limits=limits), limits) as url:
        for seconds, is_whole in ((0.1, True), (1.0, False)):
            with connection(url) as slow:
                slow.sendall(sent)
                time.sleep(seconds)
                assert (received(slow) > len(body)) == is_whole


SECOND = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("header", [b"", b"Connection: close", b"Connection: upgrade\r\nUpgrade: h2c"])
@pytest.mark.parametrize("is_together", [True, False])
def test_a_request_behind_another_hides_no_client_that_goes_away(header, is_together):
    held, limits, body = HeldComparer(), Limits(), json.dumps(PAIR).encode()
    app = length_app(held)
    first = head("/v1/compare", len(body)).replace(b"Host: x", b"\r\n".join(filter(None, [b"Host: x", header]))) + body
    with running(app, limits) as url, connection(url) as leaving, connection(url) as staying:
        for client in (leaving, staying):
            client.sendall(first + SECOND if is_together else first)
        until(lambda: app.state.service.open.count == 2)
        for client in (leaving, staying):
            client.sendall(SECOND)
        leaving.close()
        until(lambda: app.state.service.open.count == 1)
        held.let_go.set()
        answer = b"".join(iter(lambda: staying.recv(2**16), b""))
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert answer.count(b"HTTP/1.1") == 1


def test_a_body_that_does_not_come_is_not_waited_for():
    limits = Limits(body_timeout=0.3)
    with running(length_app(limits=limits), limits) as url, connection(url) as slow:
        slow.sendall(head("/v1/compare", 50) + b"{")
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_long_judgement_is_no_slow_client():
    limits = Limits(body_timeout=0.2)
    held = HeldComparer()
    with running(length_app(held, limits=limits), limits) as url, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{url}/v1/compare", json=PAIR)
        assert held.is_held.wait(30)
        time.sleep(0.5)
        held.let_go.set()
        assert answer.result().status_code == 200
