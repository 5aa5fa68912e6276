"""Scoring of benchmarks with a real judge, from the batches up to the command line."""

import json
import re
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.benchmark_rows import write
from helpers.comparers import LengthComparer
from helpers.factored import write_factored_judge
from helpers.generators import ScriptedGenerator, gram_r2_answer
from helpers.small_models import tiny_judge, write_judge
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from typer.testing import CliRunner

from gram_fast.cli import app
from gram_fast.commands.output import open_output
from gram_fast.comparing.preference import preference
from gram_fast.errors import InputError
from gram_fast.evaluation import BENCHMARKS, judgebench
from gram_fast.evaluation.rows import (
    VOTE_FIELDS,
    BenchmarkPair,
    PairTexts,
    Place,
    read_benchmark_pairs,
    read_results,
)
from gram_fast.evaluation.run import batches, score_pairs
from gram_fast.generating.comparer import ReasoningComparer
from gram_fast.generating.options import ReasoningOptions
from gram_fast.judge import PairwiseJudge
from gram_fast.results import Stats
from gram_fast.text.prompts import PairTemplate

SOURCES = ("mmlu-pro-law", "livebench-reasoning", "livebench-math", "livecodebench")
ROWS = [
    {"pair_id": k, "source": SOURCES[k % 4], "prompt": f"Name colour {k}.", "chosen": f"Blue {k}.", "rejected": "Red!"}
    for k in range(6)
]


@pytest.fixture(scope="module")
def judge():
    return tiny_judge()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_judge(tmp_path_factory.mktemp("judge"))


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# compare_many


def test_many_pairs_in_one_call_have_the_answers_of_single_calls(judge):
    prompts = [row["prompt"] for row in ROWS] + ["Same?"]
    pairs = [(row["chosen"], row["rejected"]) for row in ROWS] + [("Equal.", "Equal.")]
    for orders in ("both", "ab", "ba"):
        together = judge.compare_many(prompts, pairs, orders)
        for prompt, (a, b), one in zip(prompts, pairs, together, strict=True):
            alone = judge.compare(prompt, a, b, orders)
            assert (one.i, one.j, one.p_ab is None) == (0, 1, alone.p_ab is None)
            assert one.p == pytest.approx(alone.p, abs=1e-5)
        assert together[0].stats.comparisons == len(pairs) * (2 if orders == "both" else 1)
    assert judge.compare_many([], []) == []


def test_pairs_of_one_prompt_share_their_tokens(judge):
    nine = [(chosen * 30, rejected * 30) for chosen in ("a ", "b ", "c ") for rejected in ("x ", "y ", "z ")]
    together = judge.compare_many(["Which?"] * 9, nine)[0].stats
    alone = sum(judge.compare("Which?", a, b).stats.tokens_computed for a, b in nine)
    assert together.tokens_computed < 0.75 * alone


@pytest.mark.parametrize(
    ("prompts", "pairs", "message"),
    [
        (["p"], [("a", "b"), ("c", "d")], "prompts: expected one for each of 2 pairs, got 1"),
        (["p"], [("a", "b", "c")], r"pairs\[0\]: expected a list of 2 responses, got a list of 3"),
        (["p", "p"], [("a", "b"), "ab"], r"pairs\[1\]: expected a list of 2 responses, got str"),
        (["p"], [("a", 1)], r"pairs\[0\]\[1\]: expected a string"),
        (
            ["p", "p"],
            [("a", "b"), ("a", "w " * 5000)],
            r"pairs\[1\]\[1\]: the pair with pairs\[1\]\[0\] in slot A has",
        ),
    ],
)
def test_a_bad_pair_is_named(judge, prompts, pairs, message):
    with pytest.raises(InputError, match=message):
        judge.compare_many(prompts, pairs)


# Runs


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=30), st.integers(1, 40))
def test_batches_keep_order_and_items_and_are_large_enough(drawn, characters):
    pairs = [
        (number, BenchmarkPair(PairTexts({}, "p" * size, "", ""), Place("group", "" if item == 0 else str(item)), ""))
        for number, (item, size) in enumerate(sorted(drawn), 1)
    ]
    cut = list(batches(pairs, characters))
    assert [numbered for batch in cut for numbered in batch] == pairs
    sizes = [sum(len(pair.texts.prompt) for _, pair in batch) for batch in cut]
    assert all(size >= characters for size in sizes[:-1])
    for before, after in pairwise(cut):
        item = before[-1][1].place.item
        assert not item or item != after[0][1].place.item


def scored(judge, rows, tmp_path, on_bad):
    pairs = read_benchmark_pairs(judgebench, write(tmp_path / "data.jsonl", rows), on_bad)
    out = tmp_path / "out.jsonl"
    with open_output(str(out), "-", resume=False, key="pair_number") as output:
        output.record(command="test")
        written = score_pairs(judge, pairs, output, on_bad)
    results = read(out)
    assert len(results) == written
    return results


def refuse(error):
    raise error


def test_a_judge_that_does_not_read_pairs_in_full_is_refused(tmp_path):
    judge = PairwiseJudge(replace(tiny_judge().comparer, modes=("factored",)))
    with pytest.raises(InputError, match="trained in mode 'factored' alone"):
        scored(judge, ROWS, tmp_path, refuse)


def test_the_mode_is_that_in_which_pairs_are_read_and_is_recorded(tmp_path):
    judge_folder = write_factored_judge(tmp_path / "judge")
    judge = PairwiseJudge.from_pretrained(judge_folder)
    data = write(tmp_path / "data.jsonl", ROWS)
    arguments = ("judgebench", "-m", judge_folder, "-d", data)
    for mode in ("full", "factored"):
        out = tmp_path / mode
        assert evaluate(*arguments, "-o", out, "--mode", mode).exit_code == 0
        for row, result in zip(ROWS, read(out / "results.jsonl"), strict=True):
            expected = judge.compare(row["prompt"], row["chosen"], row["rejected"], mode=mode).p
            assert result["score_chosen"] == pytest.approx(expected, abs=1e-5)
        assert json.loads((out / "summary.json").read_text())["run"].get("mode", "full") == mode
    assert read(tmp_path / "full" / "results.jsonl")[0] != read(tmp_path / "factored" / "results.jsonl")[0]
    resumed = evaluate(*arguments, "-o", tmp_path / "factored", "--resume")
    assert "mode was 'factored'" in message(resumed)
    assert "mode: expected full or factored" in message(evaluate(*arguments, "-o", tmp_path / "x", "--mode", "half"))


def test_rows_of_a_judge_that_reasons_have_what_it_wrote(tmp_path):
    def blue(content, rng):
        label = "A" if "[The Start of Assistant A's Response]\nBlue" in content else "B"
        return rng.choice([gram_r2_answer(label), "<think>\nwell"])

    options = ReasoningOptions(engine="http://nowhere", votes=8, verdict="hard")
    comparer = ReasoningComparer(ScriptedGenerator(blue), PairTemplate.load("gram-r2"), options, 64)
    data = [{**row, "reasoning": "the data's own"} for row in ROWS]
    rows = scored(PairwiseJudge(comparer), data, tmp_path, refuse)
    for row in rows:
        for name in VOTE_FIELDS:
            right, wrong, invalid = row[name]
            assert (right + invalid, wrong) == (8, 0)
        assert [len(row["judge_reasoning"]["votes"]), row["correct"]] == [16, True]
        assert row["judge_reasoning"]["for_i"] == sum(row[name][0] for name in VOTE_FIELDS)
        assert {vote["problem"] for vote in row["judge_reasoning"]["votes"]} == {None, "no verdict"}
    assert len({tuple(row[VOTE_FIELDS[0]]) for row in rows}) > 1
    assert {row["reasoning"] for row in rows} == {"the data's own"}
    results = read_results(judgebench, str(tmp_path / "out.jsonl"))
    assert {result.written_games for result in results} == {(1, 1)}


def test_rows_have_their_fields_and_the_scores_of_compare(judge, tmp_path):
    results = scored(judge, ROWS, tmp_path, refuse)
    for number, (row, result) in enumerate(zip(ROWS, results, strict=True), 1):
        answer = judge.compare(row["prompt"], row["chosen"], row["rejected"])
        assert {name: result[name] for name in row} == row
        assert result["score_chosen"] == pytest.approx(answer.p, abs=1e-5)
        assert result["score_rejected"] == 1 - result["score_chosen"]
        assert result["correct"] is (answer.p > 0.5)
        assert result["p_chosen_in_slot_a"] == pytest.approx(answer.p_ab, abs=1e-5)
        assert result["p_chosen_in_slot_b"] == pytest.approx(answer.p_ba, abs=1e-5)
        assert (result["pair_number"], result["run"]) == (number, {"command": "test"})


def test_equal_responses_are_a_tie_to_the_last_digit(judge, tmp_path):
    rows = [{**row, "chosen": f"Answer {k}.", "rejected": f"Answer {k}."} for k, row in enumerate(ROWS)]
    for result in scored(judge, rows, tmp_path, refuse):
        assert (result["score_chosen"], result["score_rejected"], result["correct"]) == (0.5, 0.5, False)
        assert result["p_chosen_in_slot_a"] + result["p_chosen_in_slot_b"] == pytest.approx(1)


def test_orders_that_cancel_are_a_tie_whatever_their_rounding(tmp_path):
    class Biased(LengthComparer):
        """Prefers slot A by the same margin in both orders."""

        @contextmanager
        def open(self, groups, *_, **__):
            logits = np.array([[margin, 0], [margin, 0]], np.float32)

            def compare(rounds):
                return {group: [preference(i, j, logits, "both") for i, j in pairs] for group, pairs in rounds.items()}

            yield SimpleNamespace(compare=compare, stats=Stats(comparisons=0, seconds=0.0))

    margin = next(m for m in np.arange(1, 2, 0.01, np.float32) if (expit(float(m)) + expit(-float(m))) / 2 > 0.5)
    for result in scored(PairwiseJudge(Biased()), ROWS, tmp_path, refuse):
        assert (result["score_chosen"], result["score_rejected"], result["correct"]) == (0.5, 0.5, False)


def test_pairs_that_cannot_be_scored_are_named_and_the_others_are_written(judge, tmp_path):
    rows = [row | {"chosen": "word " * 5000} if k in (1, 4) else row for k, row in enumerate(ROWS)]
    errors = []
    results = scored(judge, rows, tmp_path, errors.append)
    assert [result["pair_id"] for result in results] == [0, 2, 3, 5]
    assert [re.search(r"line \d+", str(error))[0] for error in errors] == ["line 2", "line 5"]
    assert "the limit is 4096 (max_position_embeddings)" in str(errors[0])


def test_pairs_that_an_engine_refuses_are_named_and_the_others_written_once_more(tmp_path):
    class Refusing(ScriptedGenerator):
        def generate(self, requests, sampling):
            for number, found in super().generate(requests, sampling):
                yield number, InputError("too long") if "word word" in requests[number].content else found

    rows = [row | {"chosen": "word " * 50} if k in (1, 4) else row for k, row in enumerate(ROWS)]
    generator, errors = Refusing(lambda content, rng: gram_r2_answer("A")), []
    options = ReasoningOptions(engine="http://nowhere", verdict="hard")
    judge = PairwiseJudge(ReasoningComparer(generator, PairTemplate.load("gram-r2"), options, 64))
    results = scored(judge, rows, tmp_path, errors.append)
    assert [result["pair_id"] for result in results] == [0, 2, 3, 5]
    assert [re.search(r"line \d+: .*", str(error))[0] for error in errors] == [
        f"line {number}: a: the pair with b in slot B: too long" for number in (2, 5)
    ]
    assert len(generator.requests) == 2 * (6 + 4)


# The command line


def evaluate(name, *arguments):
    return CliRunner().invoke(app, ["eval", name, *map(str, arguments)])


def message(run):
    assert isinstance(run.exception, InputError), run.output
    return str(run.exception)


def test_a_run_writes_results_summary_and_judgments(folder, tmp_path):
    data, out = write(tmp_path / "data.jsonl", ROWS), tmp_path / "out"
    run = evaluate("judgebench", "-m", folder, "-d", data, "-o", out)
    assert run.exit_code == 0, run.exception
    assert sorted(path.name for path in out.iterdir()) == ["judgments.jsonl", "results.jsonl", "summary.json"]
    assert "judgebench_official" in run.stdout
    assert "MISSING: 344 pairs of the published set" in run.stdout
    assert "6 pairs written" in run.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["run"]["preset"] == "auto"
    again = evaluate("score", "judgebench", out / "results.jsonl", "--json")
    assert json.loads(again.stdout) == summary
    assert evaluate("score", "judgebench", out / "results.jsonl").stdout == run.stdout


def test_rmbench_compares_nine_pairs_a_prompt(folder, tmp_path):
    rows = [{"id": 0, "domain": "chat", "prompt": "Colour?", "chosen": ["a", "b", "c"], "rejected": ["x", "y", "z"]}]
    rows += [{**rows[0], "id": 1, "chosen": ["a", "b", "long " * 5000]}]
    out = tmp_path / "out"
    run = evaluate("rmbench", "-m", folder, "-d", write(tmp_path / "d", rows), "-o", out, "--skip-bad")
    assert run.exit_code == 0, run.exception
    results = read(out / "results.jsonl")
    assert [r["matrix_id"] for r in results[:9]] == [f"{i}-{j}" for i in range(3) for j in range(3)]
    assert (results[5]["chosen"], results[5]["rejected"]) == ("b", "z")
    assert len(results) == 15  # the second prompt lacks three pairs, so it is not counted
    assert "LEFT OUT: 1 items" in run.stdout
    assert "SKIPPED: 3 rows" in run.stdout
    assert "line 2, pair 2-0: a: the pair with b in slot B has" in run.stderr
    (item,) = json.loads((out / "scores.json").read_text())
    assert item["chosen"] == ["a", "b", "c"]


def test_an_interrupted_run_goes_on_where_it_stopped(folder, tmp_path):
    data, out = write(tmp_path / "data.jsonl", ROWS), tmp_path / "out"
    arguments = ("judgebench", "-m", folder, "-d", data, "-o", out)
    assert evaluate(*arguments).exit_code == 0
    whole = (out / "results.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(lines[:2]) + lines[2][:30])  # killed in the middle of a write
    assert "is there already: go on with --resume" in message(evaluate(*arguments))
    run = evaluate(*arguments, "--resume")
    assert run.exit_code == 0, run.exception
    assert "4 pairs written" in run.stderr
    assert "2 already there" in run.stderr
    assert [r["pair_id"] for r in read(out / "results.jsonl")] == list(range(6))
    assert (out / "results.jsonl").read_text()[: len(lines[0])] == lines[0]
    # Other settings, other data; the preset has another name, and is the same.
    assert evaluate(*arguments, "--resume", "--preset", "gram").exit_code == 0
    assert "line 1: prompt_digest was" in message(evaluate(*arguments, "--resume", "--preset", "short"))
    write(tmp_path / "data.jsonl", ROWS[:5])
    assert re.search("data was .*, now it is .*: it is of another run", message(evaluate(*arguments, "--resume")))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_bad_row_is_said_before_a_model_is_loaded(tmp_path, name):
    data = write(tmp_path / "data.jsonl", [{"prompt": "p"}])
    run = evaluate(name, "-m", "./nothing", "-d", data, "-o", tmp_path / "out")
    assert "data.jsonl line 1: expected a field" in message(run)
    assert not (tmp_path / "out").exists()


def test_files_that_no_evaluation_wrote_are_never_touched(tmp_path):
    data = write(tmp_path / "data.jsonl", ROWS)
    run = evaluate("judgebench", "-m", "./nothing", "-d", data, "-o", tmp_path)
    assert "expected an empty folder or one with results.jsonl, found data.jsonl" in message(run)
    assert "expected a folder" in message(evaluate("judgebench", "-m", "./nothing", "-d", data, "-o", data))


def test_an_unknown_benchmark_is_named():
    assert "there is no benchmark 'nope': expected one of rewardbench" in message(evaluate("score", "nope", "file"))


def test_nothing_scored_is_an_error(folder, tmp_path):
    data = write(tmp_path / "data.jsonl", ROWS)
    run = evaluate("judgebench", "-m", folder, "-d", data, "-o", tmp_path / "o", "--max-length", 9, "--skip-bad")
    assert "none of its 6 pairs could be scored" in message(run)
