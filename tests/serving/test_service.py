"""Who is let in, how many, for how long; and what the server says of itself."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from helpers.comparers import LengthComparer
from helpers.served import Client, HeldComparer, busy, in_process, length_app, until
from helpers.small_models import tiny_judge, write_judge

from gram_fast import SMALL_JUDGE, InputError, NumericalError, PairwiseJudge
from gram_fast.serving.app import make_app
from gram_fast.serving.keys import ApiKeys
from gram_fast.serving.limits import Limits
from gram_fast.serving.server import JsonLines, listen

pytestmark = pytest.mark.usefixtures("one_thread")

PAIR = {"prompt": "p", "a": "long one", "b": "short"}


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
