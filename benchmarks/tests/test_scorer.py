"""What benchmarks/scorer/run.py does, on a tiny model: rivals that are right; what is measured, left out and kept."""

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.ops import CPU
from helpers.small_models import tiny_judge, write_judge
from rich.console import Console

from benchmarks.random_judge import SHAPES, write_random_judge
from benchmarks.scorer import cases as cases
from benchmarks.scorer import report as report
from benchmarks.scorer import rivals as rivals
from benchmarks.scorer import run as scorer
from benchmarks.scorer import shapes as shapes
from benchmarks.scorer.options import read_options
from benchmarks.scorer.ours import ours_on
from gram_fast import ForwardStats, PairwiseJudge
from gram_fast.models.transformers_runner import TransformersRunner

pytestmark = pytest.mark.usefixtures("one_thread")

OURS = ours_on(CPU, torch.float32)
NAMES = ("ours, dense", "ours, transformers")
WORDS = ["the", "better", "response", "is", "shown", "first", "of", "both"]


@pytest.fixture(scope="module")
def judge() -> PairwiseJudge:
    return tiny_judge()


@pytest.fixture(scope="module")
def plain(judge: PairwiseJudge) -> rivals.Rivals:
    assert isinstance(judge.comparer.runner, TransformersRunner)
    return rivals.Rivals(judge.comparer.runner, judge.comparer.tokenizer)


def ragged_presentations() -> list[tuple[str, str, str]]:
    """Presentations of texts of 1 to 40 words: some share prompt and slot A, one shares with none."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size)) for size in (1, 40, 3, 17, 8, 29)]
    a, b, c, d, e, f = texts
    return [(a, b, c), (a, c, b), (a, b, d), (a, b, e), (f, e, d), (a, c, d), (f, b, c)]


@pytest.mark.parametrize("name", ["loop", "padded", "packed", "prefix"])
@pytest.mark.parametrize("size", [1, 2, 5, 10_000])
def test_rivals_are_right_and_count_their_tokens(name: str, size: int, plain: rivals.Rivals) -> None:
    presentations = ragged_presentations()
    expected = scorer.plain_scores(plain, presentations, 1)
    scored = getattr(plain, name)(presentations, size)
    torch.testing.assert_close(scored.logits_P2, expected.logits_P2, atol=1e-4, rtol=0)
    if name == "packed" or (name in ("loop", "padded") and size == 1):
        assert scored.tokens == expected.tokens
    elif name == "prefix":
        assert scored.tokens < plain.padded(presentations, size).tokens
    else:
        assert scored.tokens > expected.tokens


def test_passes_of_the_packed_rival_hold_whole_pairs_under_the_budget() -> None:
    sequences = [np.arange(length, dtype=np.int32) for length in (5, 6, 3, 20, 1, 9)]
    passes = rivals.packed_passes(sequences, 12)
    assert [tree_pass.num_tokens for tree_pass in passes] == [11, 3, 20, 10]
    assert passes[0].spans.spans_N2.tolist() == [[0, 5], [5, 11]]
    assert passes[0].leaf_rows.tolist() == [4, 10]
    assert passes[0].position_ids.tolist() == [*range(5), *range(6)]


@pytest.mark.parametrize(
    ("rows", "length"), [([[1, 2, 3], [1, 2, 4, 5]], 2), ([[1, 2, 3], [1, 2, 3]], 2), ([[1, 2], [3, 4]], 0)]
)
def test_common_length(rows: list[list[int]], length: int) -> None:
    assert rivals.common_length([np.array(row) for row in rows]) == length


def test_sizes_to_try() -> None:
    assert rivals.batch_sizes(CPU, 1) == [1]
    assert rivals.batch_sizes(CPU, 3) == [1, 4]
    assert rivals.batch_sizes(CPU, 100) == [1, 4, 8]
    assert rivals.batch_sizes(torch.device("cuda"), 8) == [8]


def some_case(n: int = 9) -> cases.Case:
    """n - 1 pairs, one forward each; ours is played already."""
    responses = [f"response {k}" for k in range(n)]
    case = cases.Case(shapes.Workload("reference", "ab", ["prompt"], [responses]))
    case.asked = [("prompt", responses[0], response) for response in responses[1:]]
    case.stats = ForwardStats(
        comparisons=n - 1,
        tokens_unshared=100 * (n - 1),
        tokens_tree=60 * (n - 1),
        tokens_computed=50 * (n - 1),
        passes=1,
        seconds=1.0,
    )
    return case


def contender(name: str, seconds: float, sizes: Callable[[Any], list[int]], **more: Any) -> cases.Contender:
    """One that says that a half is better, takes 90 tokens a pair, and is known to be that fast a forward."""

    def answer(workload: shapes.Workload, pairs: Sequence[rivals.TextPair], size: int) -> cases.Answer:
        return cases.Answer(dict.fromkeys(pairs, 0.5), 90 * len(pairs))

    return cases.Contender(name, answer, sizes, seconds_a_forward=seconds, **more)


def allowance(seconds: float, measurements: int = 1) -> cases.Allowance:
    """For so many measurements of `some_case`."""
    return cases.Allowance(time.perf_counter() + seconds, 8 * measurements)


def test_time_is_shared_by_forwards() -> None:
    shared = cases.Allowance(time.perf_counter() + 100.0, 50)
    assert [round(shared.next_share(forwards)) for forwards in (10, 30, 10)] == [20, 75, 100]
    assert cases.Allowance(time.perf_counter() + 100.0, 1000).next_share(1) == 1.0


def test_a_rival_that_would_not_end_is_left_out() -> None:
    case = some_case()
    slow = contender("slow", 10.0, lambda workload: [1])
    with pytest.raises(TimeoutError, match="would take about 80 s"):
        cases.measure(slow, case, allowance(60.0), 3)
    with pytest.raises(TimeoutError, match="no time is left"):
        cases.measure(slow, case, allowance(-1.0), 3)
    assert not case.measured


def test_the_loop_runs_a_part_and_is_scaled() -> None:
    case = some_case()
    loop = contender("loop", 10.0, lambda workload: [1], is_scaled=True)
    cases.measure(loop, case, allowance(45.0, 2), 3)  # a share of 22 s: two pairs
    found = case.measured["loop"]
    assert (found.extrapolated, found.runs, len(found.preferences)) == (True, 1, 2)
    assert found.tokens == 800
    cases.measure(loop, case, allowance(1e6), 3)
    assert not case.measured["loop"].extrapolated
    assert case.measured["loop"].tokens == 720


def test_repeats_and_sizes_are_as_many_as_fit() -> None:
    case = some_case()
    quick = contender("quick", 1e-3, lambda workload: [1, 4])
    cases.measure(quick, case, allowance(1e6), 3)
    assert case.measured["quick"].runs == 3
    quick.seconds_a_forward = 1.0
    assert cases.plan(quick, case, share=20.0, left=100.0)[0] == [1, 4]
    assert len(cases.plan(quick, case, share=10.0, left=100.0)[0]) == 1


def test_the_fastest_size_is_found_on_a_sample_that_fills_a_batch() -> None:
    case, seen = some_case(41), []

    def answer(workload: shapes.Workload, pairs: Sequence[rivals.TextPair], size: int) -> cases.Answer:
        seen.append(pairs)
        time.sleep(0.02 if size == 1 else 0.0)
        return cases.Answer({}, 1)

    rival = cases.Contender("rival", answer, lambda workload: [1, 4])
    assert cases.fastest_size(rival, case, [1, 4], 0.01) == 4
    assert seen == [case.asked[::10]] * 2
    cases.fastest_size(rival, case, [1, 4], 0.5)
    assert seen[2] == case.asked[::2]


def test_rows_say_what_was_measured() -> None:
    case = some_case()
    cases.measure(contender("ours", 1e-3, lambda workload: [0]), case, allowance(1e6), 1)
    case.plain, case.matrix_flops = {case.asked[0]: 0.75, case.asked[3]: 0.25}, 4000.0
    (row,) = cases.rows_of(case, flops=1000, ours="ours")
    assert row["floor_seconds"] == 50 * 8 * 1000 / 4000.0  # of the tokens that ours computed: fewer than the tree has
    assert row["share_of_floor"] == row["floor_seconds"] / row["seconds"]
    assert (row["difference"], row["spread"], row["checked"], row["times_ours"]) == (0.25, 0.5, 2, 1.0)


def test_curves_and_growth(tmp_path: Path) -> None:
    def row(strategy: str, name: str, n: int, seconds: float) -> report.Row:
        return {"strategy": strategy, "name": name, "n": n, "seconds": seconds, "floor_seconds": 0.5 * n}

    rows = [row("knockout", "ours", n, 1.0 * n**2) for n in (2, 4, 8)]
    rows += [row("knockout", "slow", 2, 9.0), row("rewards", "ours", 4, 1.0)]
    lines = report.curves(rows)
    assert lines == {
        "knockout": {"ours": {2: 4.0, 4: 16.0, 8: 64.0}, "slow": {2: 9.0}, "floor": {2: 1.0, 4: 2.0, 8: 4.0}}
    }
    table = report.growth_table("knockout", lines["knockout"])
    assert list(table.columns[-1].cells) == ["2.00", "", "1.00"]
    report.plot(rows, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judge(tmp_path_factory.mktemp("model"))


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, Any]:
    """What the whole benchmark prints, and the record in its last line."""
    lengths = "--prompt-tokens 9 --response-tokens 12 --repeats 1"
    sizes = "--reference 2 4 --knockout 2 4 --round-robin 6 --prompts 2 --of-prompt 4 --unshared 3"
    monkeypatch.setattr("sys.argv", ["scorer.py", *lengths.split(), *sizes.split(), *arguments])
    scorer.main()
    text = capsys.readouterr().out
    return text, json.loads(text.splitlines()[-1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="sizes and rivals are those of the CPU")
def test_the_whole_benchmark(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.json"
    text, record = run(monkeypatch, capsys, "--model", str(checkpoint), "--output", str(output))
    assert record == json.loads(output.read_text("utf-8"))
    assert {"device", "torch", "transformers", "triton", "gram_fast", "commit", "threads", "dtype", "shape"} <= set(
        record
    )
    assert [left["name"] for left in record["left_out"]] == ["vLLM"]
    assert str(checkpoint.parent) not in json.dumps(record)
    assert {row["workload"] for row in record["rows"]} == {
        *(f"reference, n = {n}, one order" for n in (2, 4)),
        *(f"knockout, n = {n}, both orders" for n in (2, 4)),
        "round_robin, n = 6, both orders",
        "rewards, 2 prompts, n = 4, both orders",
        "unshared, 3 prompts, n = 2, both orders",
    }
    names = ["ours, dense", "padded", "prefix", "packed", "loop", *list(OURS)[1:]]
    assert [row["name"] for row in record["rows"]] == names * 7
    assert set(record["matrix_by"].values()) <= {"torch", "onednn"}
    floors = {row["workload"]: row["matrix_flops"] for row in record["rows"]}
    assert len(set(floors.values())) == 7  # measured for each workload
    by_name = {row["name"]: row for row in record["rows"] if row["strategy"] == "round_robin"}
    assert by_name["packed"]["tokens"] == by_name["packed"]["tokens_unshared"]
    assert by_name["ours, dense"]["tokens"] < by_name["prefix"]["tokens"] < by_name["packed"]["tokens"]
    for row in record["rows"]:
        assert row["difference"] < 1e-4
        assert row["checked"] > 0
        assert row["share_of_floor"] > 0
    # Preferences differ by more than what would pass for rounding: wrong attention would be seen.
    assert max(row["spread"] for row in record["rows"]) > 1e-2
    for words in ("left out: vLLM", "growth with n", "ours, transformers", "in the tree, floor"):
        assert words in text


@pytest.fixture
def known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates that need no measuring."""
    monkeypatch.setattr(scorer, "matrix_rates", lambda *arguments: {"qkv": shapes.Rate(1e9, "torch")})
    monkeypatch.setattr(scorer, "product_rate", lambda *arguments: 1e9)


@pytest.mark.skipif(torch.cuda.is_available(), reason="sizes and rivals are those of the CPU")
@pytest.mark.usefixtures("known_rates")
def test_without_time_everything_is_listed(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, record = run(monkeypatch, capsys, "--model", str(checkpoint), "--limit", "0")
    assert record["rows"] == []
    assert len(record["left_out"]) == 7 * (len(OURS) + 4) + 1
    assert "left out: loop, round_robin, n = 6, both orders" in text


@pytest.mark.parametrize(
    ("arguments", "kept"), [("--vllm python", 400.0), ("--vllm python --only prefix", 0.0), ("--only vllm", 0.0)]
)
def test_a_part_of_the_time_is_kept_for_vllm(arguments: str, kept: float, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[float] = []
    monkeypatch.setattr(scorer, "Allowance", lambda end, forwards: ends.append(end))
    monkeypatch.setattr("sys.argv", ["run.py", "--limit", "1000", *arguments.split()])
    scorer.BenchmarkRun(read_options(CPU, ""), CPU, [], 1000.0, Console())
    assert sorted(ends) == [1000.0 - kept, 1000.0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="sizes and rivals are those of the CPU")
@pytest.mark.usefixtures("known_rates")
@pytest.mark.parametrize("way", ["run_together", "run_apart"])
def test_only_those_that_are_asked_for_run(
    way: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scorer.BenchmarkRun, "run_together", getattr(scorer.BenchmarkRun, way))
    _, record = run(monkeypatch, capsys, "--model", str(checkpoint), "--only", "prefix", "transformers")
    assert record["left_out"] == []
    assert [row["name"] for row in record["rows"][:3]] == ["ours, dense", "prefix", "ours, transformers"]
    assert len(record["rows"]) == 3 * 7
    assert record["options"]["only"] == ["prefix", "transformers"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="sizes and rivals are those of the CPU")
@pytest.mark.usefixtures("known_rates")
def test_only_the_strategies_that_are_asked_for_are_measured(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    strategies = ["--strategies", "reference", "rewards", "--only", "padded"]
    text, record = run(monkeypatch, capsys, "--model", str(checkpoint), *strategies)
    names = ["reference, n = 2, one order", "reference, n = 4, one order", "rewards, 2 prompts, n = 4, both orders"]
    assert [row["workload"] for row in record["rows"]] == [name for name in names for _ in range(2)]
    assert re.search(
        r"\n" + names[0] + r": ours, dense \S+ s, \S+ times the floor; the best rival, padded, takes", text
    )


@pytest.mark.gpu
def test_a_small_run_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    write_random_judge(tmp_path, SHAPES["small"], CPU, torch.bfloat16)
    options = ["--model", str(tmp_path), "--limit", "60", "--strategies", "reference", "knockout"]
    _, record = run(monkeypatch, capsys, *options)
    assert [left["name"] for left in record["left_out"]] == ["vLLM"]
    names = [
        "ours, dense",
        "padded",
        "prefix",
        "packed",
        "loop",
        "ours, transformers",
        "ours, fp8",
        "ours, deterministic",
    ]
    can_fp8 = torch.cuda.get_device_capability() >= (8, 9)
    assert [row["name"] for row in record["rows"]] == [name for name in names if can_fp8 or name != "ours, fp8"] * 4
    assert all(row["peak_bytes"] > 0 and row["checked"] > 0 for row in record["rows"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="sizes and rivals are those of the CPU")
@pytest.mark.usefixtures("known_rates")
def test_a_rival_that_raises_is_left_out_and_one_that_is_wrong_fails_the_run(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loop(self: Any, presentations: Any, size: int) -> rivals.Scored:
        if size == 1:
            raise RuntimeError("out of luck\nand a page of details")
        return rivals.Scored(torch.tensor([[9.0, 0.0], [0.0, 9.0]]).repeat(len(presentations) // 2, 1), 1)

    monkeypatch.setattr(rivals.Rivals, "loop", loop)
    monkeypatch.setattr(scorer.BenchmarkRun, "run_together", scorer.BenchmarkRun.run_apart)  # as on a GPU
    with pytest.raises(SystemExit, match="loop of round_robin, n = 6, both orders: differs by"):
        run(monkeypatch, capsys, "--model", str(checkpoint))
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    whys = {left["workload"]: left["why"] for left in record["left_out"] if left["name"] == "loop"}
    ours, rest = "ours, dense", ["ours, transformers", *(name for name in OURS if name not in NAMES)]
    assert [row["name"] for row in record["rows"][: len(OURS) + 3]] == [ours, "padded", "prefix", "packed", *rest]
    why = "out of luck and a page of details"
    assert whys == dict.fromkeys((f"reference, n = {n}, one order" for n in (2, 4)), why)


@pytest.mark.skipif(torch.cuda.is_available(), reason="sizes and rivals are those of the CPU")
@pytest.mark.usefixtures("known_rates")
def test_a_judge_that_cannot_be_loaded_keeps_nobody_else_from_running(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loaded(self: Any, folder: Path, name: str) -> PairwiseJudge:
        if name == "ours, transformers":
            raise RuntimeError("too large")
        return load(self, folder, name)

    load = scorer.BenchmarkRun._judge
    monkeypatch.setattr(scorer.BenchmarkRun, "_judge", loaded)
    monkeypatch.setattr(scorer.BenchmarkRun, "run_together", scorer.BenchmarkRun.run_apart)  # as on a GPU
    options = ["--strategies", "reference", "--only", "deterministic", "transformers", "padded"]
    with pytest.raises(SystemExit, match="ours failed"):
        run(monkeypatch, capsys, "--model", str(checkpoint), *options)
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["name"] for row in record["rows"]] == ["ours, dense", "ours, deterministic"] * 2
    assert record["left_out"] == [{"name": "ours, transformers", "workload": None, "why": "too large"}]
