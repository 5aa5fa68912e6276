"""Scores by the next token are those of transformers' forward over the same tokens, in vLLM's and SGLang's shapes."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from helpers.served import Client, in_process, length_app
from helpers.small_models import write_judge
from transformers import AutoModelForCausalLM, AutoTokenizer

from gram_fast import PairwiseJudge
from gram_fast.serving.app import make_app
from gram_fast.serving.limits import Limits

pytestmark = pytest.mark.usefixtures("one_thread")

QUERY = "<|im_start|>user\nIs the sky blue? "
ITEMS = ["Yes, it is.", "No.", "Yes, it is blue<|im_end|>", ""]
LABELS = [37, 5, 101]


class Plain:
    """transformers' model and tokenizer."""

    def __init__(self, name: Any) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(name)

    def logprobs(self, ids: Sequence[int]) -> torch.Tensor:
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)

    def scores(self, rows: Sequence[Sequence[int]], labels: Sequence[int], softmax: bool) -> np.ndarray:
        found = torch.stack([self.logprobs(ids)[labels] for ids in rows])
        return (found.softmax(-1) if softmax else found.exp()).numpy()


@pytest.fixture(scope="module", params=["dense", "transformers"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Plain]]:
    name = write_judge(tmp_path_factory.mktemp("judge"))
    judge = PairwiseJudge.from_pretrained(name, runner=request.param, max_batch_tokens=64)
    with in_process(make_app(judge, model="tiny", limits=Limits(max_items=20))) as client:
        yield client, Plain(name)


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("item_first", [True, False])
@pytest.mark.parametrize("ids", [True, False])
def test_vllm_scores_are_those_of_a_plain_forward(served: Any, softmax: bool, item_first: bool, ids: bool) -> None:
    client, plain = served
    encode = plain.tokenizer.encode
    query, items = encode(QUERY), [encode(item, add_special_tokens=False) for item in ITEMS]
    rows = [item + query if item_first else query + item for item in items]
    body = {"query": query if ids else QUERY, "items": items if ids else ITEMS, "label_token_ids": LABELS}
    answer = client.post("/generative_scoring", body | {"apply_softmax": softmax, "item_first": item_first}).json()
    expected = plain.scores(rows, LABELS, softmax)[:, 0]
    assert [row["score"] for row in answer["data"]] == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-7)
    assert [(row["index"], row["object"]) for row in answer["data"]] == [(k, "score") for k in range(4)]
    tokens = sum(map(len, rows))
    assert answer["usage"] == {
        "prompt_tokens": tokens,
        "total_tokens": tokens + 4,
        "completion_tokens": 4,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }
    assert list(answer) == ["id", "object", "created", "model", "data", "usage"]
    assert (answer["object"], answer["model"]) == ("list", "tiny")


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("item_first", [True, False])
def test_sglang_scores_are_those_of_a_plain_forward(served: Any, softmax: bool, item_first: bool) -> None:
    client, plain = served
    rows = [plain.tokenizer.encode(item + QUERY if item_first else QUERY + item) for item in ITEMS]
    more = {"apply_softmax": softmax} if softmax else {}  # false unless it is asked for
    body = {"query": QUERY, "items": ITEMS, "label_token_ids": LABELS, "item_first": item_first, "model": "any", **more}
    answer = client.post("/v1/score", body).json()
    np.testing.assert_allclose(answer["scores"], plain.scores(rows, LABELS, softmax), rtol=1e-3, atol=1e-7)
    assert (answer["model"], answer["object"]) == ("any", "scoring")
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == sum(map(len, rows))


def test_sglang_takes_ids_one_string_and_a_temperature(served: Any) -> None:
    client, plain = served
    query, items = plain.tokenizer.encode(QUERY), [[5, 6], [7]]
    body = {"query": query, "items": items, "label_token_ids": LABELS, "apply_softmax": True, "temperature": 0.5}
    found = client.post("/v1/score", body).json()["scores"]
    logprobs = torch.stack([plain.logprobs(query + item)[LABELS] for item in items])
    np.testing.assert_allclose(found, (logprobs / 0.5).softmax(-1), rtol=1e-3)
    one = {"query": QUERY, "items": ITEMS[0], "label_token_ids": LABELS}
    assert client.post("/v1/score", one).json()["scores"] == [
        pytest.approx(plain.scores([plain.tokenizer.encode(QUERY + ITEMS[0])], LABELS, False)[0].tolist(), rel=1e-3)
    ]
    assert client.post("/v1/score", one | {"items": []}).json()["scores"] == []


def tokens(client: Client, kind: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[1]) for line in lines if f'total{{kind="{kind}"' in line)


def test_items_share_their_query(served: Any) -> None:
    client, _ = served
    computed, unshared = tokens(client, "computed"), tokens(client, "unshared")
    client.post("/generative_scoring", {"query": "word " * 60, "items": ["a", "b", "c"] * 3, "label_token_ids": LABELS})
    assert 0 < tokens(client, "computed") - computed < 0.2 * (tokens(client, "unshared") - unshared)


def test_items_share_their_beginnings_with_those_of_earlier_requests(served: Any) -> None:
    client, plain = served
    first, second = list(range(100, 140)), list(range(140, 180))
    for item, left in (([*first, *second], 0), ([*first, 7], 40), ([*first, *second[:20], 7], 60)):
        computed = tokens(client, "computed")
        body = {"query": [5, 6], "items": [item], "label_token_ids": LABELS}
        score = client.post("/generative_scoring", body).json()["data"][0]["score"]
        assert score == pytest.approx(plain.scores([[5, 6, *item]], LABELS, True)[0, 0], rel=1e-3)
        assert tokens(client, "computed") - computed == 2 * (not left) + len(item) - left


BODY = {"query": QUERY, "items": ITEMS[:2], "label_token_ids": LABELS}


@pytest.mark.parametrize(
    ("path", "change", "status", "words"),
    [
        ("/generative_scoring", {"items": []}, 400, "items must contain at least one item."),
        ("/generative_scoring", {"label_token_ids": []}, 400, "label_token_ids must contain at least one token ID."),
        (
            "/generative_scoring",
            {"label_token_ids": [10**6]},
            400,
            "token 1000000: expected one of the model",
        ),
        ("/generative_scoring", {"label_token_ids": [-1]}, 400, "token -1: expected one of the model's vocabulary"),
        ("/generative_scoring", {"items": "text"}, 400, "items"),
        ("/generative_scoring", {"items": ["a", [1]]}, 400, "items"),
        ("/generative_scoring", {"items": [[10**6]]}, 400, "sequence 0: expected token ids from 0 to"),
        ("/generative_scoring", {"items": [[-1]]}, 400, "token ids: expected numbers from 0 on"),
        (
            "/generative_scoring",
            {"query": "", "items": [""], "add_special_tokens": False},
            400,
            "sequence 0: expected 1 to",
        ),
        ("/generative_scoring", {"items": ["a", "word " * 5000]}, 400, "sequence 1: expected 1 to 4096"),
        ("/generative_scoring", {"model": "other"}, 404, "there is no model 'other' here"),
        ("/generative_scoring", {"items": ["a"] * 21}, 400, "items: expected at most 20"),
        ("/v1/score", {"items": None}, 400, "items must be provided"),
        ("/v1/score", {"label_token_ids": None}, 400, "label_token_ids is required"),
        ("/v1/score", {"label_token_ids": []}, 400, "label_token_ids must be a nonempty list"),
        ("/v1/score", {"label_token_ids": [5, 5]}, 400, "label_token_ids must not contain duplicate tokens"),
        ("/v1/score", {"items": [[1]]}, 400, "Invalid combination of query/items types for score_request."),
        ("/v1/score", {"temperature": 2.0}, 400, "temperature: expected 1.0 without apply_softmax"),
        ("/v1/score", {"temperature": 0}, 400, "temperature"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_the_words_of_its_protocol(
    served: Any, path: str, change: dict[str, Any], status: int, words: str
) -> None:
    client, _ = served
    answer = client.post(path, BODY | change)
    assert answer.status_code == status
    body = answer.json()
    error = body["error"] if path == "/generative_scoring" else body
    assert words in error["message"]
    assert error["code"] == status


def test_scores_and_judgements_share_the_engine(served: Any) -> None:
    """One in another's turn would read what is not its own."""
    client, plain = served
    from concurrent.futures import ThreadPoolExecutor

    pair = {"prompt": QUERY, "a": ITEMS[0], "b": ITEMS[1]}
    p = client.post("/v1/compare", pair).json()["p"]
    rows = [plain.tokenizer.encode(QUERY + item) for item in ITEMS[:2]]
    expected = plain.scores(rows, LABELS, False)
    with ThreadPoolExecutor(8) as pool:
        compared = [pool.submit(client.post, "/v1/compare", pair) for _ in range(8)]
        scored = [pool.submit(client.post, "/v1/score", BODY) for _ in range(8)]
    assert [future.result().json()["p"] for future in compared] == pytest.approx([p] * 8, abs=1e-5)
    for future in scored:
        np.testing.assert_allclose(future.result().json()["scores"], expected, rtol=1e-3, atol=1e-7)


def test_a_judge_without_a_model_has_no_such_endpoints() -> None:
    with in_process(length_app()) as client:
        assert client.post("/v1/score", BODY).status_code == 404
