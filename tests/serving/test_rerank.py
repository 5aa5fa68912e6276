"""Rerankers' protocols, by their shapes and by real clients: Cohere's SDK and rerankers."""

import time

import httpx
import numpy as np
import pytest
from helpers.comparers import LengthComparer
from helpers.served import HeldComparer, busy, in_process, length_app, on_a_port
from scipy.special import expit

from gram_fast import InputError, PairwiseJudge
from gram_fast.serving.keys import ApiKeys
from gram_fast.serving.limits import Limits

pytestmark = pytest.mark.usefixtures("one_thread")

QUERY = "Which?"
DOCUMENTS = ["bb", "a", "dddd", "ccc"]
BEST_FIRST = [2, 3, 0, 1]
RERANK = ("/rerank", "/v1/rerank", "/v2/rerank")


def relevance(documents, strategy="round_robin", k=None):
    """In process: P(better than an average one)."""
    judge = PairwiseJudge(LengthComparer())
    return expit(judge.rank(QUERY, documents, strategy, scores="bradley_terry", k=k).scores)


@pytest.fixture(scope="module")
def client():
    with in_process(length_app(limits=Limits(max_items=20))) as client:
        yield client


def asked(client, path="/v1/rerank", **body):
    response = client.post(path, {"query": QUERY, **body})
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json"), response.text
    return response.json()


@pytest.mark.parametrize("path", RERANK)
def test_documents_are_ordered_by_relevance(client, path):
    expected = relevance(DOCUMENTS)
    answer = client.post(path, {"query": QUERY, "documents": DOCUMENTS}, headers={"x-request-id": "mine"}).json()
    assert answer.keys() == {"id", "model", "object", "usage", "results", "meta"}
    assert (answer["id"], answer["model"], answer["object"]) == ("mine", "judge", "list")
    assert answer["usage"].keys() == {"prompt_tokens", "total_tokens"}
    assert answer["meta"]["billed_units"] == {"search_units": 1}
    assert answer["results"] == [
        {"index": k, "relevance_score": pytest.approx(expected[k]), "document": {"text": DOCUMENTS[k]}}
        for k in BEST_FIRST
    ]


def test_scores_have_no_bias_and_do_not_depend_on_the_order(client):
    found = {r["index"]: r["relevance_score"] for r in asked(client, documents=DOCUMENTS)["results"]}
    turned = {r["index"]: r["relevance_score"] for r in asked(client, documents=DOCUMENTS[::-1])["results"]}
    assert [found[k] for k in range(4)] == pytest.approx([turned[3 - k] for k in range(4)])
    p = np.array(list(found.values()))
    assert np.log(p / (1 - p)).mean() == pytest.approx(0, abs=1e-6)


def test_many_documents_meet_some_of_the_others(client):
    documents = ["x" * (7 * k % 13) for k in range(13)]
    answer = asked(client, documents=documents)
    expected = relevance(documents, "opponents", 8)
    assert [r["relevance_score"] for r in answer["results"]] == pytest.approx(sorted(expected, reverse=True))
    assert [len(documents[r["index"]]) for r in answer["results"]] == list(range(12, -1, -1))


def test_one_document_has_nothing_to_be_compared_with(client):
    assert [r["relevance_score"] for r in asked(client, documents=["a"])["results"]] == [0.5]
    assert asked(client, "/rerank", texts=["a"]) == [{"index": 0, "score": 0.5}]


@pytest.mark.parametrize(("top_n", "count"), [(0, 4), (None, 4), (1, 1), (3, 3), (9, 4)])
def test_the_best_top_n_come_back(client, top_n, count):
    found = asked(client, documents=DOCUMENTS, top_n=top_n)["results"]
    assert [r["index"] for r in found] == BEST_FIRST[:count]


def test_equal_documents_keep_their_order(client):
    assert [r["index"] for r in asked(client, documents=["a", "bb", "a", ""])["results"]] == [1, 0, 2, 3]


def test_documents_may_be_objects_and_stay_away(client):
    objects = [{"text": text, "title": "other"} for text in DOCUMENTS]
    assert asked(client, documents=objects)["results"] == asked(client, documents=DOCUMENTS)["results"]
    found = asked(client, documents=DOCUMENTS, return_documents=False)["results"]
    assert [r.keys() for r in found] == [{"index", "relevance_score"}] * 4


@pytest.mark.parametrize("path", RERANK)
def test_a_query_may_be_an_object_as_jinas_and_documents_a_single_one_as_vllms(client, path):
    found = asked(client, path, query={"text": QUERY}, documents=DOCUMENTS)["results"]
    assert found == asked(client, path, documents=DOCUMENTS)["results"]
    for one in ("a", {"text": "a"}):
        assert asked(client, path, documents=one)["results"] == asked(client, path, documents=["a"])["results"]


def test_fields_of_all_protocols_are_taken_and_any_model_is_echoed(client):
    more = {
        "model": "rerank-v3.5", "user": "u", "max_tokens_per_doc": 4096, "max_chunks_per_doc": 10, "priority": 0,
        "rank_fields": None, "truncation": True, "return_embeddings": False, "truncate_prompt_tokens": -1,
    }  # fmt: skip
    answer = asked(client, documents=DOCUMENTS, **more)
    assert (answer["model"], answer["results"]) == ("rerank-v3.5", asked(client, documents=DOCUMENTS)["results"])


def test_tei_has_a_bare_list(client):
    expected = relevance(DOCUMENTS)
    more = {"truncate": True, "truncation_direction": "Right", "top_n": 1}
    response = client.post("/rerank", {"query": QUERY, "texts": DOCUMENTS, "return_text": True, **more})
    rows = [{"index": k, "text": DOCUMENTS[k], "score": pytest.approx(expected[k])} for k in BEST_FIRST]
    assert response.json() == rows
    assert [list(row) for row in response.json()] == [["index", "text", "score"]] * 4
    without = [{"index": row["index"], "score": row["score"]} for row in response.json()]
    assert asked(client, "/rerank", texts=DOCUMENTS) == without


def test_raw_scores_of_tei_are_log_odds(client):
    raw, scores = (asked(client, "/rerank", texts=DOCUMENTS, raw_scores=raw) for raw in (True, False))
    assert [expit(row["score"]) for row in raw] == pytest.approx([row["score"] for row in scores])
    assert sum(row["score"] for row in raw) == pytest.approx(0, abs=1e-6)


def test_of_equal_texts_tei_has_the_last_first(client):
    assert [row["index"] for row in asked(client, "/rerank", texts=["a", "bb", "a", ""])] == [1, 2, 0, 3]


@pytest.mark.parametrize("path", RERANK)
@pytest.mark.parametrize(
    ("body", "param", "what"),
    [
        ({"documents": []}, "documents", "documents: expected at least one"),
        ({"documents": ["a", "b"], "query": ""}, "query", "query: String should have at least 1 character"),
        ({"documents": ["a", "b"], "query": None}, "query", "query: Input should be a valid string"),
        ({"documents": ["a", "b"], "top_n": -1}, "top_n", "top_n: Input should be greater than or equal to 0"),
        ({"documents": ["a", "b"], "top_n": "2"}, "top_n", "top_n: Input should be a valid integer"),
        ({"documents": ["a", {"image": "x"}]}, "documents.1", "documents.1: Input should be a valid string"),
        # vLLM's form of images, which it too takes for models of images only.
        ({"documents": ["a", {"content": []}]}, "documents.1", "documents.1: Input should be a valid string"),
        ({"documents": ["a", "b"], "query": {"text": ""}}, "query", "query: String should have at least 1 character"),
        ({"documents": ["x"] * 21}, "documents", "documents: expected at most 20 in all, got 21"),
        ({}, "documents", "documents: Field required"),
    ],
)
def test_wrong_documents_are_refused_for_all_clients(client, path, body, param, what):
    """Of OpenAI and vLLM are the members of "error"; clients of Cohere read "message", those of Jina "detail"."""
    response = client.post(path, {"query": QUERY, **body})
    found = response.json()
    kind = "BadRequestError" if body.get("documents") == [] else "Bad Request"
    assert response.status_code == 400
    assert found["error"] == {"message": found["message"], "type": kind, "param": param, "code": 400}
    assert found["message"] == found["detail"]
    assert found["message"].startswith(what)


@pytest.mark.parametrize(
    ("body", "status", "kind", "what"),
    [
        ({"texts": []}, 400, "Empty", "`texts` cannot be empty"),
        ({"texts": ["x"] * 21}, 422, "Validation", "texts: expected at most 20 in all, got 21"),
        ({"texts": ["a", 3]}, 422, "Validation", "texts.1: Input should be a valid string"),
        ({"texts": None}, 422, "Validation", "texts: Input should be a valid array"),
        ({"texts": ["a"], "raw_scores": None}, 422, "Validation", "raw_scores: Input should be a valid boolean"),
        ({"texts": ["a"], "query": 3}, 422, "Validation", "query: Input should be a valid string"),
    ],
)
def test_wrong_texts_are_refused_as_tei_does(client, body, status, kind, what):
    response = client.post("/rerank", {"query": QUERY, **body})
    assert (response.status_code, response.json()) == (status, {"error": what, "error_type": kind})


class ShortComparer(LengthComparer):
    """Takes no second response."""

    def open(self, *args, **more):
        raise InputError.of({"prompt": "it is long", "responses[1]": "it is too long, the limit is 1000 (max_length)"})


def test_what_is_too_long_is_named_as_the_client_knows_it():
    with in_process(length_app(ShortComparer())) as client:
        document = client.post("/v2/rerank", {"query": QUERY, "documents": DOCUMENTS})
        text = client.post("/rerank", {"query": QUERY, "texts": DOCUMENTS})
    error = document.json()["error"]
    assert (document.status_code, list(error["reasons"])) == (400, ["query", "documents[1]"])
    assert error["message"] == "query: it is long; documents[1]: it is too long, the limit is 1000 (max_length)"
    assert (text.status_code, text.json()["error_type"]) == (422, "Validation")
    assert text.json()["error"] == error["message"].replace("documents", "texts")


def test_an_answer_later_than_the_limit_is_no_answer():
    comparer = HeldComparer()
    with in_process(length_app(comparer, limits=Limits(timeout=0.05))) as client:
        statuses = [
            client.post("/rerank", {"query": QUERY, name: DOCUMENTS}).status_code for name in ("texts", "documents")
        ]
        comparer.let_go.set()
    assert statuses == [424, 504]


@pytest.fixture(scope="module")
def address():
    with on_a_port(length_app(keys=ApiKeys(["secret"]))) as address:
        yield address


@pytest.fixture
def cohere():
    return pytest.importorskip("cohere", reason="needs cohere==7.3.1")


@pytest.fixture
def ranker():
    pytest.importorskip("requests", reason="needs requests, which rerankers does not bring")
    return pytest.importorskip("rerankers.models.api_rankers", reason="needs rerankers==0.10.0").APIRanker


def test_cohere_v2(cohere, address):
    client = cohere.ClientV2("secret", base_url=address)
    found = client.rerank(model="rerank-v3.5", query=QUERY, documents=DOCUMENTS, top_n=3, max_tokens_per_doc=100)
    expected = relevance(DOCUMENTS)
    assert [(r.index, r.relevance_score) for r in found.results] == [
        (k, pytest.approx(expected[k])) for k in BEST_FIRST[:3]
    ]
    assert len(found.id) == 32
    assert found.meta.billed_units.search_units == 1


def test_cohere_v1(cohere, address):
    client = cohere.Client("secret", base_url=address)
    documents = [{"text": text} for text in DOCUMENTS]
    found = client.rerank(query=QUERY, documents=documents, return_documents=True)
    assert [(r.index, r.document.text) for r in found.results] == [(k, DOCUMENTS[k]) for k in BEST_FIRST]
    assert [r.index for r in client.rerank(query=QUERY, documents=DOCUMENTS, top_n=2).results] == BEST_FIRST[:2]


@pytest.mark.parametrize(
    ("key", "path", "documents", "error", "status", "what"),
    [
        ("wrong", "", DOCUMENTS, "UnauthorizedError", 401, "expected a valid API key"),
        ("", "", DOCUMENTS, "UnauthorizedError", 401, "expected a valid API key"),
        ("secret", "", [], "BadRequestError", 400, "documents: expected at least one"),
        ("secret", "/nothing", DOCUMENTS, "NotFoundError", 404, None),
    ],
)
def test_errors_of_cohere(cohere, address, key, path, documents, error, status, what):
    client = cohere.ClientV2(key, base_url=address + path)
    with pytest.raises(getattr(cohere, error)) as caught:
        client.rerank(model="m", query=QUERY, documents=documents)
    assert caught.value.status_code == status
    assert what is None or caught.value.body["message"].startswith(what)


def test_cohere_comes_again_when_it_is_told_to(cohere):
    comparer = HeldComparer()
    with on_a_port(length_app(comparer, limits=Limits(max_requests=1))) as address:
        client = cohere.ClientV2("any", base_url=address)
        asks = {"model": "m", "query": QUERY, "documents": DOCUMENTS}
        with busy(comparer, lambda: client.rerank(**asks)):
            with pytest.raises(cohere.ServiceUnavailableError) as caught:
                client.rerank(**asks, request_options={"max_retries": 0})
            assert caught.value.headers["retry-after"] == "1"
            assert caught.value.body["message"] == "1 requests are open, try again later"
            texts = httpx.post(f"{address}/rerank", json={"query": QUERY, "texts": DOCUMENTS})
            assert (texts.status_code, texts.headers["retry-after"]) == (429, "1")
            assert texts.json() == {"error": "1 requests are open, try again later", "error_type": "Overloaded"}
            statuses = []

            def see(response):
                statuses.append((response.status_code, time.monotonic()))
                comparer.let_go.set()

            with httpx.Client(event_hooks={"response": [see]}) as watched:
                again = cohere.ClientV2("any", base_url=address, httpx_client=watched)
                assert [r.index for r in again.rerank(**asks).results] == BEST_FIRST
    (first, at), *_, (last, later) = statuses
    assert (first, last, later - at >= 1) == (503, 200, True)


@pytest.mark.parametrize(
    ("provider", "path"),
    [("jina", "/v1/rerank"), ("cohere", "/v1/rerank"), ("cohere", "/rerank"), ("text-embeddings-inference", "/rerank")],
)
def test_rerankers(ranker, address, provider, path):
    client = ranker("some-model", "secret", provider, url=address + path)
    found = client.rank(QUERY, DOCUMENTS, doc_ids=[10, 11, 12, 13])
    expected = relevance(DOCUMENTS)
    assert [(r.document.doc_id, r.document.text, r.score, r.rank) for r in found.results] == [
        (10 + k, DOCUMENTS[k], pytest.approx(expected[k]), rank) for rank, k in enumerate(BEST_FIRST, start=1)
    ]
    # It looks at no status: what is no answer must not be read as one.
    with pytest.raises((KeyError, TypeError)):
        ranker("some-model", "wrong", provider, url=address + path).rank(QUERY, DOCUMENTS)
