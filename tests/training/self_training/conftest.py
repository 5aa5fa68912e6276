"""A tiny judge that reasons and a tiny prover, trained until they write the right forms, and data, made once."""

import pytest
from helpers.self_training import PRESET, configuration, label, pair, write_rows
from helpers.small_training import run, write_checkpoint

STEPS = {"max_steps": 50, "learning_rate": 1e-2, "per_device_train_batch_size": 8, "lr_scheduler_type": "constant"}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with preset.txt, data, and the checkpoints base, judge and prover."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "preset.txt").write_text(PRESET, "utf-8")
    seeds = [pair(n, label=label(n), rationale=f"{label(n)} is good.") for n in range(24)]
    data = write_rows(folder / "seed.jsonl", seeds)
    # Over cutoff_len of the rounds.
    write_rows(folder / "long.jsonl", [pair(24, label="B", rationale="B is good. " * 200)])
    base = write_checkpoint(folder / "base")
    for stage, name in (("reason", "judge"), ("prove", "prover")):
        run(stage, base, data, folder / name, preset=str(folder / "preset.txt"), **STEPS)
    # A third has labels, one of them wrong, one pair has equal responses, and one is too long for the model.
    unlabeled = [pair(n, **({"label": label(n)} if n % 3 == 0 else {})) for n in range(100, 116)]
    unlabeled[2]["label"] = "B" if label(102) == "A" else "A"
    unlabeled[4]["responses"] = ["good 104", "good 104"]
    unlabeled[5]["prompt"] = "Why? " * 3000
    write_rows(folder / "unlabeled.jsonl", unlabeled)
    held_out = [{"prompt": f"Question {n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(200, 206)]
    write_rows(folder / "held-out.jsonl", held_out)
    return folder


@pytest.fixture
def values(made, tmp_path):
    return configuration(made, tmp_path / "run")
