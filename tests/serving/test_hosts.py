"""What OpenRLHF, slime and NeMo-Gym post: the shapes that they read, in the loops with which they ask."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from helpers.comparers import LengthComparer, p_longer
from helpers.served import HeldComparer, busy, in_process, length_app, on_a_port
from helpers.small_tokenizers import tokenizer

from gram_fast import PairwiseJudge
from gram_fast.integrations import nemo_gym
from gram_fast.serving.keys import ApiKeys
from gram_fast.serving.limits import Limits

pytestmark = pytest.mark.usefixtures("one_thread")

QUESTION = "Name a city."
LABEL = "Rome, Italy"
RESPONSES = ["Paris", "Rome, the capital of Italy", LABEL, ""]
TURN = "Rome.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nMore"


def read(response):
    """As aiohttp's raise_for_status() and json()."""
    response.raise_for_status()
    if response.headers["content-type"].partition(";")[0] != "application/json":
        raise ValueError("unexpected content type")
    return response.json()


def asked_again(url, body, *, tries, timeout, wait, count, refused=lambda: None):
    """Whatever goes wrong, 4xx too, is tried again.

    `wait`: seconds after each try, by its number; `refused` is called before.
    """
    for number in range(tries):
        next(count)
        try:
            return read(httpx.post(url, json=body, timeout=timeout))
        except Exception:
            if number == tries - 1:
                raise
            refused()
            time.sleep(wait(number))
    raise AssertionError


def openrlhf(address, body, *, second=1.0, **more):
    """openrlhf/utils/agent.py 0.11.2: five tries a second apart, then no reward."""
    try:
        return asked_again(f"{address}/get_reward", body, tries=5, timeout=180, wait=lambda number: second, **more)
    except Exception:
        return None


def slime(url, body, *, second=1.0, **more):
    """slime/rollout/rm_hub 624b824: ten tries, twice as long apart each time; then the rollout fails."""
    return asked_again(url, body, tries=10, timeout=120, wait=lambda number: min(2**number, 30) * second, **more)


def gym(address, path, body):
    """nemo_gym's ServerClient 0.4.0: no status is tried again."""
    return read(httpx.post(address + path, json=body, timeout=None))


def rendered(responses, question=QUESTION):
    """Prompts and queries in the template of Llama 3."""
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer("llama3").apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return [prompt] * len(responses), [prompt + response + "<|eot_id|>" for response in responses]


def openrlhf_body(responses, labels):
    prompts, queries = rendered(responses)
    return {"query": queries, "prompts": prompts, "labels": labels}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    tokenizer("llama3").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def comparer():
    return LengthComparer()


@pytest.fixture(scope="module")
def client(comparer, policy):
    """Knows the policy's template."""
    with in_process(length_app(comparer, policy_tokenizer=policy, limits=Limits(max_items=6))) as client:
        yield client


@pytest.fixture(scope="module")
def plain():
    """Knows no template."""
    with in_process(length_app()) as client:
        yield client


def test_openrlhf_has_a_reward_a_sample(client, comparer):
    comparer.opened.clear()
    answer = read(client.post("/get_reward", openrlhf_body(RESPONSES, [LABEL] * 4)))
    expected = pytest.approx([0.5 if text == LABEL else p_longer(text, LABEL) for text in RESPONSES], abs=1e-6)
    assert answer == {"rewards": expected, "scores": answer["rewards"], "extra_logs": {"unjudged": [0, 0, 0, 0]}}
    groups = [group for call in comparer.opened for group in call["groups"]]
    assert {group.prompt for group in groups} == {QUESTION}
    assert {text for group in groups for text in group.texts} == set(RESPONSES)


def test_a_sample_of_openrlhf_that_cannot_be_judged_is_marked(client):
    answer = read(client.post("/get_reward", openrlhf_body(["Paris", TURN, "Oslo", "Bern"], [LABEL, LABEL, None, ""])))
    assert answer["extra_logs"] == {"unjudged": [0, 1, 1, 1]}
    assert answer["rewards"] == pytest.approx([p_longer("Paris", LABEL), 0, 0, 0], abs=1e-6)


def test_bodies_that_are_none_of_openrlhf(client, plain):
    other = {"query": ["User: hi\nParis"], "prompts": ["User: hi\n"], "labels": [LABEL]}
    one = openrlhf_body(["Paris"], [LABEL])
    for body, what in (
        (other, "prompt: expected what the chat template of this tokenizer writes"),
        ({**one, "labels": []}, "queries, prompts, labels: expected lists of one length, got 1, 1 and 0"),
        ({**one, "labels": [3]}, "labels.0: Input should be a valid string"),
        ({**one, "query": None}, "query: Input should be a valid array"),
        ({"query": []}, "prompts: Field required; labels: Field required"),
        (openrlhf_body(["x"] * 7, [LABEL] * 7), "query: expected at most 6 in all, got 7"),
    ):
        response = client.post("/get_reward", body)
        assert (response.status_code, response.json()["error"]["message"][: len(what)]) == (400, what)
    response = plain.post("/get_reward", one)
    assert (response.status_code, "--policy-tokenizer" in response.json()["detail"]) == (400, True)
    nothing = {"rewards": [], "scores": [], "extra_logs": {}}
    assert read(plain.post("/get_reward", {"query": [], "prompts": [], "labels": []})) == nothing


def test_many_samples_of_openrlhf_at_once(policy):
    """Each is a request of its own; the first ones load the tokenizer."""
    texts = ["x" * k for k in range(24)]
    with on_a_port(length_app(policy_tokenizer=policy)) as address, ThreadPoolExecutor(12) as pool:
        count = itertools.count()
        bodies = [openrlhf_body([text], [LABEL]) for text in texts]
        answers = list(pool.map(lambda body: openrlhf(address, body, count=count), bodies))
    expected = [p_longer(text, LABEL) for text in texts]
    assert [reward for answer in answers for reward in answer["rewards"]] == pytest.approx(expected, abs=1e-6)
    assert next(count) == 24


def test_openrlhf_outlives_a_busy_server_and_gives_up_a_wrong_sample(policy):
    comparer, sample = HeldComparer(), openrlhf_body(["Paris"], [LABEL])
    app = length_app(comparer, policy_tokenizer=policy, limits=Limits(max_requests=1))
    with on_a_port(app) as address:
        with busy(comparer, lambda: httpx.post(f"{address}/get_reward", json=sample)):
            count = itertools.count()
            answer = openrlhf(address, sample, second=0.3, count=count, refused=comparer.let_go.set)
        assert answer["rewards"] == pytest.approx([p_longer("Paris", LABEL)], abs=1e-6)
        assert 2 <= next(count) <= 5
        wrong = {**sample, "prompts": ["another"]}
        count = itertools.count()
        assert openrlhf(address, wrong, second=0, count=count) is None
        assert next(count) == 5


@pytest.mark.parametrize("path", ["/reward", "/"])
@pytest.mark.parametrize("prompt", [QUESTION, [{"role": "user", "content": QUESTION}]])
def test_slime_reads_a_number(plain, path, prompt):
    sample = {"prompt": prompt, "response": "Paris", "label": LABEL, "metadata": {"any": 1}}
    reward = read(plain.post(path, sample))
    assert isinstance(reward, float)
    assert reward == pytest.approx(p_longer("Paris", LABEL))


def test_a_rendered_sample_of_slime_is_judged_by_its_words(client, comparer):
    comparer.opened.clear()
    (prompt,), _ = rendered([""])
    assert read(client.post("/reward", {"prompt": prompt, "response": "Paris<|eot_id|>", "label": LABEL})) < 0.5
    (group,) = comparer.opened[-1]["groups"]
    assert (group.prompt, group.texts) == (QUESTION, [LABEL, "Paris"])


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"label": None}, "label: expected a response to compare with"),
        ({"label": ""}, "label: expected a response to compare with"),
        ({"label": {"answer": "x"}}, "label: Input should be a valid string"),
        ({"response": TURN}, "response: response: expected text of one turn"),
        ({"response": None}, "response: Input should be a valid string"),
        ({"prompt": []}, "prompts[0]: expected a string or a list of chat messages, got an empty list"),
        ({"prompt": "of another template"}, "prompt: expected what the chat template of this tokenizer writes"),
    ],
)
def test_samples_of_slime_that_have_no_reward(client, changed, what):
    (prompt,), _ = rendered([""])
    response = client.post("/", {"prompt": prompt, "response": "Paris", "label": LABEL, **changed})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(what)


def test_slime_outlives_a_busy_server_and_fails_on_a_wrong_sample():
    comparer, sample = HeldComparer(), {"prompt": QUESTION, "response": "Paris", "label": LABEL}
    with on_a_port(length_app(comparer, limits=Limits(max_requests=1))) as url:
        with busy(comparer, lambda: httpx.post(url, json=sample)):
            count = itertools.count()
            reward = slime(url, sample, second=0.05, count=count, refused=comparer.let_go.set)
        assert reward == pytest.approx(p_longer("Paris", LABEL))
        assert 2 <= next(count) <= 10
        count = itertools.count()
        with pytest.raises(httpx.HTTPStatusError, match="400 Bad Request"):
            slime(url, {**sample, "label": None}, second=0, count=count)
        assert next(count) == 10


def said(text):
    content = [{"type": "output_text", "text": text}]
    return {"output": [{"type": "reasoning", "summary": []}, {"type": "message", "content": content}]}


def compare_body(texts, **more):
    history = [{"role": "user", "content": QUESTION}]
    return {"conversation_history": history, "response_objs": [said(text) for text in texts], **more}


def test_nemo_gym_has_rewards_of_1_to_5(plain):
    body = compare_body(["Paris", "Rome, Italy", "Oslo", "Paris"], principle=None)
    answer = read(plain.post("/compare", body))
    expected = nemo_gym.compare(PairwiseJudge(LengthComparer()), body)
    assert answer.keys() == {"rewards", "comparison_results", "metrics"}
    assert (answer["rewards"], answer["comparison_results"]) == (expected["rewards"], expected["comparison_results"])
    assert {tuple(result) for result in answer["comparison_results"]} == {
        ("response_i", "response_j", "judge_idx", "score_1", "score_2", "ranking")
    }
    assert {"mean_individual_score", "std_individual_score", "tiebreak_usage_rate"} <= answer["metrics"].keys()
    assert 5 >= answer["rewards"][1] > answer["rewards"][0] == answer["rewards"][3] > answer["rewards"][2] >= 1


def test_a_principle_stands_before_the_conversation(client, comparer):
    read(client.post("/compare", compare_body(["Paris", "Rome"], principle="Be short.")))
    (group,) = comparer.opened[-1]["groups"]
    assert group.prompt == f"System: Be short.\n\nUser: {QUESTION}"


@pytest.mark.parametrize(
    ("objects", "rewards"),
    [
        ([], []),
        ([said("Paris")], [3.0]),
        ([said("Paris"), {}], [3.0, 3.0]),
        ([{"output": 3}, {"output": "text"}, {"output": [3, {"type": "message", "content": 3}]}], [3.0] * 3),
        ([{"output": [{"type": "message", "content": [3, {"type": "output_text", "text": 3}]}]}, said("")], [3.0] * 2),
    ],
)
def test_responses_of_nemo_gym_without_words_or_others_have_3(plain, objects, rewards):
    body = {"conversation_history": [{"role": "user", "content": QUESTION}], "response_objs": objects}
    answer = read(plain.post("/compare", body))
    assert (answer["rewards"], answer["comparison_results"], answer["metrics"]) == (rewards, None, None)


@pytest.mark.parametrize(
    ("changed", "place", "what"),
    [
        ({"conversation_history": "text"}, "conversation_history", "Input should be a valid array"),
        ({"response_objs": ["text"]}, "response_objs.0", "Input should be an object"),
        ({"principle": 3}, "principle", "Input should be a valid string"),
        ({"response_objs": [{}] * 7}, "response_objs", "expected at most 6 in all, got 7"),
    ],
)
def test_nemo_gym_is_refused_in_the_form_of_fastapi(client, changed, place, what):
    response = client.post("/compare", compare_body(["a", "b"], **changed))
    expected = {"detail": [{"type": "field", "loc": ["body", place], "msg": f"{place}: {what}"}]}
    assert (response.status_code, response.json()) == (422, expected)


def test_no_json_is_422_for_nemo_gym(client):
    (found,) = client.post_raw("/compare", b"{").json()["detail"]
    assert (found["type"], found["loc"]) == ("json", ["body"])
    assert client.post_raw("/compare", b"{").status_code == 422


def test_nemo_gym_is_answered_as_long_as_there_is_room_and_does_not_come_again():
    """More than are judged at once wait; those above the limit are lost to this client."""
    comparer, body = HeldComparer(), compare_body(["Paris", "Rome, Italy"])
    with on_a_port(length_app(comparer, limits=Limits(max_requests=8))) as address, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(gym, address, "/compare", body) for _ in range(8)]
        until = time.monotonic() + 30
        while "gram_fast_requests_open 8.0" not in httpx.get(f"{address}/metrics").text:
            assert time.monotonic() < until
            time.sleep(0.01)
        with pytest.raises(httpx.HTTPStatusError) as caught:
            gym(address, "/compare", body)
        comparer.let_go.set()
        assert {tuple(answer.result()["rewards"]) for answer in asked} == {tuple(asked[0].result()["rewards"])}
    refused = caught.value.response
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["detail"][0]["type"] == "busy"


def test_hosts_send_no_key():
    """A server with keys refuses them, each in a form that it can read."""
    with in_process(length_app(keys=ApiKeys(["secret"]))) as client:
        for path, body in (("/get_reward", {}), ("/reward", {}), ("/", {}), ("/compare", {})):
            response = client.post(path, body)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
            assert response.json()["detail"]
