"""Members of a group come one request at a time, meet by their key and client, and lose nobody."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from helpers.comparers import LengthComparer
from helpers.served import Client, in_process, length_app

from gram_fast import PairwiseJudge
from gram_fast.serving.keys import ApiKeys
from gram_fast.serving.limits import Limits

pytestmark = pytest.mark.usefixtures("one_thread")

RESPONSES = ["a", "bb", "cccc"]
JUDGE = PairwiseJudge(LengthComparer())


def asked(response: Any, **more: Any) -> dict[str, Any]:
    return {"key": "row 7", "size": 3, "prompt": "p", "response": response, "timeout": 20.0, **more}


def together(client: Client, bodies: list[Any], path: str = "/v1/reward", headers: Any = None) -> list[Any]:
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: client.post(path, body, headers=headers), bodies))


def until_waiting(client: Client, count: int) -> None:
    deadline = time.monotonic() + 30
    while f"gram_fast_requests_waiting {count}.0" not in client.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("settings", [{}, {"scores": "rank"}, {"strategy": "knockout", "orders": "ab", "seed": 3}])
def test_a_group_has_the_rewards_that_it_has_in_process(settings: dict[str, Any]) -> None:
    with in_process(length_app()) as client:
        for _ in range(2):  # the key opens a new group when the first is full
            answers = together(client, [asked(response, **settings) for response in RESPONSES])
            expected = JUDGE.rewards(["p"], [RESPONSES], **settings)[0]
            assert [answer.json()["reward"] for answer in answers] == pytest.approx(expected)


def test_groups_are_apart_by_key_and_by_client() -> None:
    keys = ApiKeys(["one", "two"])
    with in_process(length_app(keys=keys)) as client, ThreadPoolExecutor(12) as pool:
        futures = {
            (of, key, k): pool.submit(
                client.post,
                "/v1/reward",
                asked(f"{of}{key}{'x' * k}", key=key, prompt=of),
                headers={"Authorization": f"Bearer {of}"},
            )
            for of in ("one", "two")
            for key in (1, "1")
            for k in range(3)
        }
        for (of, key, k), future in futures.items():
            group = [f"{of}{key}{'x' * n}" for n in range(3)]
            assert future.result().json()["reward"] == pytest.approx(JUDGE.rewards([of], [group])[0][k])


def test_a_group_that_is_not_full_in_time() -> None:
    with in_process(length_app()) as client:
        two = together(client, [asked(response, timeout=1.0) for response in RESPONSES[:2]])
        assert [answer.json()["reward"] for answer in two] == JUDGE.rewards(["p"], [RESPONSES[:2]])[0]
        none = together(client, [asked(response, timeout=1.0, partial="none") for response in RESPONSES[:2]])
        assert [answer.json()["reward"] for answer in none] == [None, None]
        assert client.post("/v1/reward", asked("a", timeout=0.1)).json()["reward"] is None


def test_what_cannot_be_judged_is_an_error_of_its_own_request() -> None:
    with in_process(length_app()) as client:
        image = [{"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
        first, second, bad = together(client, [asked("a"), asked("bb"), asked(image)])
        assert [first.json()["reward"], second.json()["reward"]] == JUDGE.rewards(["p"], [["a", "bb"]])[0]
        assert (bad.status_code, bad.json()["error"]["param"]) == (400, "response")


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"size": 1}, "size"),
        ({"key": None}, "key"),
        ({"strategy": "top_k"}, "k"),
        ({"scores": "probability"}, "scores"),
        ({"size": 2000}, "size"),
    ],
)
def test_wrong_settings_are_refused_at_once(wrong: dict[str, Any], what: str) -> None:
    with in_process(length_app()) as client:
        answer = client.post("/v1/reward", asked("a", **wrong))
    assert answer.status_code == 400
    assert what in answer.json()["error"]["message"]


def test_another_prompt_under_an_open_key_is_refused() -> None:
    with in_process(length_app()) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.post, "/v1/reward", asked("a", timeout=3.0))
        until_waiting(client, 1)
        other = client.post("/v1/reward", asked("b", prompt="another", timeout=3.0))
        assert other.status_code == 400
        assert "expected the prompt of the 1 that wait under it" in other.json()["error"]["message"]
        assert first.result().json()["reward"] is None


def test_no_more_wait_than_may() -> None:
    with in_process(length_app(limits=Limits(max_waiting=1))) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.post, "/v1/reward", asked("a", timeout=3.0))
        until_waiting(client, 1)
        refused = client.post("/v1/reward", asked("b", timeout=3.0))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert first.result().status_code == 200


def test_groups_of_several_kinds_that_begin_at_once_keep_their_members() -> None:
    """The meeting of one is not let go while its first members are on their way."""
    with in_process(length_app()) as client:
        first = [asked("a", size=2, seed=seed) for seed in range(8)]
        with ThreadPoolExecutor(16) as pool:
            futures = [pool.submit(client.post, "/v1/reward", body) for body in first]
            until_waiting(client, 8)
            futures += [pool.submit(client.post, "/v1/reward", body | {"response": "bb"}) for body in first]
        low, high = JUDGE.rewards(["p"], [["a", "bb"]])[0]
        assert [future.result().json()["reward"] for future in futures] == pytest.approx([low] * 8 + [high] * 8)


def test_a_member_that_asks_again_has_its_place_and_then_its_reward() -> None:
    with in_process(length_app()) as client, ThreadPoolExecutor(4) as pool:
        first = pool.submit(client.post, "/v1/reward", asked("a", member="one"))
        until_waiting(client, 1)
        again = pool.submit(client.post, "/v1/reward", asked("a", member="one"))
        until_waiting(client, 2)
        others = [pool.submit(client.post, "/v1/reward", asked(text, member=text)) for text in ("bb", "cccc")]
        rewards = JUDGE.rewards(["p"], [["a", "bb", "cccc"]])[0]
        found = [future.result().json()["reward"] for future in (first, again, *others)]
        assert found == pytest.approx([rewards[0], *rewards])
        late = client.post("/v1/reward", asked("a", member="one"))  # its answer was lost on the way
        assert late.json()["reward"] == pytest.approx(rewards[0])


def test_who_comes_near_the_end_is_told_to_come_again() -> None:
    app = length_app()
    with in_process(app) as client:
        app.state.service.is_closing = True
        refused = client.post("/v1/reward", asked("a"))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert client.get("/ready").status_code == 503


def response_of(text: str | None) -> dict[str, Any]:
    message = {"type": "message", "content": [{"type": "output_text", "text": text}]}
    return {"id": "r", "output": [{"type": "reasoning", "summary": []}, *([message] if text is not None else [])]}


def rollout(text: str | None, task: int = 4, **more: Any) -> dict[str, Any]:
    return {
        "responses_create_params": {"input": [{"role": "user", "content": "p"}], "temperature": 1.0},
        "response": response_of(text),
        "_ng_task_index": task,
        "expected": "ignored",
        **more,
    }


def test_a_cohort_of_nemo_gym_is_judged_together() -> None:
    with in_process(length_app(rollouts_per_prompt=3)) as client:
        bodies = [rollout(text, task) for task in (1, 2) for text in RESPONSES]
        answers = together(client, bodies, "/verify")
    rewards = [1 + 4 * value for value in JUDGE.rewards(["p"], [RESPONSES])[0]]
    for body, answer, reward in zip(bodies, answers, rewards * 2, strict=True):
        assert answer.json() == {
            "responses_create_params": body["responses_create_params"],
            "response": body["response"],
            "reward": pytest.approx(reward),
        }


def test_a_rollout_of_nemo_gym_begins_with_nothing() -> None:
    with in_process(length_app()) as client:
        assert client.post("/seed_session", {"responses_create_params": {}, "x": 1}).json() == {}


def test_a_response_of_nemo_gym_without_text_or_others_has_3() -> None:
    with in_process(length_app(rollouts_per_prompt=3)) as client:
        answers = together(client, [rollout("a"), rollout("bb"), rollout(None)], "/verify")
        low, high = JUDGE.rewards(["p"], [["a", "bb"]])[0]
        assert [answer.json()["reward"] for answer in answers] == pytest.approx([1 + 4 * low, 1 + 4 * high, 3.0])
    with in_process(length_app()) as client:
        assert client.post("/verify", rollout("a")).json()["reward"] == 3.0
        bad = client.post("/verify", rollout("a", responses_create_params={}))
        assert (bad.status_code, bad.json()["detail"][0]["loc"]) == (422, ["body", "responses_create_params.input"])


def test_numbers_that_nemo_gym_has_told_back_may_be_of_any_size() -> None:
    told = f'{{"responses_create_params":{{"input":"p","seed":{10**400},"temperature":1e400}},"response":{{}},'
    with in_process(length_app()) as client:
        answer = client.post_raw("/verify", (told + '"x":0}').encode())
    assert (answer.status_code, answer.text) == (200, told.replace("1e400", "null") + '"reward":3.0}')
