"""Self-training with a tiny judge: its files and counts, and runs that are killed and go on to the same bytes."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from helpers.self_training import configuration, digests, run_killed, weight_differences, write_rows
from transformers import TrainingArguments

from gram_fast.errors import InputError
from gram_fast.reasoning_judge import ReasoningJudge
from gram_fast.training.self_training.config import SelfTrainConfig
from gram_fast.training.self_training.files import PART, read_json, read_lines
from gram_fast.training.self_training.judging import Judging
from gram_fast.training.self_training.report import missing_lines
from gram_fast.training.self_training.rounds import read_pairs
from gram_fast.training.self_training.run import run_rounds

STEPS = ("batch", "predicted", "kept", "proofs", "rationales", "evaluated")


def start(values):
    return run_rounds(SelfTrainConfig.parse(values, "x.yaml"), "x.yaml")


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
    """The folder of a run that nothing disturbed, its configuration and how it ended.

    Other runs have another folder under the same path, as a model's run.json names it.
    """
    folder = tmp_path_factory.mktemp("runs")
    values = configuration(made, folder / "run")
    ended = run_killed(values, [])
    assert ended.kills == 0
    (folder / "run").rename(folder / "whole")
    return folder / "whole", values, ended


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
        assert merged["seed_data"] == values["seed_data"]
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


def test_what_is_missing_in_a_round_is_said_by_reason():
    reports = [
        {"round": 0, "evaluated": {"answers": 8, "invalid": 0}},
        {
            "round": 1,
            "evaluated": {"answers": 8, "invalid": 3},
            "dropped": {"no majority": 118, "cannot be judged": 2},
            "proofs": {"unproved": {}},
            "trained_on": {"left_out": {"over cutoff_len": 1}},
        },
    ]
    assert list(missing_lines(reports)) == [
        "round 1, held-out pairs: 3 of 8 answers have no verdict",
        "round 1, dropped: 118 no majority, 2 cannot be judged",
        "round 1, left out of the training: 1 over cutoff_len",
    ]


def test_reports_count_everything(whole):
    folder, values, _ = whole
    reports, was_done = start({**values, "output_dir": str(folder)})
    assert was_done
    assert [report["round"] for report in reports] == [0, 1, 2]
    assert reports[0]["evaluated"]["pairs"] == reports[0]["evaluated"]["judged"] == 6
    for report in reports:
        runs = [run for row in rows(folder / f"round-{report['round']}", "evaluated") for run in row["runs"]]
        assert report["evaluated"]["answers"] == len(runs) == 2 * 6
        assert report["evaluated"]["invalid"] == sum(run["problem"] is not None for run in runs)
    total = 0
    for number, report in enumerate(reports[1:], start=1):
        path = folder / f"round-{number}"
        assert report["pairs"] == 8 == report["kept"] + sum(report["dropped"].values())
        assert report["kept"] == len(rows(path, "kept"))
        assert report["rationales"] == len(rows(path, "rationales"))
        assert sum(report["proofs"]["unproved"].values()) == report["kept"] - report["rationales"]
        assert report["proofs"]["written"] == 2 * report["kept"]
        total += report["rationales"]
        assert report["merged"] == {"seed_data": values["seed_data"], "rationales": total}
        left_out = {"pairs longer than cutoff_len=512": 1}
        assert report["trained_on"] == {"pairs": 24 + total, "left_out": left_out}
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


def kills_of_a_run(whole, points):
    """Checks that a run that is killed at these points ends with the files of one that nothing disturbed -> kills."""
    folder, values, _ = whole
    shutil.rmtree(values["output_dir"], ignore_errors=True)
    kills = run_killed(values, points).kills
    again = Path(values["output_dir"])
    assert digests(again) == digests(folder), weight_differences(again, folder)
    return kills


def test_a_run_that_is_killed_after_every_few_writes_ends_with_the_same_bytes(whole):
    assert kills_of_a_run(whole, [(whole[2].writes // 6, 0.0)] * 5) == 5


@pytest.mark.skipif("GRAM_FAST_KILLS" not in os.environ, reason="takes minutes: set GRAM_FAST_KILLS to some seeds")
@pytest.mark.parametrize("seed", os.environ.get("GRAM_FAST_KILLS", "0").split(","))
def test_a_run_that_is_killed_at_20_random_moments_ends_with_the_same_bytes(seed, whole):
    # On average over four fifths of the run: a start reads its models anew, and makes a chunk that was begun again.
    rng, longest = random.Random(seed), whole[2].seconds / 18
    points = [(rng.randint(1, 4), rng.uniform(0.001, longest)) for _ in range(20)]
    while points:  # once, unless the machine has become faster, so that a run ends before its last kill
        points = points[kills_of_a_run(whole, points) :]


def test_a_round_without_anything_to_train_on_is_one_sentence(values):
    less = {"rounds": 1, "seed_data": [], "unlabeled_data": values["eval_data"], "pairs_per_round": 2}
    with pytest.raises(InputError, match=r"round 1: none of its 2 pairs has a rationale.*round-1/predicted.jsonl"):
        start({**values, **less, "denoise": {"min_probability": 1.0}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs_per_round": 9}, "expected 18 pairs or more, for 2 rounds of 9, found 16"),
        ({"judge": "nowhere/at-all"}, "nowhere/at-all"),
        ({"preset": "gram"}, "judge: preset gram has no answer_prefix"),
        ({"preset": "verifier-cot"}, "judge: preset verifier-cot has no answer_prefix, which stands between"),
        ({"prove": {"max_new_tokens": 4096}}, "prove: max_new_tokens: expected fewer than 4096"),
        ({"eval_data": "unlabeled"}, "expected a labeled pair, this one has no label"),
        ({"unlabeled_data": "none.jsonl"}, "there is no file or folder 'none.jsonl'"),
        ({"seed_data": "none.jsonl"}, "there is no file or folder 'none.jsonl'"),
        ({"seed_data": "unlabeled"}, "line 1: expected a labeled pair in seed_data, this one has no label"),
        ({"base": "base", "preset": "auto"}, "base: preset gram has no answer_prefix"),
        ({"train": {"cutoff_len": 8192}}, "x.yaml: train: cutoff_len: expected at most 4096"),
        ({"train": {"metric_for_best_model": "accuracy"}}, "train: metric_for_best_model: expected loss in reason"),
        ({"train": {"save_only_model": True}}, "train: save_only_model: expected false, as a run goes on"),
    ],
)
def test_what_cannot_be_run_is_one_sentence_before_a_model_is_loaded(change, message, values, made, monkeypatch):
    monkeypatch.setattr("gram_fast.training.self_training.rounds.Round.run", None)
    there = {"unlabeled": "unlabeled.jsonl", "base": "base"}
    change = {key: str(made / there[v]) if v in ("unlabeled", "base") else v for key, v in change.items()}
    with pytest.raises(InputError, match=message):
        start({**values, **change})


def test_a_base_whose_answers_would_not_end_is_refused_before_a_model_is_loaded(values, made, tmp_path, monkeypatch):
    monkeypatch.setattr("gram_fast.training.self_training.rounds.Round.run", None)
    base = shutil.copytree(made / "judge", tmp_path / "base")
    (base / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}", "utf-8")
    with pytest.raises(InputError, match="base': expected a chat template that writes a token behind"):
        start({**values, "base": str(base)})


@pytest.mark.parametrize(
    ("name", "message"),
    [("world_size", "2 processes: expected one"), ("n_gpu", "train: 2 GPUs in one process")],
)
def test_several_devices_or_processes_are_refused_before_anything_is_written(name, message, values, monkeypatch):
    monkeypatch.setattr(TrainingArguments, name, 2)
    with pytest.raises(InputError, match=message):
        start(values)
    assert not Path(values["output_dir"]).exists()


def test_ties_are_counted_wherever_reading_ends(values, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("gram_fast.training.self_training.rounds.Round.run", lambda _: {})
    monkeypatch.setattr("gram_fast.training.self_training.run.draw_report", lambda _: b"")
    tie = {"context": "p", "response1": "a", "response2": "b", "overall_preference": 0}
    pairs = [json.loads(line) for line in Path(values["unlabeled_data"]).read_text("utf-8").splitlines()]
    values["unlabeled_data"] = str(write_rows(tmp_path / "ties.jsonl", [tie, *pairs, *pairs]))
    start(values)
    assert f"{values['unlabeled_data']}: 1 ties left out" in caplog.text


def test_a_folder_is_of_one_configuration(values, monkeypatch, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("gram_fast.training.self_training.rounds.Round.run", stop)
    with pytest.raises(InputError, match="expected 18 pairs"):
        start({**values, "pairs_per_round": 9})
    with pytest.raises(KeyboardInterrupt):  # what the mistaken start left is no other run
        start(values)
    folder = Path(values["output_dir"])
    assert sorted(path.name for path in folder.rglob("*.*")) == ["batch.jsonl"] * 2 + [
        "held-out.jsonl",
        "self-train.json",
    ]
    with pytest.raises(InputError, match=r"rounds was 2 in output_dir .*, now it is 1: expected the configuration"):
        start({**values, "rounds": 1})
    with pytest.raises(InputError, match=r"denoise was .*0.5.*, now it is .*0.7"):
        start({**values, "denoise": {"min_probability": 0.7}})
    other = tmp_path / "other"
    (other / "round-1").mkdir(parents=True)
    (other / "round-1" / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(InputError, match=r"holds round-1/notes.txt and no run of self-training"):
        start({**values, "output_dir": str(other)})
    assert (other / "round-1" / "notes.txt").read_text("utf-8") == "mine"


def test_files_of_somebody_else_with_names_of_a_run_are_left_alone(values):
    folder = Path(values["output_dir"])
    folder.mkdir()
    mine = folder / "held-out.jsonl"
    mine.write_bytes(Path(values["eval_data"]).read_bytes())
    with pytest.raises(InputError, match=r"holds held-out.jsonl and no run of self-training: expected a new or empty"):
        start({**values, "eval_data": str(mine)})
    assert mine.read_bytes() == Path(values["eval_data"]).read_bytes()


def test_a_prediction_is_the_same_to_the_last_bit_whatever_was_asked_before(whole):
    folder, values, _ = whole
    config = SelfTrainConfig.parse(values, "x.yaml")
    batch = list(read_pairs(folder / "round-1" / "batch.jsonl"))
    # The second chunk has one pair that can be judged: the smaller the pass, the more what was kept would show.
    chunks = [batch[:3], batch[3:6], batch[6:]]

    def judging():
        return Judging(config.judge, config.judge_options, config.predict.options(3), config.max_batch_tokens)

    one = judging()
    assert [one.predict(chunk) for chunk in chunks] == [judging().predict(chunk) for chunk in chunks]
