"""Checkpoints of runs that ended before their time: which are whole, and what a run goes on from."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.small_training import (
    STEPS,
    arguments_for,
    assert_same,
    names,
    run,
    stop_at_the_save,
    write_checkpoint,
)
from safetensors.torch import load_file, save_file

from gram_fast.errors import InputError
from gram_fast.training.checkpoints import checkpoints, how_to_go_on, problem


@pytest.fixture(params=[{}, {"lora": {"r": 4}}], ids=["full", "lora"])
def stopped(request, base, labeled, tmp_path):
    """Stops a run before its final save, with all checkpoints written; returns how to go on with it."""
    again = partial(run, "finetune", base, labeled, tmp_path / "out", **STEPS, **request.param)
    stop_at_the_save(again)
    assert sorted(checkpoints(tmp_path / "out")) == [1, 2, 3, 4]
    assert not (tmp_path / "out" / "model.safetensors").exists()
    return tmp_path / "out", partial(again, resume_from_checkpoint=True)


def test_a_run_that_was_stopped_at_its_end_trains_no_further(stopped, base, labeled, tmp_path):
    """Its last checkpoint is in the middle of an epoch; transformers alone would train a step more."""
    out, again = stopped
    options = {"lora": {"r": 4}} if (out / "checkpoint-4" / "adapter_model.safetensors").is_file() else {}
    again()
    assert sorted(checkpoints(out)) == [1, 2, 3, 4]
    undisturbed = run("finetune", base, labeled, tmp_path / "whole", **STEPS, **options)
    assert_same(out, undisturbed)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BREAKAGES = {
    "no optimizer": (lambda c: (c / "optimizer.pt").unlink(), "it has no optimizer"),
    "no scheduler": (lambda c: (c / "scheduler.pt").unlink(), "it has no scheduler.pt"),
    "no weights": (lambda c: (c / "model.safetensors").unlink(), "it has no weights"),
    "no random state": (lambda c: (c / "rng_state.pth").unlink(), "it has no rng_state.pth"),
    "no state": (lambda c: (c / "trainer_state.json").unlink(), "it has no trainer_state.json"),
    "cut weights": (lambda c: cut(c / "model.safetensors"), "model.safetensors is cut or broken"),
    "cut optimizer": (lambda c: cut(c / "optimizer.pt"), "optimizer.pt is cut or broken"),
    "cut scheduler": (lambda c: cut(c / "scheduler.pt"), "scheduler.pt is cut or broken"),
    "cut random state": (lambda c: cut(c / "rng_state.pth"), "rng_state.pth is cut or broken"),
    "cut state": (lambda c: cut(c / "trainer_state.json"), "trainer_state.json is cut or broken"),
    "a list": (lambda c: (c / "trainer_state.json").write_text("[]"), "expected an object with global_step"),
    "empty weights": (lambda c: (c / "model.safetensors").write_bytes(b""), "model.safetensors is cut or broken"),
    "nothing": (lambda c: [path.unlink() for path in c.iterdir()], "it is empty"),
    "no shard": (
        lambda c: (
            (c / "model.safetensors").rename(c / "x.safetensors")
            and (c / "model.safetensors.index.json").write_text('{"weight_map": {"w": "y.safetensors"}}')
        ),
        "it names y.safetensors",
    ),
    "an index that is a list": (
        lambda c: (c / "model.safetensors.index.json").write_text("[]"),
        "model.safetensors.index.json is cut or broken: expected an object with weight_map",
    ),
    "garbage": (lambda c: (c / "optimizer.pt").write_bytes(b"PK" * 5000), "optimizer.pt is cut or broken"),
    "no fsdp weights": (lambda c: (c / "optimizer.pt").rename(c / "optimizer.bin"), "expected pytorch_model_fsdp"),
    "no deepspeed states": (lambda c: (c / "latest").write_text("global_step4"), "it has no global_step4/*_states.pt"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_what_is_not_whole_is_said(whole, tmp_path, breakage):
    checkpoint = shutil.copytree(whole / "checkpoint-4", tmp_path / "checkpoint-4")
    arguments = arguments_for(tmp_path)
    assert problem(checkpoint, arguments) is None
    damage, reason = BREAKAGES[breakage]
    damage(checkpoint)
    assert reason in problem(checkpoint, arguments)


def test_the_newest_whole_checkpoint_is_gone_on_from(stopped, base, labeled, tmp_path, caplog):
    out, again = stopped
    lora = (out / "checkpoint-4" / "adapter_model.safetensors").is_file()
    (out / "checkpoint-4" / "optimizer.pt").unlink()
    cut(out / "checkpoint-3" / ("adapter_model.safetensors" if lora else "model.safetensors"))
    again()
    assert "checkpoint-4 is not whole (it has no optimizer" in caplog.text
    assert "model.safetensors is cut or broken" in caplog.text
    assert "the run goes on from checkpoint-2" in caplog.text
    assert names(out) >= {"broken-checkpoint-3", "broken-checkpoint-4", "checkpoint-3", "checkpoint-4"}
    options = {"lora": {"r": 4}} if lora else {}
    undisturbed = run("finetune", base, labeled, tmp_path / "whole", **STEPS, **options)
    assert_same(out, undisturbed)


def test_no_whole_checkpoint_is_one_sentence(base, labeled, tmp_path):
    again = partial(run, "finetune", base, labeled, tmp_path / "out", **STEPS | {"save_only_model": True})
    stop_at_the_save(again)
    assert how_to_go_on(tmp_path / "out").startswith("it cannot be resumed, as save_only_model left the optimizer out")
    with pytest.raises(InputError, match=r"has no whole checkpoint to go on from: checkpoint-4 \(it has no optimizer"):
        again(resume_from_checkpoint=True)
    with pytest.raises(InputError, match=r"checkpoint-4' is no whole checkpoint of a run: it has no optimizer"):
        again(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))


def drop_weight(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_weight, r"cannot resume from .*checkpoint-4: the checkpoint lacks 'model.norm.weight' and 0 more"),
        (lambda c: torch.save({}, c / "optimizer.pt"), r"cannot resume from .*checkpoint-4: "),
        (lambda c: torch.save([1], c / "scheduler.pt"), r"cannot resume from .*checkpoint-4: "),
    ],
    ids=["weights", "optimizer", "scheduler"],
)
def test_a_checkpoint_of_another_model_is_one_sentence(whole, base, labeled, tmp_path, damage, message):
    checkpoint = shutil.copytree(whole / "checkpoint-4", tmp_path / "checkpoint-4")
    damage(checkpoint)
    with pytest.raises(InputError, match=message):
        run("finetune", base, labeled, tmp_path / "out", **STEPS, resume_from_checkpoint=str(checkpoint))


def test_a_tied_model_is_resumed(labeled, tmp_path):
    """Its checkpoint holds the weight of both embeddings once."""
    tied = write_checkpoint(tmp_path / "tied", tie_word_embeddings=True)
    out = run("finetune", tied, labeled, tmp_path / "out", **STEPS)
    resumed = run("finetune", tied, labeled, tmp_path / "on", **STEPS, resume_from_checkpoint=str(out / "checkpoint-2"))
    assert_same(out, resumed)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", b"\xff\xfe"])
def test_a_broken_run_file_is_one_sentence(base, labeled, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"cannot read the settings of the run in .*run.json: "):
        run("finetune", base, labeled, tmp_path / "out", max_steps=1, resume_from_checkpoint=True)


def test_kept_are_the_newest_and_the_best(base, labeled, tmp_path):
    """Checkpoints get their names after transformers has written them; its own bookkeeping has to know the names."""
    out = run(
        "finetune", base, labeled, tmp_path / "out", **STEPS, save_total_limit=2, eval_data=str(labeled),
        eval_strategy="steps", eval_steps=1, load_best_model_at_end=True, metric_for_best_model="loss",
    )  # fmt: skip
    state = json.loads((out / "checkpoint-4" / "trainer_state.json").read_text())
    best = Path(state["best_model_checkpoint"])
    assert best == out / f"checkpoint-{state['best_global_step']}"
    assert best.is_dir()
    assert len(checkpoints(out)) == 2
    assert_same(out, best)


def test_a_best_checkpoint_that_was_cut_is_one_sentence_and_the_run_ends_without_it(base, labeled, tmp_path):
    again = partial(
        run, "finetune", base, labeled, tmp_path / "out", **STEPS, eval_data=str(labeled), eval_strategy="steps",
        eval_steps=1, load_best_model_at_end=True, greater_is_better=True, learning_rate=1e-3,
    )  # fmt: skip
    stop_at_the_save(again)
    state = json.loads((tmp_path / "out" / "checkpoint-4" / "trainer_state.json").read_text())
    best = Path(state["best_model_checkpoint"])
    assert best.name == "checkpoint-1"
    cut(best / "model.safetensors")
    with pytest.raises(InputError, match=r"^cannot load the best checkpoint .*checkpoint-1 \(moved away, resume_from_"):
        again(resume_from_checkpoint=True)
    best.rename(tmp_path / "away")
    out = again(resume_from_checkpoint=True)
    assert_same(out, out / "checkpoint-4")


def test_the_run_of_another_version_is_named(base, labeled, tmp_path):
    """Its settings lack a key that this version has."""
    again = partial(run, "finetune", base, labeled, tmp_path / "out", **STEPS)
    stop_at_the_save(again)
    path = tmp_path / "out" / "run.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "tokenizer"}))
    with pytest.raises(
        InputError, match=r"holds a run of another version of .*, which had no key 'tokenizer': expected"
    ):
        again(resume_from_checkpoint=True)


def test_settings_that_change_what_is_trained_are_compared(base, labeled, tmp_path):
    """Reading ahead changes nothing; leaving out the last batch does."""
    again = partial(run, "finetune", base, labeled, tmp_path / "out", **STEPS)
    stop_at_the_save(again)
    with pytest.raises(InputError, match=r"dataloader_drop_last was False, now it is True"):
        again(resume_from_checkpoint=True, dataloader_drop_last=True)
    again(resume_from_checkpoint=True, dataloader_num_workers=1, dataloader_prefetch_factor=2, logging_steps=2)
