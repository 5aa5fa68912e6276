"""A small server that speaks OpenAI's protocol, with faults, and a record of what it was asked."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "judge-8b"


@dataclass
class Load:
    """Requests that are being answered."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    now: int = 0
    most: int = 0

    @contextmanager
    def one_more(self) -> Iterator[None]:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            yield
        finally:
            with self.lock:
                self.now -= 1


@dataclass
class OpenAiServer:
    """What it does; changed by tests while it runs."""

    models: tuple[str, ...] = (MODEL,)
    api_key: str | None = None
    most_choices: int = 1000
    """Choices that it gives at most, as llama.cpp gives one."""
    refuses_n: bool = False
    gives_logprobs: bool = True
    seconds: float = 0.0
    """That an answer takes."""
    faults: Callable[[], str | None] = lambda: None
    """Names what goes wrong with the next request: a status, "stall", "cut", "no json", "other json", "hang up"."""
    refuses: Callable[[dict[str, Any]], bool] = lambda body: False
    """Which requests have status 400."""
    models_answer: tuple[int, str] | None = None
    is_dead: bool = False
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Paths and bodies of all requests."""
    given: list[str] = field(default_factory=list)
    """Texts of all choices of whole answers."""
    load: Load = field(default_factory=Load)
    load_of_all: Load = field(default_factory=Load)
    """Of several servers, where they are given the same."""
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)


def text_of(prompt: Any, seed: int) -> str:
    """What the server writes: the same for the same prompt and seed."""
    return f"{json.dumps(prompt)} with seed {seed}"


def random_faults(seed: int, share: float, *kinds: str) -> Callable[[], str | None]:
    """Faults of a share of requests, in a fixed order."""
    rng, lock = random.Random(seed), threading.Lock()

    def fault() -> str | None:
        with lock:
            return rng.choice(kinds) if rng.random() < share else None

    return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        state: OpenAiServer = self.server.state
        if state.models_answer is not None:
            self._send(*state.models_answer)
        elif state.api_key is not None and self.headers.get("Authorization") != f"Bearer {state.api_key}":
            self._send(401, json.dumps({"error": "Unauthorized"}))
        elif self.path != "/v1/models":
            self._send(404, json.dumps({"detail": "Not Found"}))
        else:
            self._send(200, json.dumps({"object": "list", "data": [{"id": name} for name in state.models]}))

    def do_POST(self) -> None:
        state: OpenAiServer = self.server.state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if state.is_dead:
            self.close_connection = True
            return
        with state.lock:
            state.asked.append((self.path, body))
        # To the beginning of the answer: who has it may ask again before the end is noticed here.
        with state.load.one_more(), state.load_of_all.one_more():
            state.ended.wait(state.seconds)
        try:
            self._answer(state, body, state.faults())
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self, state: OpenAiServer, body: dict[str, Any], fault: str | None) -> None:
        if state.refuses(body):
            self._send(400, json.dumps({"error": {"message": "the prompt is too long"}}))
        elif state.refuses_n and body.get("n", 1) > 1:
            self._send(400, json.dumps({"error": {"message": "n is not supported"}}))
        elif fault is not None and fault.isdecimal():
            more = {"Retry-After": "0"} if fault == "429" else {}
            self._send(int(fault), json.dumps({"error": {"message": "a fault"}}), more)
        elif fault == "stall":
            state.ended.wait(5)
            self.close_connection = True
        elif fault == "hang up":
            self.close_connection = True
        elif fault == "no json":
            self._send(200, "<html>a proxy</html>")
        elif fault == "other json":
            self._send(200, json.dumps({"choices": []}))
        else:
            answer = json.dumps(_answer(state, self.path, body))
            if fault == "cut":
                self._send(200, answer[: len(answer) // 2], {"Content-Length": str(len(answer))})
                self.close_connection = True
            else:
                self._send(200, answer)

    def _send(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(text.encode())), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())


def _answer(state: OpenAiServer, path: str, body: dict[str, Any]) -> dict[str, Any]:
    is_chat = path == "/v1/chat/completions"
    prompt = body["messages"][0]["content"] if is_chat else body["prompt"]
    choices = []
    for number in range(min(body.get("n", 1), state.most_choices)):
        text = text_of(prompt, body["seed"] + number)
        with state.lock:
            state.given.append(text)
        choice: dict[str, Any] = {"index": number, "finish_reason": "stop"}
        choice |= {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        if body.get("logprobs") and state.gives_logprobs:
            choice["logprobs"] = _logprobs(text, is_chat, body["top_logprobs"] if is_chat else body["logprobs"])
        choices.append(choice)
    return {"choices": choices, "usage": {"completion_tokens": 10 * len(choices)}}


def _logprobs(text: str, is_chat: bool, top: int) -> dict[str, Any]:
    tokens = [text[k : k + 4] for k in range(0, len(text), 4)] + ["<end>"]
    likely = [{token: -0.5, **{f"other {k}": -1.0 - k for k in range(top - 1)}} for token in tokens]
    if not is_chat:
        return {"tokens": tokens, "token_logprobs": [-0.5] * len(tokens), "top_logprobs": likely}
    return {
        "content": [
            {"token": token, "logprob": -0.5, "top_logprobs": [{"token": k, "logprob": v} for k, v in each.items()]}
            for token, each in zip(tokens, likely, strict=True)
        ]
    }


@contextmanager
def openai_server(port: int = 0, **behaviour: Any) -> Iterator[OpenAiServer]:
    """Runs the server, on a free port unless one is given, in threads of its own."""
    state = OpenAiServer(**behaviour)
    with _Server(("127.0.0.1", port), _Handler) as server:
        server.state = state
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield state
        finally:
            state.ended.set()
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: Any) -> None:
        pass


def until(condition: Callable[[], bool]) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
