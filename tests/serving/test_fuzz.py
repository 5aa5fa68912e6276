"""Whatever is posted, the server answers, and refuses in the form of the protocol: never an error of its own."""

import json
from typing import Any

import pytest
from helpers.served import in_process, length_app
from helpers.small_tokenizers import tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gram_fast.serving.limits import Limits

pytestmark = pytest.mark.usefixtures("one_thread")

CHAT = [{"role": "user", "content": [{"type": "text", "text": "q"}]}]
CALL = [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"x": 1}}}]}]
SAID = {"output": [{"type": "message", "content": [{"type": "output_text", "text": "a"}]}]}
ASKED = {"model": "judge", "timeout": 5.0, "orders": "both"}
LIST = {"prompt": CHAT, "responses": ["a", CALL, "ccc"]}
PAIRS = {"groups": [{"prompt": "p", "texts": ["a", "bb"], "has_reference": True}], "pairs": [[0, 1, 0]], "orders": "ab"}
RERANK = {"model": "m", "query": "q", "documents": ["a", {"text": "b"}], "top_n": 1, "return_documents": True}
TEXTS = {"query": "q", "texts": ["a", "bb"], "raw_scores": True, "return_text": True}
TURN = "<|start_header_id|>{}<|end_header_id|>\n\n"
RENDERED = f"<|begin_of_text|>{TURN.format('user')}q<|eot_id|>{TURN.format('assistant')}"  # as Llama 3's template
SLIME = [{"prompt": prompt, "response": "a<|eot_id|>", "label": "bb"} for prompt in (CHAT, RENDERED)]
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/compare": [{**ASKED, "prompt": "p", "a": "x", "b": CHAT}],
    "/seed_session": [{"anything": ["at", "all"]}],
    "/v1/rank": [
        {**ASKED, **LIST, "strategy": "top_k", "scores": "auto", "seed": 3, "k": 2, "on_error": "raise"},
        {**ASKED, **LIST, "strategy": "knockouts", "k": 2},
    ],
    "/v1/best_of_n": [{**ASKED, **LIST, "strategy": "sort", "scores": "rank", "seed": 3}],
    "/v1/verify": [{"model": "judge", "timeout": 5.0, **LIST}],
    "/v1/rewards": [
        {**ASKED, "prompts": ["p", CHAT], "groups": [["a", CALL], ["c"]], "references": ["r", "s"], "scores": "margin"},
        {**ASKED, "prompts": ["p"], "groups": [["a", "bb", "c"]], "strategy": "opponents", "k": 2, "seed": 1,
         "duplicates": "counted", "on_error": "none"},
    ],
    "/v1/reward": [{"key": "k", "size": 2, "prompt": "p", "response": CHAT, "timeout": 0.002, "partial": "none",
                    "strategy": "sort", "orders": "ab", "scores": "auto", "seed": 0, "duplicates": "merged"}],
    "/v1/pairs": [PAIRS],
    "/v1/unfit": [PAIRS],
    "/rerank": [RERANK, TEXTS],
    "/v1/rerank": [RERANK],
    "/v2/rerank": [RERANK],
    "/get_reward": [{"query": [RENDERED + "a"] * 2, "prompts": [RENDERED] * 2, "labels": ["b", None]}],
    "/reward": SLIME,
    "/": SLIME,
    "/compare": [{"conversation_history": CHAT, "response_objs": [SAID, SAID], "principle": "p"}],
    "/verify": [{"responses_create_params": {"input": CHAT}, "response": SAID, "principle": None, "prompt_id": "1",
                 "_ng_task_index": 0}],
}  # fmt: skip

deep: Any = []
for _ in range(150):
    deep = [deep]
ODD = [
    None, True, 0, -1, 1, 2**63, 10**400, -(10**30), 1.5, 1e308, float("nan"), float("inf"), "", "a", "\0", "\ud800",
    "1", "Judge", [], {}, [[]], [{}], [None], [""], ["a", "b"], [1, 2, 3], [["a", "b"]], {"text": "a"}, {"": None},
    {"role": "user"}, [{"role": "user", "content": 3}], [{"role": 3, "content": "x"}], [{"content": [3]}],
    [{"role": "user", "content": [{"type": "image_url"}]}], [{"tool_calls": 3}], deep, ["a"] * 20, "a" * 5000,
]  # fmt: skip
RAW = [
    b"", b" ", b"{", b"}", b"[]", b"null", b"true", b"3", b'"x"', b"{]", b"{'a': 1}", b'{"a": 1,}', b'"\xff"',
    b"\xef\xbb\xbf{}", b"\0", b'{"a": 1e400}', b'{"a": -Infinity}', b'{"a": ' + b"9" * 5000 + b"}", b'{"a": "\\ud83d"}',
    b"[" * 10**5, b"[" * 199 + b"]" * 199, b"[" * 940 + b"]" * 940, b'{"a":' * 960 + b"1" + b"}" * 960 + b" " * 2**17,
    "{}".encode("utf-16"), b'{"a": 1, "a": 2}', b'{"\\n\\u001b[31m": 1}',
]  # fmt: skip

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**40), 10**40),
    st.floats(),
    st.text(st.characters(), max_size=8),
    st.sampled_from(["both", "ab", "sort", "raise", "none", "text", "output_text", "user", "message", "p"]),
)
keys = st.one_of(
    st.text(st.characters(), max_size=4),
    st.sampled_from(["role", "content", "text", "type", "tool_calls", "function", "name", "arguments", "output"]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)


@st.composite
def bodies(draw, path: str) -> bytes:
    """A body of the endpoint in which some things are others, some are missing, and some bytes too."""
    if draw(st.integers(0, 9)) == 0:
        return json.dumps(draw(values)).encode()
    body = dict(draw(st.sampled_from(BODIES[path])))
    for name in draw(st.lists(st.sampled_from(sorted(body)), max_size=2, unique=True)):
        if draw(st.booleans()):
            body[name] = replaced(draw, body[name])
        else:
            del body[name]
    if draw(st.integers(0, 4)) == 0:
        body[draw(keys)] = draw(values)
    sent = json.dumps(quick(path, body)).encode()
    return sent[: draw(st.integers(0, len(sent)))] if draw(st.integers(0, 9)) == 0 else sent


def replaced(draw, value: Any) -> Any:
    """Something else in the place of a value, or somewhere inside of it."""
    if draw(st.booleans()) or not value or not isinstance(value, list | dict):
        return draw(values)
    if isinstance(value, list):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], replaced(draw, value[place]), *value[place + 1 :]]
    name = draw(st.sampled_from(sorted(value)))
    return {**value, name: replaced(draw, value[name])}


def quick(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Members of a group wait no longer than they need to."""
    if path == "/v1/reward" and (body.get("timeout") is None or type(body["timeout"]) in (int, float)):
        return {**body, "timeout": 0.002}
    return body


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    policy = tmp_path_factory.mktemp("policy")
    tokenizer("llama3").save_pretrained(policy)
    limits = Limits(max_items=16, max_comparisons=200)
    with in_process(length_app(limits=limits, policy_tokenizer=str(policy))) as client:
        yield client


def no_number(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def check(client, path: str, body: bytes) -> int:
    """Posts a body, checks the form of the answer -> its status."""
    response = client.post_raw(path, body)
    status = response.status_code
    assert status < 500, (path, body[:300], response.text)
    assert response.headers["x-request-id"]
    assert response.headers["content-type"] == "application/json"
    found = json.loads(response.content.decode("utf-8"), parse_constant=no_number)
    if status == 200:
        return status
    if path in ("/compare", "/verify", "/seed_session"):
        (detail,) = found.pop("detail")
        assert (status, found, detail.keys(), detail["loc"][0]) == (422, {}, {"type", "loc", "msg"}, "body")
        message = detail["msg"]
    elif "error_type" in found:
        assert (path, found.keys()) == ("/rerank", {"error", "error_type"})
        assert (status, found["error_type"]) in ((400, "Empty"), (422, "Validation"))
        message = found["error"]
    else:
        error = found["error"]
        assert found.keys() == {"error", "message", "detail"}
        assert error.keys() - {"reasons"} == {"message", "type", "param", "code"}
        assert (error["code"], status) in ((400, 400), (404, 404))
        message = error["message"]
        assert message == found["message"] == found["detail"]
    assert 0 < len(message) < 3000
    assert message.isprintable(), message
    return status


def test_every_endpoint_is_here(client):
    described = client.get("/openapi.json").json()["paths"]
    assert {path for path, methods in described.items() if "post" in methods} <= BODIES.keys()


@pytest.mark.parametrize("path", BODIES)
def test_the_bodies_are_right_as_they_are(client, path):
    """Else nothing behind the checks of a body would be reached."""
    for body in BODIES[path]:
        response = client.post(path, body)
        if path == "/v1/verify":
            assert (response.status_code, "shows a pair of responses" in response.text) == (400, True)
        else:
            assert response.status_code == 200, response.text


@pytest.mark.parametrize("path", BODIES)
def test_every_field_may_be_anything(client, path):
    for body in BODIES[path]:
        for name in body:
            for value in ODD:
                check(client, path, json.dumps(quick(path, {**body, name: value})).encode())


@pytest.mark.parametrize("path", BODIES)
def test_a_body_may_be_any_bytes(client, path):
    statuses = {check(client, path, body) for body in RAW}
    assert 200 not in statuses or path == "/seed_session"  # which takes any object


@pytest.mark.parametrize("path", BODIES)
@settings(
    derandomize=True, deadline=None, database=None, max_examples=50, suppress_health_check=list(HealthCheck)
)  # fmt: skip
@given(data=st.data())
def test_a_body_may_be_any_json(client, path, data):
    check(client, path, data.draw(bodies(path)))
