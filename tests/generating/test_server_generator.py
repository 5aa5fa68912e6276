"""Answers by servers of OpenAI's protocol: whatever fails on the way, none is lost and none is doubled."""

import asyncio
import multiprocessing
import socket
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
from helpers.openai_server import MODEL, Load, OpenAiServer, openai_server, random_faults, text_of, until

from gram_fast import InputError, ServerError
from gram_fast.generating.generator import GenerationRequest, Sampling
from gram_fast.generating.server_generator import ServerGenerator
from gram_fast.scoring.stops import StoppedError, stopped_by

FAULTS = ("500", "503", "429", "408", "cut", "no json", "other json", "hang up")


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gram_fast.web.FIRST_WAIT", 0.002)


def request(number: int, n: int = 1) -> GenerationRequest:
    return GenerationRequest(f"prompt {number}", np.arange(number, number + 3, dtype=np.int32), n, 1000 * number)


def generator(*servers: OpenAiServer, **options: Any) -> ServerGenerator:
    return ServerGenerator([each.url for each in servers], MODEL, **{"by_ids": False, **options})


def write(generator: ServerGenerator, requests: list[GenerationRequest], sampling: Sampling | None = None) -> list[Any]:
    """Answers in the order of their requests, each of which is answered once."""
    found = list(generator.generate(requests, sampling or Sampling(50)))
    assert sorted(number for number, _ in found) == list(range(len(requests)))
    return [dict(found)[number] for number in range(len(requests))]


def expected(requests: list[GenerationRequest]) -> list[list[str]]:
    return [[text_of(each.content, each.seed + k) for k in range(each.n)] for each in requests]


def texts(found: list[Any]) -> list[list[str]]:
    return [[answer.text for answer in answers] for answers in found]


@pytest.mark.parametrize("by_ids", [False, True])
@pytest.mark.parametrize("temperature", [None, 0.7])
def test_what_is_asked(by_ids: bool, temperature: float | None) -> None:
    with openai_server() as server:
        ((answer, other),) = write(
            generator(server, by_ids=by_ids), [request(7, n=2)], Sampling(50, temperature=temperature)
        )
    (asked,) = server.asked
    body = {"model": MODEL, "max_tokens": 50, "seed": 7000, "n": 2}
    body |= {} if temperature is None else {"temperature": temperature}
    if by_ids:
        assert asked == ("/v1/completions", {**body, "prompt": [7, 8, 9], "skip_special_tokens": False})
    else:
        messages = [{"role": "user", "content": "prompt 7"}]
        assert asked == ("/v1/chat/completions", {**body, "messages": messages})
    prompt = [7, 8, 9] if by_ids else "prompt 7"
    assert (answer.text, other.text) == (text_of(prompt, 7000), text_of(prompt, 7001))
    assert answer.num_tokens + other.num_tokens == 20
    assert not answer.is_cut
    assert answer.tokens is None


@pytest.mark.parametrize("by_ids", [False, True])
def test_tokens_join_to_the_text_without_the_one_that_ends_it(by_ids: bool) -> None:
    with openai_server() as server:
        ((answer,),) = write(generator(server, by_ids=by_ids), [request(7)], Sampling(50, top_logprobs=3))
    assert answer.text == text_of([7, 8, 9] if by_ids else "prompt 7", 7000)
    assert "".join(token.text for token in answer.tokens) == answer.text
    assert answer.tokens[0].logprobs == {answer.text[:4]: -0.5, "other 0": -1.0, "other 1": -2.0}
    assert answer.num_tokens == len(answer.tokens) + 1


@pytest.mark.parametrize("servers", [1, 2])
def test_with_random_faults_nothing_is_lost_and_nothing_doubled(servers: int) -> None:
    requests = [request(k, n=1 + k % 3) for k in range(60)]
    with (
        openai_server(faults=random_faults(1, 0.4, *FAULTS), most_choices=2) as one,
        openai_server(faults=random_faults(2, 0.4, *FAULTS)) as other,
    ):
        found = write(generator(*(one, other)[:servers], retries=30, concurrency=16), requests)
        assert texts(found) == expected(requests)
        assert len(one.asked) + len(other.asked) > 80
        if servers == 1:
            assert not other.asked


def test_what_takes_longer_than_the_timeout_is_asked_again() -> None:
    faults = iter(["stall", "stall", None])
    with openai_server(faults=lambda: next(faults)) as server:
        requests = [request(1)]
        assert texts(write(generator(server, timeout=0.2), requests)) == expected(requests)
        assert len(server.asked) == 3


def test_a_server_that_dies_in_the_middle_is_done_without() -> None:
    requests = [request(k) for k in range(40)]
    with openai_server(seconds=0.01) as one:
        with openai_server(seconds=0.01) as other:
            found = generator(one, other, concurrency=8).generate(requests, Sampling(50))
            first = [next(found) for _ in range(5)]
            assert other.asked
            other.is_dead = True
        rest = list(found)
    numbers = Counter(number for number, _ in [*first, *rest])
    assert numbers == Counter(range(40))
    assert texts([dict([*first, *rest])[k] for k in range(40)]) == expected(requests)


def test_that_no_server_can_be_reached_any_more_is_raised() -> None:
    with openai_server() as one, openai_server() as other:
        made = generator(one, other, retries=2)
        urls = {one.url, other.url}
    with pytest.raises(ServerError, match="expected a server that can be reached") as raised:
        write(made, [request(k) for k in range(5)])
    assert any(str(raised.value).startswith(url) for url in urls)


def test_a_server_that_comes_back_is_asked_again() -> None:
    with openai_server() as server:
        made, port = generator(server, retries=8), int(server.url.rpartition(":")[2])
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(write(made, [request(1)])))
    thread.start()
    with openai_server(port=port):
        thread.join()
    assert texts(found) == expected([request(1)])


def test_a_request_that_fails_at_every_try_or_is_refused_has_an_error_and_others_go_on() -> None:
    def refuses(body: dict[str, Any]) -> bool:
        return body["messages"][0]["content"] == "prompt 1"

    with openai_server(refuses=refuses) as server:
        one, (two,), three = write(generator(server), [request(1), request(2), request(1, n=3)])
        assert two.text == text_of("prompt 2", 2000)
        for error in (one, three):
            assert isinstance(error, InputError)
            assert str(error) == (
                f"{server.url}/v1/chat/completions: expected an answer, got status 400: the prompt is too long"
            )
        # No try more than needed: a refusal of three answers may be one of their number.
        assert len(server.asked) == 4
    for fault, said in (
        ("500", "expected an answer, got status 500: a fault"),
        ("no json", "expected JSON, got <html>a proxy</html>"),
        ("other json", 'expected JSON with choices, got {"choices": []}'),
        ("hang up", "expected a whole answer: "),
        ("cut", "expected a whole answer: "),
    ):
        with openai_server(faults=lambda fault=fault: fault) as server:
            (error,) = write(generator(server, retries=2), [request(1)])
            assert isinstance(error, ServerError)
            assert str(error).startswith(f"{server.url}/v1/chat/completions: {said}")
            assert len(server.asked) == 3


def test_a_request_without_ids_is_refused_where_they_are_posted() -> None:
    with openai_server() as server:
        (error,) = write(generator(server, by_ids=True), [GenerationRequest("text", None, 1, 0)])
    assert isinstance(error, InputError)
    assert str(error) == "a prompt that is posted by its token ids: expected them, got its text alone"


@pytest.mark.parametrize("most", [1, 2])
def test_a_server_that_gives_fewer_is_asked_for_the_others_with_other_seeds(most: int) -> None:
    with openai_server(most_choices=most) as server:
        requests = [request(1, n=5), request(2, n=1)]
        assert texts(write(generator(server), requests)) == expected(requests)
        assert len(server.asked) == (6 if most == 1 else 4)


def test_a_server_that_refuses_n_is_asked_one_by_one_from_then_on() -> None:
    with openai_server(refuses_n=True) as server:
        made = generator(server, concurrency=1)
        requests = [request(k, n=3) for k in range(3)]
        assert texts(write(made, requests)) == expected(requests)
        assert [body.get("n") for _, body in server.asked].count(None) == 9
        assert len(server.asked) == 10


def test_greedy_answers_are_asked_for_one_by_one_and_say_nothing_about_n() -> None:
    with openai_server(refuses_n=True) as server:
        made, requests = generator(server), [request(1, n=2)]
        assert texts(write(made, requests, Sampling(50, temperature=0))) == expected(requests)
        server.refuses_n = False
        assert texts(write(made, requests)) == expected(requests)
    assert [body.get("n") for _, body in server.asked] == [None, None, 2]


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_no_more_requests_are_in_flight_than_were_allowed(concurrency: int) -> None:
    load = Load()
    with openai_server(seconds=0.02, load_of_all=load) as one, openai_server(seconds=0.02, load_of_all=load) as other:
        made = generator(one, other, concurrency=concurrency)
        # Two calls at once share the bound.
        threads = [threading.Thread(target=write, args=(made, [request(k) for k in range(12)])) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(one.given) + len(other.given) == 24
        assert load.most == concurrency
        assert max(one.load.most, other.load.most) == (concurrency + 1) // 2


def test_the_server_with_the_least_in_flight_is_asked() -> None:
    with openai_server(seconds=0.01) as fast, openai_server(seconds=0.2) as slow:
        write(generator(fast, slow, concurrency=8), [request(k) for k in range(60)])
        # Four of eight are always at the slow one, while the fast one answers 20 times as many.
        assert len(slow.given) <= 16
        assert slow.load.most == 4


def test_that_servers_are_gone_is_known_before_all_requests_were_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    monkeypatch.setattr("gram_fast.generating.servers.wait_before_try", lambda *_: tries.append(1) or 0.0)
    with openai_server() as server:
        made = generator(server, concurrency=2, retries=3)
    with pytest.raises(ServerError, match="expected a server that can be reached"):
        write(made, [request(k) for k in range(500)])
    # Of four tries of the first two requests, and of those that began before the end was noticed.
    assert len(tries) < 100


def test_retry_after_is_honoured_and_waits_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[tuple[int, Any]] = []

    def wait(failures: int, retry_after: Any) -> float:
        waits.append((failures, retry_after))
        return 0.0

    monkeypatch.setattr("gram_fast.generating.servers.wait_before_try", wait)
    faults = iter(["429", "500", "429", None])
    with openai_server(faults=lambda: next(faults)) as server:
        assert texts(write(generator(server), [request(1)])) == expected([request(1)])
    assert waits == [(0, "0"), (1, None), (2, "0")]


def test_closing_cancels_what_waits() -> None:
    with openai_server(seconds=0.05) as server:
        made = generator(server, concurrency=2)
        found = made.generate([request(k) for k in range(50)], Sampling(50))
        next(found)
        found.close()
        until(lambda: server.load.now == 0)
        assert len(server.asked) <= 6
        # Later calls are none the worse.
        assert texts(write(made, [request(1)])) == expected([request(1)])


def test_a_call_that_is_to_stop_stops() -> None:
    stop = threading.Event()
    with openai_server(seconds=30) as server:
        made = generator(server)
        timer = threading.Timer(0.1, stop.set)
        timer.start()
        with pytest.raises(StoppedError):
            stopped_by(stop).run(write, made, [request(1)])
        timer.join()


def test_it_works_within_an_event_loop_and_in_threads() -> None:
    async def within() -> list[Any]:
        return write(made, [request(k) for k in range(4)])

    with openai_server() as server:
        made = generator(server)
        assert texts(asyncio.run(within())) == expected([request(k) for k in range(4)])


def test_a_forked_child_asks_by_itself() -> None:
    with openai_server() as server:
        made = generator(server)
        write(made, [request(1)])
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        child = context.Process(target=lambda: theirs.send(texts(write(made, [request(2)]))))
        child.start()
        assert ours.poll(20)
        assert ours.recv() == expected([request(2)])
        child.join()
        assert texts(write(made, [request(3)])) == expected([request(3)])


def test_its_thread_ends_with_it() -> None:
    with openai_server() as server:
        before = set(threading.enumerate())
        made = generator(server)
        write(made, [request(1)])
        (thread,) = [each for each in threading.enumerate() if each.name == "gram_fast servers" and each not in before]
        del made
        thread.join(10)
        assert not thread.is_alive()


def test_an_address_may_end_in_v1() -> None:
    with openai_server() as server:
        for url in (f"{server.url}/v1", f"{server.url}/v1/", f"{server.url}/"):
            made = ServerGenerator(url, MODEL, by_ids=False)
            assert texts(write(made, [request(1)])) == expected([request(1)])
            assert made.name == f"{MODEL} at {server.url}"
    assert {path for path, _ in server.asked} == {"/v1/chat/completions"}


def test_a_key_is_sent() -> None:
    with openai_server(api_key="right") as server:
        assert texts(write(generator(server, api_key="right"), [request(1)])) == expected([request(1)])
        for wrong in (None, "wrong"):
            with pytest.raises(InputError, match="/v1/models: expected a valid API key, got status 401"):
                generator(server, api_key=wrong)


def test_a_server_without_the_model_or_of_another_kind_is_refused() -> None:
    with openai_server(models=("a", "b")) as server:
        with pytest.raises(InputError) as raised:
            generator(server)
        assert str(raised.value) == f"{server.url}: expected the model '{MODEL}', but it has 'a', 'b'"
    for status, answer in ((404, "{}"), (200, "<html>"), (200, "[]"), (200, '{"data": [1]}'), (500, "{}")):
        with openai_server(models_answer=(status, answer)) as server:
            with pytest.raises(ServerError) as wrong:
                generator(server)
            assert str(wrong.value) == (
                f"{server.url}/v1/models: expected a server of OpenAI's protocol with a list of its models, "
                f"got status {status}"
            )
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(ServerError, match=f"^http://127.0.0.1:{port}: expected a server that can be reached: "):
        ServerGenerator(f"http://127.0.0.1:{port}", MODEL, by_ids=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"urls": []},
        {"urls": None},
        {"urls": "judge:8000"},
        {"urls": ["http://127.0.0.1:1", None]},
        {"model": ""},
        {"timeout": 0},
        {"retries": -1},
        {"concurrency": 0},
        {"api_key": "key\n"},
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(wrong: dict[str, Any]) -> None:
    name = next(iter(wrong)).removesuffix("s") if wrong.get("urls") else next(iter(wrong))
    with pytest.raises(InputError, match=f"{name}: expected"):
        ServerGenerator(**{"urls": "http://127.0.0.1:1", "model": MODEL, "by_ids": True, **wrong})
