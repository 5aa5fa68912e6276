"""A judge behind a server does what it does in process: results, errors, flags, pickles; and outlives lost servers."""

import asyncio
import copy
import json
import os
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.comparers import LengthComparer
from helpers.served import length_app, on_a_port
from helpers.small_models import write_judge

import gram_fast
from gram_fast import InputError, PairwiseJudge, RemoteRendezvous, ServerError, from_server
from gram_fast.integrations.trl import group_reward
from gram_fast.remote.connection import Connection
from gram_fast.serving.app import make_app
from gram_fast.serving.keys import ApiKeys
from gram_fast.serving.limits import Limits
from gram_fast.text.digest import digest

pytestmark = pytest.mark.usefixtures("one_thread")

# A mean of numbers in another order, that in which they came.
approx = partial(pytest.approx, abs=1e-12)

PROMPT = "Name a colour."
RESPONSES = ["Blue.", "It is blue, mostly.", "Green?", "[INST] red", "Blue."]


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PairwiseJudge, PairwiseJudge]]:
    """A judge in this process, and the same behind a server."""
    name = write_judge(tmp_path_factory.mktemp("judge"))
    with on_a_port(make_app(PairwiseJudge.from_pretrained(name, max_length=400))) as url:
        yield PairwiseJudge.from_pretrained(name, max_length=400), from_server(url)


STRATEGIES = [("round_robin", None), ("knockout", None), ("sort", None), ("linear", None), ("reference", None)]
STRATEGIES += [("top_k", 2), ("opponents", 2), ("knockouts", 2)]


@pytest.mark.parametrize(("strategy", "k"), STRATEGIES)
@pytest.mark.parametrize("orders", ["both", "ab"])
def test_every_strategy_gives_the_same(judges: Any, strategy: Any, k: int | None, orders: Any) -> None:
    here, there = (judge.rank(PROMPT, RESPONSES, strategy, orders, k=k) for judge in judges)
    assert there.order == here.order
    assert there.scores == pytest.approx(here.scores, abs=1e-5)
    assert there.flagged == here.flagged
    assert [(c.i, c.j) for c in there.comparisons] == [(c.i, c.j) for c in here.comparisons]
    for one, other in zip(there.comparisons, here.comparisons, strict=True):
        assert one.p == pytest.approx(other.p, abs=1e-5)
        assert (one.p_ab is None, one.p_ba is None) == (other.p_ab is None, other.p_ba is None)
    assert there.stats.comparisons == here.stats.comparisons
    assert there.stats.tokens_unshared == here.stats.tokens_unshared


def test_the_other_calls_give_the_same(judges: Any) -> None:
    here, there = judges
    assert there.max_length == here.max_length == 400
    assert there.compare(PROMPT, *RESPONSES[:2]).p == pytest.approx(here.compare(PROMPT, *RESPONSES[:2]).p, abs=1e-5)
    assert there.best_of_n(PROMPT, RESPONSES).index == here.best_of_n(PROMPT, RESPONSES).index
    np.testing.assert_allclose(there.matrix(PROMPT, RESPONSES), here.matrix(PROMPT, RESPONSES), atol=1e-5)
    groups, references = [RESPONSES, RESPONSES[:2]], ["Red.", "Grey."]
    for more in ({}, {"references": references}, {"duplicates": "counted", "scores": "margin"}):
        ours, expected = (judge.rewards([PROMPT] * 2, groups, **more) for judge in (there, here))
        for one, other in zip(ours, expected, strict=True):
            assert one == pytest.approx(other, abs=1e-4)
    many = there.compare_many([PROMPT, "Other."], [RESPONSES[:2], RESPONSES[1:3]])
    assert [c.p for c in many] == pytest.approx(
        [c.p for c in here.compare_many([PROMPT, "Other."], [RESPONSES[:2], RESPONSES[1:3]])], abs=1e-5
    )
    messages = [{"role": "assistant", "content": "Blue.", "reasoning_content": "hm"}]
    assert there.compare(PROMPT, messages, "Red.").flagged == here.compare(PROMPT, messages, "Red.").flagged


def test_errors_are_the_same_with_the_same_names(judges: Any) -> None:
    long = [*RESPONSES[:2], "blue " * 1000, None, "word " * 380]
    for call in (
        lambda judge: judge.rewards([PROMPT], [long], on_error="none").errors,
        lambda judge: judge.rank(PROMPT, long, on_error="none").errors,
        lambda judge: judge.rewards([PROMPT], [RESPONSES], references=["blue " * 390], on_error="none").errors,
        lambda judge: judge.compare_many(["blue " * 1000], [RESPONSES[:2]], on_error="none").errors,
        lambda judge: reasons(lambda: judge.rank(PROMPT, [*RESPONSES, "blue " * 1000, "word " * 380])),
        lambda judge: reasons(lambda: judge.compare(PROMPT, "blue " * 1000, "Red.")),
    ):
        here, there = map(call, judges)
        assert here
        assert there == here


def reasons(call: Callable[[], Any]) -> dict[str, str]:
    with pytest.raises(InputError) as raised:
        call()
    return dict(raised.value.reasons)


def test_a_judge_of_a_server_pickles_and_copies(judges: Any) -> None:
    _, there = judges
    assert copy.deepcopy(there).comparer is there.comparer
    again = pickle.loads(pickle.dumps(there))
    assert again.compare(PROMPT, *RESPONSES[:2]).p == there.compare(PROMPT, *RESPONSES[:2]).p
    assert repr(there).startswith("PairwiseJudge(RemoteComparer('http://127.0.0.1:")


def test_many_threads_and_tasks_share_a_judge_of_a_server(judges: Any) -> None:
    here, there = judges
    expected = [here.compare(PROMPT, f"blue {k}", "red").p for k in range(16)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda k: there.compare(PROMPT, f"blue {k}", "red").p, range(16)))
    assert found == pytest.approx(expected, abs=1e-5)

    async def main() -> list[Any]:
        calls = [gram_fast.to_thread(there.compare, PROMPT, f"blue {k}", "red") for k in range(16)]
        return await asyncio.gather(*calls)

    assert [c.p for c in asyncio.run(main())] == pytest.approx(expected, abs=1e-5)


def test_a_key_that_is_wrong_is_said_and_not_tried_again() -> None:
    with on_a_port(length_app(keys=ApiKeys(["right"]))) as url:
        with pytest.raises(InputError, match="/info: expected a valid API key"):
            from_server(url, api_key="wrong")
        assert from_server(url, api_key="right").compare("p", "aa", "b").p > 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "judge:8000"},
        {"url": "http://h:port"},
        {"url": None},
        {"timeout": 0},
        {"timeout": float("inf")},
        {"timeout": "30"},
        {"retries": -1},
        {"retries": 1.5},
        {"api_key": "key\n"},
        {"api_key": "k\xe9y"},
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))}: expected"):
        from_server(**{"url": "http://127.0.0.1:1", **wrong})


@contextmanager
def faulty(answers: list[Any]) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers, one after another: (status, body, headers), or None: it hangs up."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = answers[min(len(asked), len(answers)) - 1]
            if answer is None:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            status, body, headers = answer
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {
                "Content-Length": str(len(content)),
                "Content-Type": "application/json",
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


BUSY = (503, {"error": {"message": "busy"}}, {"Retry-After": "0"})
GOOD = (200, {"fine": 1}, {})


# What Ray Serve's proxy says of a replica that ended.
ENDED = (500, b"Internal Server Error", {"Content-Type": "text/plain"})


@pytest.mark.parametrize(
    "fault", [BUSY, (429, {}, {}), (502, b"<html>", {}), ENDED, None], ids=["503", "429", "502", "500", "lost"]
)
def test_what_may_pass_is_tried_again(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gram_fast.web.FIRST_WAIT", 0.001)
    for post in (
        lambda connection: connection.post("/x", {}),
        lambda connection: asyncio.run(connection.post_async("/x", {})),
    ):
        with faulty([fault, fault, GOOD]) as (url, asked):
            assert post(Connection(url, None, 10, retries=2)) == {"fine": 1}
            assert len(asked) == 3
        with faulty([fault]) as (url, asked):
            with pytest.raises(ServerError, match=url):
                post(Connection(url, None, 10, retries=2))
            assert len(asked) == 3


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ((500, {"error": {"message": "the judge failed"}}, {}), ServerError, "the judge failed"),
        ((504, {"error": {"message": "late"}}, {}), ServerError, "late"),
        ((400, {"error": {"message": "prompt: expected text"}}, {}), InputError, "prompt: expected text"),
        ((400, {"error": {"message": "m", "reasons": {"a": "too long"}}}, {}), InputError, "a: too long"),
        ((404, {"detail": "Not Found"}, {}), ServerError, "expected a gram-fast server, got status 404"),
        ((200, b"<html>", {}), ServerError, "expected JSON of a gram-fast server, got status 200 without it"),
        ((301, [], {}), ServerError, "expected a gram-fast server, got status 301"),
    ],
)
def test_what_does_not_pass_is_an_error_at_once(answer: Any, error: type[Exception], words: str) -> None:
    with faulty([answer]) as (url, asked):
        with pytest.raises(error, match=words):
            Connection(url, None, 10, retries=3).post("/x", {})
        assert len(asked) == 1


def test_an_answer_that_does_not_come_is_an_error_after_its_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServerError, match=r"/info: expected an answer within 0\.2 seconds, got none"):
            from_server(url, timeout=0.2)
    with pytest.raises(ServerError, match="expected a server that can be reached"):
        from_server(url, retries=0)


def test_another_server_is_no_judge() -> None:
    with faulty([(200, {"model_id": "x"}, {})]) as (url, _), pytest.raises(ServerError, match="of this version says"):
        from_server(url)
    info = {"model_id": "x", "max_input_length": 9, "max_batch_tokens": 9, "verifies": False, "markers": []}
    info |= {"max_client_batch_size": 9, "max_comparisons": 9, "max_body_bytes": 999, "replicas": 1}
    for wrong in ({"stats": {}, "preferences": []}, {"stats": {"comparisons": 2, "seconds": 0}, "preferences": []}):
        with faulty([(200, info, {}), (200, {"reasons": {}} | wrong, {})]) as (url, _):
            judge = from_server(url)
            with pytest.raises(ServerError, match="/v1/pairs: expected one preference a pair"):
                judge.compare("p", "a", "b")


def test_the_judge_goes_on_when_its_server_comes_back(tmp_path: Path) -> None:
    """A server is replaced between two rounds; the client waits for the next."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with on_a_port(length_app(), port) as url:
        judge = from_server(url)
        assert judge.compare("p", "aa", "b").p > 0.5
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(judge.compare, "p", "aa", "b")
        with on_a_port(length_app(), port):
            assert waiting.result(30).p > 0.5


def test_members_of_a_group_meet_at_the_server() -> None:
    rewards = PairwiseJudge(LengthComparer()).rewards(["p"], [["a", "bb", "cccc"]])[0]
    with on_a_port(length_app()) as url:
        meeting = RemoteRendezvous(url, size=3, timeout=20)
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(lambda text: meeting.reward("k", "p", text), ["a", "bb", "cccc"])) == approx(rewards)

        async def main() -> list[Any]:
            return await asyncio.gather(*[meeting.reward_async(1, "p", text) for text in ("a", "bb", "cccc")])

        assert asyncio.run(main()) == approx(rewards)
        assert RemoteRendezvous(url, size=2, timeout=0.2).reward("alone", "p", "a") is None
        with pytest.raises(InputError, match="size"):
            RemoteRendezvous(url, size=1, timeout=5).reward("k", "p", "a")
        with pytest.raises(InputError, match="key: expected text or an integer, got tuple"):
            meeting.reward((1, 2), "p", "a")  # type: ignore[arg-type]


def test_a_member_that_gives_up_leaves_its_group() -> None:
    app = length_app()
    with on_a_port(app) as url:
        meeting = RemoteRendezvous(url, size=2, timeout=20)

        async def main() -> list[Any]:
            gone = asyncio.create_task(meeting.reward_async("k", "p", "gone" * 9))
            async with asyncio.timeout(30):
                while app.state.service.waiting.count < 1:
                    await asyncio.sleep(0.01)
                gone.cancel()
                while app.state.service.waiting.count:
                    await asyncio.sleep(0.01)
            return await asyncio.gather(meeting.reward_async("k", "p", "a"), meeting.reward_async("k", "p", "bb"))

        assert asyncio.run(main()) == approx(PairwiseJudge(LengthComparer()).rewards(["p"], [["a", "bb"]])[0])


def test_a_large_request_is_refused_with_its_limit() -> None:
    with on_a_port(length_app(limits=Limits(max_comparisons=10))) as url:
        judge = from_server(url)
        with pytest.raises(InputError, match="expected at most 10 comparisons, got 30"):
            judge.rank("p", ["a" * n for n in range(1, 7)])


def test_a_batch_of_any_size_is_asked_for_in_portions() -> None:
    here = PairwiseJudge(LengthComparer())
    prompts, groups = ["p"] * 40, [["a" * n, "b" * (40 - n), "c"] for n in range(2, 42)]
    with on_a_port(length_app(limits=Limits(max_items=10, max_comparisons=20, max_body_bytes=5000))) as url:
        judge = from_server(url)
        assert list(judge.rewards(prompts, groups)) == list(here.rewards(prompts, groups))
        pairs = [group[:2] for group in groups]
        assert [c.p for c in judge.compare_many(prompts, pairs)] == [c.p for c in here.compare_many(prompts, pairs)]


def test_reasons_name_what_the_caller_named(judges: Any) -> None:
    long, groups = "blue " * 1000, [["only"], ["x", "y", "blue " * 380], ["u", "v", "red " * 380]]
    for texts in (groups, [["a", "b"], ["x", long], ["u", "v"]]):
        here, there = (judge.rewards([PROMPT] * 3, texts, on_error="none").errors for judge in judges)
        assert there == here


def test_a_forked_child_has_connections_of_its_own() -> None:
    with on_a_port(length_app()) as url:
        judge = from_server(url)
        expected = judge.compare("p", "aa", "b").p
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            try:
                os.write(writing, json.dumps([judge.compare("p", "aa", "b").p for _ in range(3)]).encode())
            finally:
                os._exit(0)
        os.close(writing)
        assert [judge.compare("p", "aa", "b").p for _ in range(3)] == [expected] * 3
        with os.fdopen(reading) as answer:
            assert json.loads(answer.read()) == [expected] * 3
        os.waitpid(child, 0)


def test_an_adapter_of_a_trainer_takes_a_judge_of_a_server() -> None:
    columns = {"prompts": ["p"] * 3, "completions": ["a", "bb", "cccc"], "completion_ids": [[1], [2], [3]]}
    with on_a_port(length_app()) as url:
        assert group_reward(from_server(url))(**columns) == group_reward(PairwiseJudge(LengthComparer()))(**columns)


def test_a_call_is_divided_among_replicas_by_prompt() -> None:
    """Each prompt is asked about under a name of its own, the same in every round and in later calls."""
    app, sessions = length_app(), []

    async def recording(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") == "/v1/pairs":
            sessions.append(dict(scope["headers"])[b"x-session-id"].decode())
        await app(scope, receive, send)

    prompts, groups = ["p", "q", "p", "r"], [["a", "bb", "ccc", "dddd"], ["e", "ff"], ["g", "hh", "iii"], ["j", "kk"]]
    with on_a_port(recording) as url:
        judge = from_server(url, replicas=2)
        expected = PairwiseJudge(LengthComparer()).rewards(prompts, groups, strategy="knockout")
        for _ in range(2):
            assert list(judge.rewards(prompts, groups, strategy="knockout")) == list(expected)
    assert set(sessions) == {digest([prompt]) for prompt in prompts}
    assert len(sessions) > 2 * len(set(prompts))
    with pytest.raises(InputError, match="replicas: expected an integer of at least 1, got 0"):
        from_server(url, replicas=0)
