"""benchmarks/training.py: judges of both kinds are tested on all three tests, and their results make tables."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import transformers
from helpers.small_models import CONFIGS, write_judge

from benchmarks import training
from benchmarks.training import Trial
from gram_fast.training.small_judge.make import make_data

pytestmark = pytest.mark.usefixtures("one_thread")


def test_trained_models_are_tested_once_and_tabulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "TEST_ROWS", 5)
    make_data(tmp_path / "data", 0, 0)
    trials = [Trial(method, 100, 0.1, 0) for method in ("stage 2 alone", "scalar head")]
    judge, scalar = (write_judge(tmp_path / trial.name) for trial in trials)
    config = CONFIGS["qwen3"](num_labels=1, vocab_size=600, pad_token_id=0, max_position_embeddings=4096)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(scalar)
    assert judge != scalar
    results = [training.run(tmp_path, trial) for trial in trials]
    for result in results:
        for test in training.TESTS:
            # Of five or six rows.
            assert result[test]["accuracy"] * 60 == pytest.approx(round(result[test]["accuracy"] * 60))
            assert 0 <= result[test]["calibration_error"] <= 1
    assert [training.run(tmp_path, trial) for trial in trials] == results
    monkeypatch.setattr(training, "EPOCHS", {100: 20})
    monkeypatch.setattr(training, "METHODS", ("stage 2 alone", "scalar head"))
    monkeypatch.setattr(training, "SMOOTHING", ())
    lines = training.tables(results).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:5]] == list(training.TESTS.values())
    assert f"{results[0]['worded']['accuracy']:.3f}" in lines[3]
    training.plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    found = training.measure(np.array([0.9, 0.9, 0.9, 0.1, 0.55, 0.45]))
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["calibration_error"] == pytest.approx((4 * 0.15 + 2 * 0.05) / 6)


def test_every_trial_is_listed_once() -> None:
    trials = training.trials(2)
    assert len(set(trials)) == len(trials) == 2 * (len(training.METHODS) * len(training.EPOCHS) + 3)


def test_trials_that_run_at_once_have_configurations_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(training.subprocess, "run", run)
    trials = training.trials(3)
    for trial in trials:
        training.train("finetune", tmp_path / trial.name)
    written = {command[-1]: Path(command[-1]).read_text() for command in commands}
    assert len(written) == len(set(written.values())) == len(trials)
