"""benchmarks/serving: every kind of request is compared with what a judge in this process says; rows and tables."""

import random
from itertools import combinations, islice

import psutil
import pytest
from helpers.served import in_process, on_a_port
from helpers.small_models import tiny_judge

from benchmarks.serving import requests, soak
from benchmarks.serving.beside_vllm import Rows, difference
from benchmarks.serving.load import Load, measured, table
from gram_fast.serving.app import make_app

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_kind_of_request_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "PROMPTS", 2)
    monkeypatch.setattr(requests, "RESPONSES", 3)
    judge, paths = tiny_judge(), set()
    with in_process(make_app(tiny_judge())) as client:
        for path, body in islice(requests.mixed(requests.groups_of(0), random.Random(0)), 24):
            found = requests.numbers_in(path, client.post(path, body).json())
            assert found == pytest.approx(requests.expected_of(judge, path, body), abs=soak.TOLERANCE)
            paths.add(path)
    assert paths == {"/v1/compare", "/v1/rank", "/v1/best_of_n", "/v1/rewards", "/rerank"}


def test_half_of_the_requests_are_answered_within_the_median() -> None:
    load = Load()
    load.seconds = [k / 1000 for k in range(1, 1001)]
    assert load.percentiles() == {"p50_ms": 500.5, "p95_ms": 950.9, "p99_ms": 991.0}
    found = {"per_second": 10.0, "failed": 0, **load.percentiles()}
    found["open"] = [{"per_second": 5.0, "refused": 3, **load.percentiles()}]
    lines = table({"gram-fast serve": found, "one at a time": found}).splitlines()
    assert lines[2] == "| closed | gram-fast serve | 10 | 500, 951, 991 | 0 |"
    assert lines[-1] == "| open | one at a time | 5 asked | 500, 951, 991 | 3 |"


def test_every_pair_of_a_prompt_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "PROMPTS", 2)
    monkeypatch.setattr(requests, "RESPONSES", 4)
    pairs = list(islice(requests.new_pairs("a row"), 18))
    assert pairs == list(islice(requests.new_pairs("a row"), 18))
    assert not set(pairs) & set(islice(requests.new_pairs("another row"), 18))
    for begin in (0, 6, 12):
        of_prompt = pairs[begin : begin + 6]
        responses = {text for pair in of_prompt for text in (pair.a, pair.b)}
        assert len({pair.prompt for pair in of_prompt}) == 1
        assert {frozenset((pair.a, pair.b)) for pair in of_prompt} == set(map(frozenset, combinations(responses, 2)))
    assert len({pair.prompt for pair in pairs}) == 3


def test_both_protocols_say_the_same_of_a_pair() -> None:
    judge = tiny_judge()
    tokenizer, answers = judge.comparer.tokenizer, []
    pairs = list(islice(requests.new_pairs("a row"), 3))
    with in_process(make_app(judge)) as client:
        for protocol in (requests.native(), requests.scoring(tokenizer)):
            asked = requests.Asked(protocol)
            for path, body in asked.about(iter(pairs)):
                asked.note((path, body), client.post(path, body).json())
            answers.append(asked.answers)
    assert difference(*answers, soak.TOLERANCE)["pairs"] == 3
    prompt, a, b = pairs[0]
    _, body = requests.scoring(tokenizer).ask(pairs[0])
    assert [body["query"] + item for item in body["items"]] == [
        ids.tolist() for ids in tokenizer.whole_ids([(prompt, a, b), (prompt, b, a)])
    ]
    first, second = body["items"]
    assert first[0] != second[0]


def test_clients_of_a_row_share_its_pairs() -> None:
    asked = requests.Asked(requests.native())
    rows = Rows(asked)
    found = [next(rows(row, client)) for row, client in (("closed", 0), ("closed", 1), ("open 0", 0))]
    expected = [*islice(requests.new_pairs("closed"), 2), *islice(requests.new_pairs("open 0"), 1)]
    assert [body for _, body in found] == [pair._asdict() for pair in expected]


def test_a_wrong_answer_is_an_error() -> None:
    one, other = (requests.Pair("a prompt", "a response", text) for text in ("one", "other"))
    assert difference({one: (0.25, 0.5), other: (0.0, 0.0)}, {one: (0.25, 0.75)}, 0.25) == {"pairs": 1, "worst": 0.25}
    with pytest.raises(AssertionError, match=r"answers that are 0\.25 apart, where rounding explains 0\.1"):
        difference({one: (0.25, 0.5)}, {one: (0.25, 0.75)}, 0.1)
    with pytest.raises(AssertionError, match="no pair was answered by both"):
        difference({one: (0.25, 0.5)}, {other: (0.25, 0.5)}, 0.1)


@pytest.mark.parametrize("counter", [None, r'gram_fast_tokens_total\{kind="computed"\}'])
def test_a_measured_server_has_all_its_rows(counter: str | None) -> None:
    judge = tiny_judge()
    asked = requests.Asked(requests.native())
    with on_a_port(make_app(judge)) as url:
        found = measured(url, psutil.Process(), 2, 0.5, Rows(asked), [4.0, 8.0], asked.note, counter)
    assert [row["per_second"] for row in found["open"]] == [4.0, 8.0]
    rows = [found, *found["open"]]
    assert all(row["failed"] == 0 for row in rows)
    assert sum(row["requests"] for row in rows) == len(asked.answers)
    name, presentations = ("tokens_a_comparison", 1) if counter is None else ("tokens_a_request", 2)
    longest = max(map(len, judge.comparer.tokenizer.whole_ids(list(asked.answers))))
    assert 0 < found[name] < presentations * longest
    assert found["cpu_ms_a_request"] > 0
