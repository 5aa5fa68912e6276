"""The benchmark of judges that reason: its data, what it counts, and its tables."""

import json
from itertools import islice

import pytest
from helpers.generators import ScriptedGenerator

from benchmarks.reasoning import inputs
from benchmarks.reasoning.inputs import PRESET, TESTS, make_data, rows_of_test, training_tasks, written
from benchmarks.reasoning.measures import VOTES, measure, recount
from benchmarks.reasoning.report import plot, tables
from benchmarks.reasoning.run import JUDGES
from gram_fast.generating.comparer import ReasoningComparer
from gram_fast.generating.generator import Generation
from gram_fast.generating.options import ReasoningOptions
from gram_fast.generating.verdicts import reader
from gram_fast.judge import PairwiseJudge
from gram_fast.text.prompts import PairTemplate
from gram_fast.training.small_judge.rationales import CLAIMS, rationale

TEMPLATE = PairTemplate.load(str(PRESET))


def test_tests_are_the_same_in_every_run_and_in_no_training_data():
    prompts = set()
    for test in TESTS:
        rows = rows_of_test(test, 48)
        assert rows == rows_of_test(test, 48)
        assert {row.label for row in rows} == {"A", "B"}
        prompts |= {row.prompt for row in rows_of_test(test)}
    assert prompts.isdisjoint(task.prompt for task in islice(training_tasks(7), 2_000))


def test_data_has_labels_apart_from_unlabeled_pairs(tmp_path, monkeypatch):
    for name, number in {"LABELED": 24, "UNLABELED": 36, "HELD_OUT": 12, "PRETRAINING": 48}.items():
        monkeypatch.setattr(inputs, name, number)
    make_data(tmp_path, seeds=2)
    read = {path.stem: inputs.read(path) for path in tmp_path.glob("*.jsonl")}
    assert {name: len(rows) for name, rows in read.items()} == {
        "pretrain": 48, "heldout": 12, "labeled-0": 24, "labeled-1": 24,
        "unlabeled-0": 36, "unlabeled-1": 36, "truth-0": 36, "truth-1": 36,
    }  # fmt: skip
    assert {tuple(row) for row in read["unlabeled-0"]} == {("prompt", "responses")}
    assert {row["label"] for row in read["truth-0"]} == {"A", "B"}
    assert read["labeled-0"] != read["labeled-1"]
    answer = written(read["labeled-0"][0]["rationale"], read["labeled-0"][0]["label"])
    assert "AB"[reader(TEMPLATE).read(answer).label] == read["labeled-0"][0]["label"]


@pytest.mark.parametrize("right", [1.0, 0.75, 0.0])
def test_a_judge_s_share_of_right_answers_is_what_is_counted(right):
    """It writes the generator's rationale for a share of its answers, else nothing that can be read."""
    rows = rows_of_test("seen", 48)
    by_content = {}
    for row in rows:
        for a, b in (row.responses, row.responses[::-1]):
            label = row.label if (a, b) == row.responses else "BA"["AB".index(row.label)]
            answer = written(rationale(row.task, a, b), label)
            by_content[TEMPLATE.fill(row.prompt, a, b)] = answer

    def answer(content, rng):
        return by_content[content] if rng.random() < right else "<think>\nhm"

    options = ReasoningOptions(engine="http://nowhere", votes=max(VOTES), verdict="hard")
    judge = PairwiseJudge(ReasoningComparer(ScriptedGenerator(answer), TEMPLATE, options, 64))
    found = measure(judge, rows)
    share = found["problems"].get("valid", 0) / (2 * max(VOTES) * len(rows))
    assert share == pytest.approx(right, abs=0.05)
    assert found["rationale"] == pytest.approx(share)
    assert found["claims"]["conclusion"] == pytest.approx(share)
    assert found["hard@16"] == (0.5 if right == 0 else 1.0)
    assert found["hard@1"] >= share


class InOrder:
    """Gives the verdicts "AAB" for three votes in order ab and "BBB" for three in order ba."""

    name, at_once = "in order", 8

    def generate(self, requests, sampling):
        for number, labels in enumerate(("AAB", "BBB")):
            yield number, [Generation(written("Answer: 1", label), 1, False) for label in labels]


def test_fewer_votes_are_the_first_of_the_more():
    options = ReasoningOptions(engine="http://nowhere", votes=3, verdict="hard")
    judge = PairwiseJudge(ReasoningComparer(InOrder(), TEMPLATE, options, 64))
    comparison = judge.compare_many(["q"], [("a", "b")])[0]
    # In order ba, B is the first response.
    assert recount(comparison, 1, "hard") == pytest.approx(2.5 / 3)
    assert recount(comparison, 3, "hard") == pytest.approx(5.5 / 7)


def test_tables_and_picture_have_every_judge_and_test(tmp_path):
    of_test = {f"{kind}@{votes}": 0.75 for kind in ("soft", "hard") for votes in VOTES}
    of_test |= {"rationale": 0.5, "claims": dict.fromkeys(CLAIMS, 0.9), "problems": {"valid": 3, "no verdict": 1}}
    results = [
        {"judge": judge, "seed": seed, **{test: {"accuracy": 0.6} if judge == "direct" else of_test for test in TESTS}}
        for judge in JUDGES
        for seed in range(2)
    ]
    text = tables(json.loads(json.dumps(results)))
    assert text.count("\n| ") >= 4 * len(TESTS) + 3 * len(TESTS)
    assert "| round-2 | other kinds | 0.500 ± 0.000 | 0.900 ± 0.000 | 0.250 ± 0.000 |" in text
    plot(results, tmp_path / "reasoning.png")
    assert (tmp_path / "reasoning.png").stat().st_size > 10_000
