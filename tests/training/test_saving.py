"""Runs that end before their time, and what they leave on the disk: small models through the same functions."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from accelerate import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from helpers.small_training import (
    STEPS,
    TRAINING,
    arguments_for,
    assert_same,
    interrupt,
    names,
    run,
)
from safetensors.torch import load_file, save_file

from gram_fast.errors import InputError, NumericalError
from gram_fast.training import saving
from gram_fast.training.checkpoints import checkpoints
from gram_fast.training.output_folder import locked
from gram_fast.training.trainer import JudgeTrainer

SGD = {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}


# Losses and weights that are not finite.


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_loss_that_is_not_finite_stops_the_run(base, labeled, tmp_path, accumulated):
    """The weights of step 1 are large and finite, step 2 overflows in its first batch."""
    with pytest.raises(NumericalError, match=r"the loss of step 2 is (nan|inf), .*lower learning_rate.*checkpoint-1"):
        run(
            "finetune", base, labeled, tmp_path / "out", **STEPS, **SGD, learning_rate=1e25,
            per_device_train_batch_size=2, gradient_accumulation_steps=accumulated,
        )  # fmt: skip
    assert names(tmp_path / "out") == {"run.json", "checkpoint-1"}
    kept = load_file(tmp_path / "out" / "checkpoint-1" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())


@pytest.mark.parametrize(("strategy", "what"), [("steps", "checkpoint-1"), ("no", "the trained model")])
def test_weights_that_are_not_finite_are_never_saved(base, labeled, tmp_path, strategy, what):
    """The loss of the one step is finite, its update is not."""
    with pytest.raises(NumericalError, match=rf"{what} is not saved: the weight 'model\..*' is not finite"):
        run("finetune", base, labeled, tmp_path / "out", **SGD, learning_rate=1e38, weight_decay=1e38,
            max_steps=1, save_strategy=strategy, save_steps=1)  # fmt: skip
    assert names(tmp_path / "out") == {"run.json"}


def test_a_base_that_is_not_finite_is_named(base, labeled, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    message = r"the loss of step 1 is nan: the weight 'model.norm.weight' is not finite in the checkpoint"
    with pytest.raises(NumericalError, match=message):
        run("finetune", tmp_path / "base", labeled, tmp_path / "out", max_steps=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_element_is_found_by_name(dtype, value):
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2)).to(dtype)
    model.register_parameter("none", torch.nn.Parameter(torch.empty(0)))
    model.register_parameter("quantized", torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False))
    assert saving.weight_not_finite(model) is None
    model[1].weight.data[1, 2] = value
    assert saving.weight_not_finite(model) == "1.weight"


# The final save.


def test_a_save_killed_at_the_tokenizer_is_made_again(base, labeled, tmp_path):
    values = {"model_name_or_path": str(base), "train_data": str(labeled), "output_dir": str(tmp_path / "out"),
              "preset": "short", **TRAINING, **STEPS}  # fmt: skip
    kill = (
        "import os, signal, sys, json, transformers\n"
        "from gram_fast.training.config import RunConfig\n"
        "from gram_fast.training.train import train\n"
        "save = transformers.PreTrainedTokenizerBase.save_pretrained\n"
        "def killed(self, folder, **more):\n"
        "    if os.path.basename(folder) == 'model': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return save(self, folder, **more)\n"
        "transformers.PreTrainedTokenizerBase.save_pretrained = killed\n"
        "train('finetune', *RunConfig.parse(json.loads(sys.argv[1]), 'test'))\n"
    )
    process = subprocess.run([sys.executable, "-c", kill, json.dumps(values)], capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not names(tmp_path / "out") & {"model.safetensors", "config.json", "tokenizer.json"}
    assert (tmp_path / "out" / ".saving" / "model" / "model.safetensors").is_file()

    out = run("finetune", base, labeled, tmp_path / "out", **STEPS, resume_from_checkpoint=True)
    assert_same(out, out / "checkpoint-4")
    assert names(out) >= {"model.safetensors", "config.json", "tokenizer.json", "loss.png"}
    assert not names(out) & {".saving", ".lock"}


@pytest.mark.parametrize(
    ("what", "share"),
    [("checkpoint-2", 0.5), ("checkpoint-2", 1.5), ("model", 0.5)],
    ids=["weights of a checkpoint", "its optimizer", "the trained model"],
)
def test_a_full_disk_is_one_sentence_and_the_run_goes_on(base, labeled, tmp_path, monkeypatch, whole, what, share):
    """The system's own limit of a file's size, which libraries meet like a disk's end."""
    size = int(share * (base / "model.safetensors").stat().st_size)
    limits, save_model = resource.getrlimit(resource.RLIMIT_FSIZE), JudgeTrainer.save_model

    def full(self, output_dir=None, _internal_call=False):
        if Path(output_dir).name == what:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        save_model(self, output_dir, _internal_call)

    monkeypatch.setattr(JudgeTrainer, "save_model", full)
    last = "checkpoint-1" if what == "checkpoint-2" else "checkpoint-4"
    try:
        with pytest.raises(InputError, match=rf"^cannot write [^\[]* GB free\): resume_from_checkpoint=true .*{last}"):
            run("finetune", base, labeled, tmp_path / "out", **STEPS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    monkeypatch.undo()
    assert not names(tmp_path / "out") & {".saving", "checkpoint-2" if what == "checkpoint-2" else "model.safetensors"}
    out = run("finetune", base, labeled, tmp_path / "out", **STEPS, resume_from_checkpoint=True)
    assert_same(out, whole)


# What a save needs, before the first step.


@pytest.mark.parametrize("options", [{}, {"lora": {"r": 4}}], ids=["full", "lora"])
def test_an_invalid_generation_config_costs_no_training(base, labeled, tmp_path, caplog, options):
    shutil.copytree(base, tmp_path / "base")
    invalid = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 7, "pad_token_id": -1}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(invalid))
    out = run("finetune", tmp_path / "base", labeled, tmp_path / "out", max_steps=1, **options)
    assert "generation_config.json is invalid: only its token ids are kept, " in caplog.text
    assert "temperature, top_p left out" in caplog.text
    saved = json.loads((out / "generation_config.json").read_text())
    assert 7 in torch.tensor(saved["eos_token_id"]).view(-1)  # the Trainer may add the tokenizer's
    assert "temperature" not in saved


@pytest.mark.parametrize("broken", [transformers.PreTrainedTokenizerBase, transformers.PreTrainedConfig])
def test_what_cannot_be_saved_is_said_before_the_first_step(base, labeled, tmp_path, monkeypatch, broken):
    def refuse(*_, **__):
        raise ValueError("this cannot be written")

    monkeypatch.setattr(broken, "save_pretrained", refuse)
    monkeypatch.setattr(JudgeTrainer, "training_step", interrupt)
    with pytest.raises(InputError, match=r"the trained model could not be saved into .*out: this cannot be written"):
        run("finetune", base, labeled, tmp_path / "out", max_steps=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("plugin", "options", "message"),
    [
        ("fsdp_plugin", {"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT"}, None),
        (
            "fsdp_plugin",
            {"fsdp_version": 2, "state_dict_type": "SHARDED_STATE_DICT"},
            "expected FULL_STATE_DICT, got SH",
        ),
        ("deepspeed_plugin", {"zero_stage": 3, "zero3_save_16bit_model": True}, None),
        ("deepspeed_plugin", {"zero_stage": 3, "zero3_save_16bit_model": False}, "zero3_save_16bit_model: expected tr"),
        ("deepspeed_plugin", {"zero_stage": 2}, None),
    ],
)
def test_divided_weights_are_put_together_or_refused(plugin, options, message):
    """accelerate's own settings, without their processes: transformers would end such a run without a model."""
    kind = FullyShardedDataParallelPlugin if plugin == "fsdp_plugin" else DeepSpeedPlugin
    trainer = SimpleNamespace(accelerator=SimpleNamespace(state=SimpleNamespace(**{plugin: kind(**options)})))
    with pytest.raises(InputError, match=message) if message else nullcontext():
        JudgeTrainer.check_writes_whole_weights(trainer)


def test_free_disk_is_compared_with_the_weights(base, labeled, tmp_path, monkeypatch):
    free = (base / "model.safetensors").stat().st_size * 3 // 2
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(free, 0, free))
    with pytest.raises(InputError, match=r"output_dir .*: expected at least .* of free disk for the weights, got"):
        run("finetune", base, labeled, tmp_path / "out", **STEPS)
    run("finetune", base, labeled, tmp_path / "out", max_steps=1)  # without checkpoints they fit


# Runs beside each other, and interruptions.


def test_one_run_at_a_time(base, labeled, tmp_path):
    with locked(tmp_path / "out", arguments_for(tmp_path / "out")):
        with pytest.raises(InputError, match=r"another training run is writing into output_dir '.*out'"):
            run("finetune", base, labeled, tmp_path / "out", max_steps=1)
        assert (tmp_path / "out").is_dir()
    assert not (tmp_path / "out").exists()
    assert ".lock" not in names(run("finetune", base, labeled, tmp_path / "out", max_steps=1))


def test_an_interruption_says_how_to_go_on(base, labeled, tmp_path):
    values = {"model_name_or_path": str(base), "train_data": str(labeled), "output_dir": str(tmp_path / "out"),
              "preset": "short", **TRAINING, **STEPS, "max_steps": 2000}  # fmt: skip
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    # A shell starts what runs in its background with interrupts ignored, and a process hands that on.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    command = [sys.executable, "-m", "gram_fast.cli", "train", "finetune", str(tmp_path / "run.yaml")]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=heed, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        while not (tmp_path / "out" / "checkpoint-1").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        said = process.stderr.read()
    last = max(checkpoints(tmp_path / "out"))
    assert f"gram-fast: interrupted: resume_from_checkpoint=true goes on from checkpoint-{last}\n" in said
    assert "Traceback" not in said
    assert "--resume" not in said
