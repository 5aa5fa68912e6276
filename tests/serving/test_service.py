"""Who is let in, how many, for how long; and that nobody's absence or slowness costs others anything."""

import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from helpers.comparers import LengthComparer
from helpers.served import Client, HeldComparer, busy, in_process, length_app
from helpers.small_models import tiny_judge, write_judge

from gram_fast import SMALL_JUDGE, InputError, NumericalError, PairwiseJudge
from gram_fast.serving.app import make_app
from gram_fast.serving.keys import ApiKeys
from gram_fast.serving.limits import Limits
from gram_fast.serving.server import JsonLines, listen, make_server

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


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_more_requests_than_may_be_open_are_told_to_come_again():
    held = HeldComparer()
    with in_process(length_app(held, limits=Limits(max_requests=1))) as client:
        with busy(held, lambda: client.post("/v1/compare", PAIR)):
            refused = client.post("/v1/compare", PAIR)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json()["error"]["message"] == "1 requests are open, try again later"
            tei = client.post("/rerank", {"query": "q", "texts": ["a", "bb"]})
            assert (tei.status_code, tei.json()["error_type"]) == (429, "Overloaded")
            assert client.get("/health").status_code == 200
        assert client.post("/v1/compare", PAIR).status_code == 200


def test_one_client_may_take_all_places_and_leaves_some_to_others():
    def ask(client: Client, number: int) -> int:
        headers = {"authorization": f"Bearer key-{number}"}
        return client.post("/v1/compare", PAIR, headers=headers).status_code

    held, keys = HeldComparer(), ApiKeys([f"key-{number}" for number in range(6)])
    app = length_app(held, keys=keys, limits=Limits(max_requests=32))
    places = app.state.service.open
    with in_process(app) as client, ThreadPoolExecutor(40) as pool:
        answers = [pool.submit(ask, client, 0) for _ in range(32)]
        until(lambda: places.count == 32)
        assert ask(client, 0) == 503
        for number in range(1, 5):
            answers += [pool.submit(ask, client, number) for _ in range(2)]
            until(lambda number=number: places.count == 32 + 2 * number)
            assert ask(client, number) == 503  # it has its share
        assert ask(client, 5) == 503  # and all that is spare is taken
        held.let_go.set()
        assert [answer.result() for answer in answers] == [200] * 40
        assert places.count == 0


@pytest.mark.parametrize(("asked", "limit"), [({}, 0.2), ({"timeout": 0.2}, 60.0)])
def test_a_request_that_takes_too_long_is_given_up(asked, limit):
    held = HeldComparer()
    app = length_app(held, limits=Limits(timeout=limit))
    with in_process(app) as client:
        late = client.post("/v1/compare", PAIR | asked)
        assert (late.status_code, late.json()["error"]["type"]) == (504, "Timeout")
        assert "within 0.2 seconds" in late.json()["error"]["message"]
        assert app.state.service.open.count == 0
        held.let_go.set()
        assert client.post("/v1/compare", PAIR).status_code == 200


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


KEYS = ApiKeys(["first-key", "second"])


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Bearer first-key", 200),
        ("bearer second", 200),
        ("Bearer", 401),
        ("Bearer first", 401),
        ("Bearer first-key2", 401),
        ("Basic first-key", 401),
        ("Bearer \xff", 401),
    ],
)
def test_only_who_has_a_key_is_answered(header, status):
    app = length_app(keys=KEYS)
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    with in_process(app) as client:
        answer = client.post("/v1/compare", PAIR, headers=headers)
        assert answer.status_code == status
        if status == 401:
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["type"] == "Unauthorized"
        assert client.get("/info", headers=headers).status_code == status
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        every = [path for path, methods in app.openapi()["paths"].items() if "post" in methods]
        assert len(every) > 10
        for path in [*every, "/", "/v1/rerank", "/v2/rerank"]:
            assert (client.post(path, [], headers=headers).status_code == 401) == (status == 401), path


def test_keys_come_from_a_file(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# of the trainer\none\n\n  two  \n")
    keys = ApiKeys.read(str(path))
    assert [keys.number_of(f"Bearer {key}") for key in ("one", "two", "three", "# of the trainer", "")] == [
        0,
        1,
        None,
        None,
        None,
    ]
    path.write_text("# none\n")
    with pytest.raises(InputError, match="expected one API key a line, found none"):
        ApiKeys.read(str(path))
    with pytest.raises(InputError, match="expected a file of API keys"):
        ApiKeys.read(str(tmp_path / "other"))
    with pytest.raises(InputError, match="API key 2: expected printable ASCII"):
        ApiKeys(["good", "not good"])
    assert not ApiKeys()


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


class FailingComparer(LengthComparer):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    @contextmanager
    def open(self, *args: Any, **more: Any) -> Iterator[Any]:
        raise self.error
        yield


@pytest.mark.parametrize("error", [RuntimeError("secret in /home/of/somebody"), NumericalError("secret: NaN")])
def test_an_error_of_the_judge_tells_nothing(error, caplog):
    with in_process(length_app(FailingComparer(error))) as client:
        answer = client.post("/v1/compare", PAIR, headers={"x-request-id": "mine"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "InternalServerError")
    assert "secret" not in answer.text
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("error", "goes_on", "status"),
    [
        ("CUDA error: an illegal memory access was encountered", False, 503),
        ("CUDA error: invalid configuration argument", True, 200),
    ],
)
def test_a_server_whose_gpu_is_lost_says_so(error, goes_on, status, monkeypatch):
    """What watches it starts another: this process would fail at every request."""

    def synchronize():
        if not goes_on:
            raise torch.AcceleratorError(error)

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with in_process(length_app(FailingComparer(torch.AcceleratorError(error)))) as client:
        assert [client.get(path).status_code for path in ("/health", "/ready")] == [200, 200]
        assert client.post("/v1/compare", PAIR).status_code == 500
        assert [client.get(path).status_code for path in ("/health", "/ready")] == [status, status]


def test_what_is_logged_has_no_texts(caplog):
    caplog.set_level(logging.DEBUG, "gram_fast")
    with in_process(length_app()) as client:
        client.post(
            "/v1/compare", {"prompt": "tell nobody", "a": "hush", "b": "hush hush"}, headers={"x-request-id": "n1"}
        )
        client.post("/v1/compare", {"prompt": "tell nobody", "a": "hush"})
    assert "hush" not in caplog.text
    (first, second) = (record for record in caplog.records if getattr(record, "path", "") == "/v1/compare")
    line = json.loads(JsonLines().format(first))
    assert {name: line[name] for name in ("request_id", "path", "status", "level")} == {
        "request_id": "n1",
        "path": "/v1/compare",
        "status": 200,
        "level": "info",
    }
    assert second.status == 400


def test_metrics_count_what_was_judged():
    with in_process(make_app(tiny_judge())) as client:
        answer = client.post("/v1/rank", {"prompt": "p", "responses": ["a", "b", "c"]}).json()
        client.post("/v1/rank", {"prompt": "p"})
        text = client.get("/metrics").text
    stats = answer["stats"]
    assert f"gram_fast_comparisons_total {stats['comparisons']:.1f}" in text
    for kind, name in (("unshared", "tokens_unshared"), ("distinct", "tokens_tree"), ("computed", "tokens_computed")):
        assert f'gram_fast_tokens_total{{kind="{kind}"}} {stats[name]:.1f}' in text
    assert 'gram_fast_requests_total{route="/v1/rank",status="200"} 1.0' in text
    assert 'gram_fast_requests_total{route="/v1/rank",status="400"} 1.0' in text


def test_a_prompt_that_comes_again_is_read_from_the_cache(tmp_path):
    with in_process(make_app(PairwiseJudge.from_pretrained(write_judge(tmp_path)))) as client:
        asked = {"prompt": "word " * 100, "responses": ["a", "b", "c"]}
        first, second = (client.post("/v1/rank", asked).json()["stats"] for _ in range(2))
    assert second["tokens_tree"] == first["tokens_tree"]
    assert second["tokens_computed"] < 0.5 * first["tokens_computed"]


@pytest.mark.parametrize("name", ["max_requests", "timeout", "body_timeout"])
@pytest.mark.parametrize("value", [0, -1, "8", float("inf"), float("nan"), True])
def test_limits_are_numbers_above_0(name, value):
    with pytest.raises(InputError, match=f"{name}: expected a number above 0"):
        Limits(**{name: value})


@contextmanager
def command(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that the command line runs, and its address, which it logs."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "gram_fast", "serve", "-m", SMALL_JUDGE, "--port", "0", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if " is served at " in line)
            yield process, json.loads(line)["message"].split()[-1]
        finally:
            process.kill()


def test_the_command_answers_what_it_has_accepted_before_it_ends(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key\n")
    with command("--api-keys", str(keys), "--name", "mine") as (process, url):
        assert httpx.get(f"{url}/info").status_code == 401
        with httpx.Client(base_url=url, headers={"Authorization": "Bearer a-key"}, timeout=120) as client:
            assert client.get("/info").json()["model_id"] == "mine"
            responses = [f"answer {k} " * 20 for k in range(14)]
            waiting = {"key": 1, "size": 3, "prompt": "p", "timeout": 100}
            with ThreadPoolExecutor(8) as pool:
                large = pool.submit(client.post, "/v1/rank", json={"prompt": "p", "responses": responses})
                two = [pool.submit(client.post, "/v1/reward", json=waiting | {"response": r}) for r in ("a", "bb")]
                until(lambda: "gram_fast_requests_waiting 2.0" in httpx.get(f"{url}/metrics").text)
                process.send_signal(signal.SIGTERM)
                assert large.result().status_code == 200
                assert [answer.result().json()["reward"] is None for answer in two] == [False, False]
            process.wait(60)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="an address to listen on"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_other_addresses_than_loopback_need_keys():
    run = subprocess.run(
        [sys.executable, "-m", "gram_fast", "serve", "-m", "small", "--host", "0.0.0.0"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=120,
    )
    assert run.returncode == 2
    assert run.stderr.strip() == (
        "gram-fast: --host 0.0.0.0: expected --api-keys, or --open-to-all where everybody who can reach it may ask"
    )
