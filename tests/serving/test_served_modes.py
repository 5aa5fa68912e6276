"""A judge in mode "factored" behind the command line and a server: what it does in process."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from helpers.factored import write_factored_judge
from helpers.served import in_process, on_a_port
from helpers.small_models import write_judge
from typer.testing import CliRunner

from gram_fast import InputError, PairwiseJudge, RemoteRendezvous, from_server
from gram_fast.cli import app
from gram_fast.serving.app import make_app
from gram_fast.serving.limits import Limits

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "Name a colour of the sky."
RESPONSES = ["Blue.", "It is blue, mostly.", "Green?", "", "Red, at dusk", "blue " * 30]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_factored_judge(tmp_path_factory.mktemp("factored") / "judge")


@pytest.fixture(scope="module")
def here(checkpoint):
    return PairwiseJudge.from_pretrained(checkpoint)


def test_a_checkpoint_that_records_its_modes_has_them(here, tmp_path):
    assert here.comparer.modes == ("full", "factored")
    assert here.rank(PROMPT, RESPONSES, mode="factored").best is not None
    with pytest.raises(InputError, match="trained in mode 'full' alone"):
        PairwiseJudge.from_pretrained(write_judge(tmp_path)).rank(PROMPT, RESPONSES, mode="factored")


def test_the_judge_of_a_server_has_the_same_modes(checkpoint, here):
    with on_a_port(make_app(PairwiseJudge.from_pretrained(checkpoint))) as url:
        there = from_server(url)
        ours, theirs = (judge.rank(PROMPT, RESPONSES, mode="factored", rejudge=3) for judge in (here, there))
        assert theirs.order == ours.order
        assert theirs.scores == pytest.approx(ours.scores, abs=1e-5)
        assert [(c.i, c.j, c.mode) for c in theirs.comparisons] == [(c.i, c.j, c.mode) for c in ours.comparisons]
        np.testing.assert_allclose(
            there.matrix(PROMPT, RESPONSES, mode="factored"), here.matrix(PROMPT, RESPONSES, mode="factored"), atol=1e-5
        )
        np.testing.assert_allclose(there.matrix(PROMPT, RESPONSES), here.matrix(PROMPT, RESPONSES), atol=1e-5)


def test_a_server_whose_judge_was_not_trained_for_it_says_so(tmp_path):
    app = make_app(PairwiseJudge.from_pretrained(write_judge(tmp_path)))
    with on_a_port(app) as url, pytest.raises(InputError, match="gram-fast train finetune factored"):
        from_server(url).rank(PROMPT, RESPONSES, mode="factored")


def test_members_of_a_group_that_meet_at_a_server_are_read_in_their_mode(checkpoint, here):
    responses = RESPONSES[:3]
    with on_a_port(make_app(PairwiseJudge.from_pretrained(checkpoint))) as url, ThreadPoolExecutor(6) as pool:
        found = {}
        for mode in ("full", "factored"):
            place = RemoteRendezvous(url, size=3, timeout=60, mode=mode)
            found[mode] = list(pool.map(lambda text, p=place: p.reward("row", PROMPT, text), responses))
            expected = here.rewards([PROMPT], [responses], mode=mode)[0]
            assert found[mode] == pytest.approx(expected, abs=1e-5)
        assert found["full"] != pytest.approx(found["factored"], abs=1e-3)


def test_the_servers_own_protocol_has_modes(checkpoint, here):
    with in_process(make_app(PairwiseJudge.from_pretrained(checkpoint))) as client:

        def post(path: str, **body: Any) -> Any:
            answer = client.post(path, json=body)
            assert answer.status_code == 200, answer.text
            return answer.json()

        one = {"prompt": PROMPT, "responses": RESPONSES, "mode": "factored"}
        ranked = post("/v1/rank", **one, rejudge=2)
        ours = here.rank(PROMPT, RESPONSES, mode="factored", rejudge=2)
        assert ranked["order"] == list(ours.order)
        assert [c["mode"] for c in ranked["comparisons"]] == [c.mode for c in ours.comparisons]
        best = post("/v1/best_of_n", **one)
        assert best["index"] == here.best_of_n(PROMPT, RESPONSES, mode="factored").index
        pair = post("/v1/compare", prompt=PROMPT, a="Blue.", b="Green?", mode="factored")
        assert pair["p"] == pytest.approx(here.compare(PROMPT, "Blue.", "Green?", mode="factored").p, abs=1e-5)
        rewards = post("/v1/rewards", prompts=[PROMPT], groups=[RESPONSES], mode="factored")["rewards"]
        assert rewards == [pytest.approx(here.rewards([PROMPT], [RESPONSES], mode="factored")[0], abs=1e-5)]
        for wrong in ({"mode": "half"}, {"rejudge": 1}):
            assert client.post("/v1/rank", json={**one, **wrong}).status_code in (400, 422)


@pytest.mark.parametrize("mode", ["full", "factored"])
def test_calls_in_each_mode_are_counted(checkpoint, mode):
    with in_process(make_app(PairwiseJudge.from_pretrained(checkpoint))) as client:
        asked = {"prompt": PROMPT, "responses": RESPONSES, "mode": mode}
        stats = client.post("/v1/rank", json=asked).json()["stats"]
        text = client.get("/metrics").text
    assert f"gram_fast_comparisons_total {stats['comparisons']:.1f}" in text
    assert f'gram_fast_tokens_total{{kind="computed"}} {stats["tokens_computed"]:.1f}' in text


def test_what_is_judged_again_counts_within_the_limit_of_comparisons(checkpoint):
    limits = Limits(max_comparisons=16)
    with in_process(make_app(PairwiseJudge.from_pretrained(checkpoint), limits=limits)) as client:
        asked = {"prompt": PROMPT, "responses": RESPONSES, "strategy": "knockout", "mode": "factored"}
        for path in ("/v1/rank", "/v1/best_of_n"):
            assert client.post(path, json={**asked, "rejudge": 3}).status_code == 200
            answer = client.post(path, json={**asked, "rejudge": 4})
            assert answer.status_code == 400
            assert "at most 16 comparisons, got 22" in answer.text


def test_calls_in_both_modes_advance_together(checkpoint, here):
    judge = PairwiseJudge.from_pretrained(checkpoint, max_batch_tokens=256)
    judge.comparer.advance_together(0)
    prompts = [PROMPT, "Why?", "How?", PROMPT]
    modes: list[Any] = ["factored", "full", "factored", "factored"]
    found: dict[int, Any] = {}

    def ask(k: int) -> None:
        found[k] = judge.matrix(prompts[k], RESPONSES, mode=modes[k])

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(4):
        np.testing.assert_allclose(found[k], here.matrix(prompts[k], RESPONSES, mode=modes[k]), atol=1e-5)


def test_commands_have_modes(checkpoint, here, tmp_path):
    rows, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text(json.dumps({"id": "a", "prompt": PROMPT, "responses": RESPONSES}) + "\n")
    common = ["-m", str(checkpoint), "-i", str(rows), "-o", str(output), "--device", "cpu"]
    ran = CliRunner().invoke(app, ["rank", *common, "--mode", "factored", "--rejudge", "3"])
    assert ran.exit_code == 0, ran.output
    row = json.loads(output.read_text())
    ours = here.rank(PROMPT, RESPONSES, mode="factored", rejudge=3)
    assert row["order"] == list(ours.order)
    assert [c["mode"] for c in row["comparisons"]] == [c.mode for c in ours.comparisons]
    ran = CliRunner().invoke(app, ["rank", *common, "--resume"])
    assert "mode was 'factored', now there is none" in str(ran.exception)
    for wrong, message in ((["--mode", "half"], "mode: expected full or factored"), (["--rejudge", "3"], "rejudge")):
        assert message in str(CliRunner().invoke(app, ["best-of-n", *common[:4], *wrong]).exception)


def test_a_command_whose_judge_has_not_the_mode_blames_no_row(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"id": "a", "prompt": PROMPT, "responses": RESPONSES[:2]}) + "\n")
    judge = write_judge(tmp_path / "judge")
    common = ["-m", str(judge), "-i", str(rows), "-o", str(tmp_path / "out.jsonl"), "--device", "cpu", "--skip-bad"]
    for command in ("compare", "rank", "best-of-n"):
        ran = CliRunner().invoke(app, [command, *common, "--mode", "factored"])
        assert str(ran.exception).startswith("mode 'factored': this judge was trained in mode 'full' alone")
