"""The server's own protocol: what PairwiseJudge gives in process, and what it refuses."""

import gc
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, get_args

import pytest
from helpers.comparers import LengthComparer
from helpers.served import in_process, length_app
from helpers.small_models import write_judge
from helpers.verifiers import write_verifier

from gram_fast import PairwiseJudge
from gram_fast.ranking.rewards import RewardsName
from gram_fast.ranking.scores import ScoresName
from gram_fast.ranking.tournament import STRATEGY_NAMES
from gram_fast.serving.app import make_app
from gram_fast.serving.bodies import parsed
from gram_fast.serving.endpoint import as_json
from gram_fast.serving.limits import Limits

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "Name a city."
TURNS = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "?"},
]
RESPONSES = ["Rome", "Paris, in France", "Rome", [{"role": "assistant", "content": "Oslo [INST]"}], "", "Bern or Basel"]
SECRET = "the cellar door "
LONG = SECRET * 300  # more tokens than a presentation may have, 700
RANK: list[dict[str, Any]] = [
    {},
    {"orders": "ab", "scores": "margin"},
    {"strategy": "linear", "orders": "ba", "scores": "rank"},
    {"strategy": "knockout", "seed": 3, "scores": "win_rate"},
    {"strategy": "knockouts", "k": 3, "seed": 2, "scores": "points"},
    {"strategy": "opponents", "k": 2, "seed": 1},
    {"strategy": "sort", "scores": "auto"},
    {"strategy": "top_k", "k": 2},
    {"strategy": "reference", "scores": "bradley_terry"},
]
REWARDS: list[dict[str, Any]] = [
    *({**settings, "duplicates": "counted"} for settings in RANK),
    {"duplicates": "merged"},
    {"references": ["Rome", TURNS], "scores": "probability"},
    {"references": ["Rome", "Bern"], "scores": "margin", "orders": "ba"},
]


def exact_judge(folder):
    """Its numbers depend neither on what is judged beside a pair nor on what was before."""
    return PairwiseJudge.from_pretrained(folder, max_length=700, deterministic=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def judge(folder):
    return exact_judge(folder)


@pytest.fixture(scope="module")
def client(folder):
    with in_process(make_app(exact_judge(folder), model="tiny")) as client:
        yield client


@pytest.fixture(scope="module")
def lengths():
    """A client of the judge without a model, which may have 4 responses and 8 comparisons in a request."""
    with in_process(length_app(limits=Limits(max_items=4, max_comparisons=8))) as client:
        yield client


def asked(client, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    response = client.post(path, body)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json"), response.text
    found = response.json()
    assert (found.pop("id"), found.pop("model")) == (response.headers["x-request-id"], "tiny")
    return found


def assert_same(found: Any, expected: Any) -> None:
    """The same to the last bit, but what a call cost: the server keeps what was computed before."""
    if isinstance(expected, Mapping):
        assert found.keys() == expected.keys()
        for name in expected.keys() - {"seconds", "tokens_computed", "passes"}:
            assert_same(found[name], expected[name])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert (type(found), found) == (type(expected), expected)


def rewards_dict(rewards) -> dict[str, Any]:
    return {
        "rewards": list(rewards),
        "comparisons": [[asdict(c) for c in group] for group in rewards.comparisons],
        "errors": rewards.errors,
        "flagged": rewards.flagged,
        "stats": asdict(rewards.stats),
    }


def test_settings_here_are_all_that_there_are():
    assert {settings.get("strategy", "round_robin") for settings in RANK} == set(STRATEGY_NAMES)
    assert {settings.get("scores", "auto") for settings in RANK} == set(get_args(ScoresName))
    names = {name for of in get_args(RewardsName) for name in (get_args(of) or [of])}
    assert {settings.get("scores", "auto") for settings in REWARDS} == names


@pytest.mark.parametrize("orders", ["ab", "ba", "both"])
def test_compare_is_that_in_process(client, judge, orders):
    body = {"prompt": TURNS, "a": RESPONSES[1], "b": RESPONSES[3], "orders": orders}
    expected = judge.compare(**body)
    assert expected.flagged
    assert_same(asked(client, "/v1/compare", body), asdict(expected))


@pytest.mark.parametrize("settings", RANK, ids=str)
def test_rank_is_that_in_process(client, judge, settings):
    body = {"prompt": PROMPT, "responses": RESPONSES, **settings}
    assert_same(asked(client, "/v1/rank", body), asdict(judge.rank(**body)))


@pytest.mark.parametrize("settings", [s for s in RANK if "k" not in s], ids=str)
def test_best_of_n_is_that_in_process(client, judge, settings):
    body = {"prompt": TURNS, "responses": RESPONSES, **settings}
    assert_same(asked(client, "/v1/best_of_n", body), asdict(judge.best_of_n(**body)))


@pytest.mark.parametrize("settings", REWARDS, ids=str)
def test_rewards_are_those_in_process(client, judge, settings):
    body = {"prompts": [PROMPT, TURNS], "groups": [RESPONSES, ["No.", "Yes, of course"]], **settings}
    assert_same(asked(client, "/v1/rewards", body), rewards_dict(judge.rewards(**body)))


def test_seeds_draw_other_brackets(client):
    body = {"prompt": PROMPT, "responses": RESPONSES, "strategy": "knockout"}
    met = [
        [(c["i"], c["j"]) for c in asked(client, "/v1/rank", {**body, "seed": seed})["comparisons"]] for seed in (0, 3)
    ]
    assert met[0] != met[1]


def test_verify_is_that_in_process(tmp_path):
    folder = write_verifier(tmp_path)
    judges = [PairwiseJudge.from_pretrained(folder, preset="verifier") for _ in range(2)]
    body = {"prompt": "What is 2 + 2?", "responses": ["4", "It is five.", "4", ""]}
    with in_process(make_app(judges[0], model="tiny")) as client:
        assert_same(asked(client, "/v1/verify", body), asdict(judges[1].verify(**body)))
        refused = client.post("/v1/rank", body)
    assert (refused.status_code, "it can verify" in refused.json()["detail"]) == (400, True)


def test_one_bad_row_is_one_bad_row(client, judge):
    """Without `on_error`, the server judges the others; in process that is an error."""
    body = {"prompt": PROMPT, "responses": ["Rome", LONG, [], "Bern"]}
    expected = judge.rank(**body, on_error="none")
    assert expected.errors.keys() == {"responses[1]", "responses[2]"}
    found = [asked(client, "/v1/rank", {**body, **more}) for more in ({}, {"on_error": "none"})]
    assert_same(found, [asdict(expected)] * 2)
    groups = {"prompts": [PROMPT, [], "p"], "groups": [["a", LONG, "b"], ["a", "b"], ["a"]]}
    rewards = judge.rewards(**groups, on_error="none")
    assert rewards.errors.keys() == {"groups[0][1]", "prompts[1]", "groups[2]"}
    assert_same(asked(client, "/v1/rewards", groups), rewards_dict(rewards))


@pytest.mark.parametrize(
    ("path", "body", "names"),
    [
        ("rank", {"prompt": "p", "responses": ["a", LONG, []], "on_error": "raise"}, ["responses[2]"]),
        ("rank", {"prompt": "p", "responses": ["a", LONG], "on_error": "raise"}, ["responses[1]"]),
        ("best_of_n", {"prompt": "p", "responses": ["a", "b", LONG]}, ["responses[2]"]),
        ("compare", {"prompt": "p", "a": "x", "b": LONG}, ["b"]),
        ("compare", {"prompt": [], "a": "x", "b": [{"role": "user"}]}, ["prompt", "b"]),
        (
            "rewards",
            {"prompts": ["p", []], "groups": [["a", "b"], ["a", []]], "on_error": "raise"},
            ["prompts[1]", "groups[1][1]"],
        ),
    ],
)
def test_what_cannot_be_judged_is_named(client, path, body, names):
    response = client.post(f"/v1/{path}", body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], list(error["reasons"])) == (400, 400, names)
    assert error["param"] == names[0]
    assert all(f"{name}: {why}" in error["message"] for name, why in error["reasons"].items())
    assert SECRET not in response.text


def test_errors_have_no_texts_of_others(client):
    """Each of these bodies has a text, and is refused for something else."""
    texts = {"prompt": SECRET, "responses": [SECRET, SECRET + "2"]}
    for more in ({"strategy": "top_k"}, {"extra": SECRET}, {"orders": SECRET}, {"k": SECRET}, {"responses": [SECRET]}):
        response = client.post("/v1/best_of_n", {**texts, **more})
        assert (response.status_code, SECRET in response.text) == (400, False)
    response = client.post_raw("/v1/rank", json.dumps(texts).encode()[:-3])
    assert (response.status_code, SECRET in response.text) == (400, False)


PAIR = {"prompt": "p", "a": "x", "b": "y"}
LIST = {"prompt": "p", "responses": ["a", "bb", "ccc"]}
GROUPS = {"prompts": ["p"], "groups": [["a", "bb"]]}


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "what"),
    [
        ("compare", {**PAIR, "c": "z"}, 400, "c", "c: Extra inputs are not permitted"),
        ("compare", {"prompt": "p", "a": "x"}, 400, "b", "b: Field required"),
        ("compare", {}, 400, "prompt", "prompt: Field required; a: Field required; b: Field required"),
        ("compare", {**PAIR, "orders": "AB"}, 400, "orders", "orders: Input should be 'ab', 'ba' or 'both'"),
        ("compare", {**PAIR, "timeout": 0}, 400, "timeout", "timeout: Input should be greater than 0"),
        ("compare", {**PAIR, "timeout": "9"}, 400, "timeout", "timeout: Input should be a valid number"),
        ("compare", {**PAIR, "model": "other"}, 404, "model", "there is no model 'other' here, expected 'judge'"),
        ("compare", {**PAIR, "model": 3}, 400, "model", "model: Input should be a valid string"),
        ("rank", {**LIST, "model": "other"}, 404, "model", "there is no model 'other'"),
        ("best_of_n", {**LIST, "model": "other"}, 404, "model", "there is no model 'other'"),
        ("verify", {**LIST, "model": "other"}, 404, "model", "there is no model 'other'"),
        ("rewards", {**GROUPS, "model": "other"}, 404, "model", "there is no model 'other'"),
        ("rank", {**LIST, "responses": "abc"}, 400, "responses", "responses: Input should be a valid array"),
        ("rank", {**LIST, "responses": []}, 400, "responses", "responses: List should have at least 1 item"),
        ("best_of_n", {**LIST, "responses": ["a"]}, 400, "responses", "expected at least 2 responses, got 1"),
        ("rank", {**LIST, "responses": ["a", 3]}, 400, "responses.1.str", "Input should be a valid string"),
        ("rank", {**LIST, "responses": list("abcde")}, 400, "responses", "responses: expected at most 4 in all, got 5"),
        ("best_of_n", {**LIST, "responses": list("abcde")}, 400, "responses", "expected at most 4 in all, got 5"),
        ("verify", {**LIST, "responses": list("abcde")}, 400, "responses", "expected at most 4 in all, got 5"),
        ("rank", {**LIST, "responses": list("abcd")}, 400, "strategy", "expected at most 8 comparisons, got 12"),
        ("rank", {**LIST, "strategy": "elo"}, 400, "strategy", "strategy: Input should be 'linear', 'knockout'"),
        ("rank", {**LIST, "scores": "probability"}, 400, "scores", "scores: Input should be"),
        ("rank", {**LIST, "seed": -1}, 400, "seed", "seed: Input should be greater than or equal to 0"),
        ("rank", {**LIST, "seed": 1.5}, 400, "seed", "seed: Input should be a valid integer"),
        ("rank", {**LIST, "seed": True}, 400, "seed", "seed: Input should be a valid integer"),
        ("rank", {**LIST, "on_error": "skip"}, 400, "on_error", "on_error: Input should be 'raise' or 'none'"),
        ("rank", {**LIST, "k": 2}, 400, None, "k: expected it beside strategy"),
        ("rank", {**LIST, "strategy": "top_k"}, 400, None, "k: expected an integer of at least 1"),
        ("rank", {**LIST, "strategy": "opponents", "k": 1}, 400, None, "k: expected an integer of at least 2"),
        ("rank", {**LIST, "strategy": "knockouts", "k": 10**9}, 400, "k", "k: expected at most 4, got 1000000000"),
        ("best_of_n", {**LIST, "strategy": "top_k", "k": 1}, 400, "k", "k: Extra inputs are not permitted"),
        ("best_of_n", {**LIST, "strategy": "top_k"}, 400, None, "k: expected an integer"),
        ("verify", LIST, 400, None, "this judge's prompt shows a pair of responses"),
        ("verify", {**LIST, "orders": "ab"}, 400, "orders", "orders: Extra inputs are not permitted"),
        ("rewards", {**GROUPS, "prompts": []}, 400, None, "prompts: expected one for each of 1 groups, got 0"),
        ("rewards", {**GROUPS, "groups": ["ab"]}, 400, "groups.0", "groups.0: Input should be a valid array"),
        ("rewards", {**GROUPS, "references": []}, 400, None, "references: expected one for each of 1 groups, got 0"),
        ("rewards", {**GROUPS, "references": ["r"], "strategy": "sort"}, 400, None, "expected no strategy beside them"),
        ("rewards", {**GROUPS, "scores": "probability"}, 400, None, "there are no scores 'probability'"),
        ("rewards", {**GROUPS, "duplicates": "kept"}, 400, "duplicates", "duplicates: Input should be 'merged'"),
        ("rewards", {**GROUPS, "groups": [list("ab")] * 3}, 400, "groups", "groups: expected at most 4 in all, got 6"),
        ("rewards", {**GROUPS, "groups": [[]] * 5}, 400, "groups", "groups: expected at most 4 in all, got 5"),
        (
            "rewards",
            {**GROUPS, "groups": [list("abcd")], "references": ["r"]},
            400,
            "groups",
            "groups: expected at most 4 in all, got 5",
        ),
        ("rewards", {**GROUPS, "groups": [list("abcd")]}, 400, "strategy", "expected at most 8 comparisons, got 12"),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused_in_one_sentence(lengths, path, body, status, param, what):
    response = lengths.post(f"/v1/{path}", body)
    found = response.json()
    error, message = found["error"], found["error"]["message"]
    assert (response.status_code, error["code"], error["param"]) == (status, status, param)
    assert message.startswith(what) or f": {what}" in message
    assert "\n" not in message
    assert found == {"error": error, "message": message, "detail": message}
    assert error.keys() - {"reasons"} == {"message", "type", "param", "code"}


def test_limits_are_no_lower_than_they_say(lengths):
    four = {"prompt": "p", "responses": list("abcd")}
    for more in ({"orders": "ab"}, {"strategy": "knockouts", "k": 1}, {"strategy": "opponents", "k": 2}):
        assert lengths.post("/v1/rank", {**four, **more}).status_code == 200
    assert lengths.post("/v1/rewards", {"prompts": ["p"] * 2, "groups": [["a", "b"]] * 2}).status_code == 200


def test_many_wrong_fields_are_counted_and_long_names_cut(lengths):
    message = lengths.post("/v1/compare", {"x" * 10_000 + str(k): k for k in range(20)}).json()["detail"]
    assert message.endswith("; and 19 more")
    assert len(message) < 500
    message = lengths.post("/v1/compare", dict.fromkeys(map(str, range(5000)), 0)).json()["detail"]
    assert message == "expected the fields of this request, got 5003 wrong ones"


def test_of_a_list_the_first_wrong_element_is_named(lengths):
    """A body has room for millions, whose errors would take longer than a judgement."""
    for body, what in (
        ({**LIST, "responses": ["a", *[3] * 1000]}, "responses.1.str: Input should be a valid string"),
        ({**LIST, "responses": ["a", [3] * 1000]}, "responses.1.str: Input should be a valid string"),
        ({**GROUPS, "groups": [["a"], [4] * 1000, *[3] * 1000]}, "groups.1.0.str: Input should be a valid string"),
    ):
        path = "/v1/rank" if "responses" in body else "/v1/rewards"
        message = lengths.post(path, body).json()["error"]["message"]
        assert message.startswith(what)
        assert "more" not in message


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"", "EOF while parsing a value"),
        (b'{"prompt": "p"', "EOF while parsing an object"),
        (b'{"prompt": "\xff"}', "invalid unicode code point"),
        (b'{"prompt": "\\ud800", "a": "x", "b": "y"}', "unexpected end of hex escape"),
        (b'{"timeout": NaN}', "expected value"),
        (b'{"timeout": -Infinity}', "invalid number"),
        (b'{"timeout": 1' + b"0" * 5000 + b"}", "number out of range"),
        (b"[" * 300 + b"]" * 300, "recursion limit exceeded"),
        (b"[" * 10**5, "recursion limit exceeded"),
    ],
    ids=["empty", "cut", "bytes", "surrogate", "nan", "infinity", "digits", "deep", "deeper"],
)
def test_what_is_no_json_is_refused(lengths, body, what):
    response = lengths.post_raw("/v1/compare", body)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "Bad Request", None)
    assert error["message"].startswith(f"expected a body of JSON: {what}")


def test_the_collector_does_not_go_over_a_body_again_and_again():
    """It did for four seconds of the event loop, of a body of 12 MB."""
    collections = []
    gc.callbacks.append(lambda phase, info: collections.append(phase))
    try:
        assert len(parsed(b"[" + b"[]," * 10**5 + b"0]")) == 10**5 + 1
    finally:
        gc.callbacks.pop()
    assert len(collections) < 10  # of some hundreds
    assert gc.isenabled()


def test_a_large_answer_is_made_at_once():
    ranking = PairwiseJudge(LengthComparer()).rank("p", ["x" * k for k in range(64)])
    began = time.perf_counter()
    made = as_json(vars(ranking)).body
    seconds, began = time.perf_counter() - began, time.perf_counter()
    expected = json.loads(json.dumps(asdict(ranking)))
    assert json.loads(made) == expected
    assert seconds < 0.5 * (time.perf_counter() - began)  # a tenth


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_other_content_types_are_refused(lengths, kind):
    response = lengths.post_raw("/v1/compare", json.dumps(PAIR).encode(), **{"content-type": kind})
    assert (response.status_code, response.json()["error"]["code"]) == (415, 415)


def test_json_with_parameters_is_json(lengths):
    body = json.dumps(PAIR).encode()
    response = lengths.post_raw("/v1/compare", body, **{"content-type": "Application/JSON; charset=utf-8"})
    assert response.status_code == 200


def test_an_id_is_echoed_or_made(lengths):
    for sent, body, status in (("my id-1", PAIR, 200), ("x" * 128, {}, 400)):
        response = lengths.post("/v1/compare", body, headers={"x-request-id": sent})
        assert (response.status_code, response.headers["x-request-id"]) == (status, sent)
        assert status != 200 or response.json()["id"] == sent
    made = [
        lengths.post("/v1/compare", PAIR, headers=headers).headers["x-request-id"]
        for headers in ({}, {"x-request-id": ""}, {"x-request-id": "x" * 129}, {"x-request-id": b"\xe9"})
    ]
    assert len(set(made)) == 4
    assert all(len(one) == 32 and int(one, 16) for one in made)


def test_a_model_is_named_or_not(lengths):
    for model in ("judge", "", None):
        assert lengths.post("/v1/compare", {**PAIR, "model": model}).json()["model"] == "judge"


def test_what_the_server_says_of_itself(lengths):
    assert [lengths.get(path).status_code for path in ("/health", "/ready")] == [200, 200]
    info = lengths.get("/info").json()
    assert info == lengths.get("/v1/models").json()
    assert (info["model_id"], info["data"][0]["id"], info["verifies"]) == ("judge", "judge", False)
    assert (info["max_client_batch_size"], info["max_comparisons"], info["max_input_length"]) == (4, 8, 1000)


def test_the_description_is_whole(lengths):
    response = lengths.get("/openapi.json")
    paths = response.json()["paths"]
    assert {"/v1/compare", "/v1/rank", "/v1/best_of_n", "/v1/verify", "/v1/rewards"} <= paths.keys()
    assert "$ref" not in response.text  # what it would refer to is no part of an OpenAPI document
    body = paths["/v1/pairs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["groups"]["items"]["required"] == ["prompt", "texts"]
    contents = {
        path: list(paths[path]["get"]["responses"]["200"].get("content", ()))
        for path in ("/health", "/metrics", "/info")
    }
    assert contents == {"/health": [], "/metrics": ["text/plain"], "/info": ["application/json"]}


def test_including_reasoning_is_the_judges_choice():
    comparer = LengthComparer()
    message = [{"role": "assistant", "content": "a", "reasoning_content": "much longer"}]
    with in_process(make_app(PairwiseJudge(comparer, include_reasoning=True))) as client:
        found = client.post("/v1/compare", {"prompt": "p", "a": message, "b": "bb"}).json()
    assert found["p"] > 0.9


def test_null_is_a_response_that_cannot_be_judged() -> None:
    with in_process(length_app()) as client:
        ranked = client.post("/v1/rank", {"prompt": "p", "responses": ["a", None, "bbb"]}).json()
        assert (ranked["order"], ranked["scores"][1], list(ranked["errors"])) == ([2, 0], None, ["responses[1]"])
        rewarded = client.post("/v1/rewards", {"prompts": ["p"], "groups": [["a", None, "bbb"]]}).json()
        assert (rewarded["rewards"][0][1], list(rewarded["errors"])) == (None, ["groups[0][1]"])
        refused = client.post("/v1/rank", {"prompt": "p", "responses": ["a", None], "on_error": "raise"})
        assert (refused.status_code, list(refused.json()["error"]["reasons"])) == (400, ["responses[1]"])


def test_knockouts_count_all_that_they_play() -> None:
    with in_process(length_app(limits=Limits(max_comparisons=1000))) as client:
        asked = {"prompt": "p", "responses": ["a" * n for n in range(1, 31)], "strategy": "knockouts"}
        assert client.post("/v1/rank", asked | {"k": 3}).status_code == 200
        refused = client.post("/v1/rank", asked | {"k": 20})
        assert refused.json()["error"]["message"].startswith("expected at most 1000 comparisons, got 1160")
