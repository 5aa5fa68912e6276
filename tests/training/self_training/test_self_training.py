"""Self-training with a tiny judge: its files and counts, and runs that are killed and go on to the same bytes."""

import json
import os
import random
from pathlib import Path

import pytest
from helpers.self_training import configuration, digests, run_killed

from gram_fast.reasoning_judge import ReasoningJudge
from gram_fast.training.self_training.config import SelfTrainConfig
from gram_fast.training.self_training.files import PART, read_json, read_lines
from gram_fast.training.self_training.run import run_rounds

STEPS = ("batch", "predicted", "kept", "proofs", "rationales", "evaluated")


def start(values):
    return run_rounds(SelfTrainConfig.parse(values, "x.yaml"), "x.yaml")


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
    """The folder of a run that nothing disturbed, its configuration and how often it wrote to the disk.

    Other runs have another folder under the same path, as a model's run.json names it.
    """
    folder = tmp_path_factory.mktemp("runs")
    values = configuration(made, folder / "run")
    kills, writes = run_killed(values, [])
    assert kills == 0
    (folder / "run").rename(folder / "whole")
    return folder / "whole", values, writes


def rows(folder, name):
    return list(read_lines(folder / f"{name}.jsonl"))


def test_every_step_is_a_file(whole):
    folder, values, _ = whole
    for number in (1, 2):
        path = folder / f"round-{number}"
        batch, predicted, kept, proofs, rationales, evaluated = (rows(path, name) for name in STEPS)
        assert (
            [row["id"] for row in batch]
            == [row["id"] for row in predicted]
            == list(range(1, 9) if number == 1 else range(9, 17))
        )
        ids = [row["id"] for row in kept]
        assert ids == [row["id"] for row in proofs]
        assert ids == sorted(set(ids))
        assert rationales == [row for row in proofs if row["rationale"] is not None]
        assert rationales
        assert len(evaluated) == 6
        assert all(len(row["runs"]) in (0, 4) for row in predicted)
        merged = read_json(path / "merged.json")
        assert merged["seed_data"] == [values["seed_data"]]
        assert merged["rationales"] == [f"round-{n}/rationales.jsonl" for n in range(1, number + 1)]
        assert not list((path / "model").glob("checkpoint-*"))
    assert not [path for path in folder.rglob("*") if path.suffix == PART or path.name in (".lock", ".saving")]
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")


def test_pairs_are_shown_in_both_orders_and_labels_move_with_them(whole, made):
    folder, _, _ = whole
    source = [json.loads(line) for line in (made / "unlabeled.jsonl").read_text("utf-8").splitlines()]
    batch = [*rows(folder / "round-1", "batch"), *rows(folder / "round-2", "batch")]
    swapped = 0
    for row, before in zip(batch, source, strict=True):
        same = row["responses"] == before["responses"]
        assert same or row["responses"] == before["responses"][::-1]
        own = before.get("label")
        assert row.get("label") == (own if same else {"A": "B", "B": "A", None: None}[own])
        swapped += not same
    assert 0 < swapped < len(batch)


def test_reports_count_everything(whole):
    folder, values, _ = whole
    reports, was_done = start({**values, "output_dir": str(folder)})
    assert was_done
    assert [report["round"] for report in reports] == [0, 1, 2]
    assert reports[0]["evaluated"]["pairs"] == reports[0]["evaluated"]["judged"] == 6
    total = 0
    for number, report in enumerate(reports[1:], start=1):
        path = folder / f"round-{number}"
        assert report["pairs"] == 8 == report["kept"] + sum(report["dropped"].values())
        assert report["kept"] == len(rows(path, "kept"))
        assert report["rationales"] == len(rows(path, "rationales"))
        assert sum(report["proofs"]["unproved"].values()) == report["kept"] - report["rationales"]
        assert report["proofs"]["written"] == 2 * report["kept"]
        total += report["rationales"]
        assert report["trained_on"]["rationales"] == total
        agreement = report["agreement"]
        assert agreement["share"] == agreement["agree"] / agreement["labeled"]
    assert reports[1]["dropped"]["cannot be judged"] == 2
    errors = {row["id"]: row["error"] for row in rows(folder / "round-1", "predicted") if "error" in row}
    assert errors[5] == "the two responses are equal"
    assert "row 6" in errors[6]
    assert set(errors) == {5, 6}


def test_the_judge_of_the_last_round_is_a_judge(whole):
    folder, _, _ = whole
    judge = ReasoningJudge.from_pretrained(folder / "round-2" / "model", max_new_tokens=40, device="cpu")
    assert len(judge.compare("Question 1?", "good 1", "bad 1").reasoning.votes) == 2


def check_same(values, whole, kills, points):
    folder, _, _ = whole
    found, _ = run_killed(values, points)
    assert found == kills
    assert digests(Path(values["output_dir"])) == digests(folder)


def test_a_run_that_is_killed_after_every_few_writes_ends_with_the_same_bytes(whole):
    _, values, writes = whole
    points = [(writes // 6, 0.0)] * 5
    check_same(values, whole, 5, points)


@pytest.mark.skipif(not os.environ.get("GRAM_FAST_KILLS"), reason="takes minutes: set GRAM_FAST_KILLS to a seed")
def test_a_run_that_is_killed_at_20_random_moments_ends_with_the_same_bytes(whole):
    _, values, writes = whole
    rng = random.Random(int(os.environ["GRAM_FAST_KILLS"]))
    points = [(rng.randint(1, max(1, writes // 16)), rng.uniform(0.001, 0.25)) for _ in range(20)]
    check_same(values, whole, 20, points)
