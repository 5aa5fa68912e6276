"""benchmarks/serving.py: every kind of request is compared with what a judge in this process says; the tables."""

import random
from itertools import islice

import pytest
from helpers.served import in_process
from helpers.small_models import tiny_judge

from benchmarks import serving
from gram_fast.serving.app import make_app

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_kind_of_request_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "PROMPTS", 2)
    monkeypatch.setattr(serving, "RESPONSES", 3)
    judge, paths = tiny_judge(), set()
    with in_process(make_app(tiny_judge())) as client:
        for path, body in islice(serving.mixed(serving.groups_of(0), random.Random(0)), 24):
            found = serving.numbers_in(path, client.post(path, body).json())
            assert found == pytest.approx(serving.expected_of(judge, path, body), abs=serving.TOLERANCE)
            paths.add(path)
    assert paths == {"/v1/compare", "/v1/rank", "/v1/best_of_n", "/v1/rewards", "/rerank"}


def test_half_of_the_requests_are_answered_within_the_median() -> None:
    load = serving.Load()
    load.seconds = [k / 1000 for k in range(1, 1001)]
    assert load.percentiles() == {"p50_ms": 500.5, "p95_ms": 950.9, "p99_ms": 991.0}
    found = {"per_second": 10.0, "failed": 0, **load.percentiles()}
    found["open"] = [{"per_second": 5.0, "refused": 3, **load.percentiles()}]
    lines = serving.table(found, found).splitlines()
    assert lines[2] == "| closed | gram-fast serve | 10 | 500, 951, 991 | 0 |"
    assert lines[-1] == "| open | one at a time | 5 asked | 500, 951, 991 | 3 |"
