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
from helpers.small_training import TRAINING, run, write_checkpoint, write_pairs
from safetensors.torch import load_file, save_file

from gram_fast.errors import InputError, NumericalError
from gram_fast.training import saving
from gram_fast.training import train as training
from gram_fast.training.checkpoints import checkpoints, problem
from gram_fast.training.config import RunConfig
from gram_fast.training.output_folder import locked
from gram_fast.training.trainer import JudgeTrainer

SGD = {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
# Of six steps of an epoch: a run that ends within an epoch.
STEPS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data") / "labeled.jsonl", 24)


@pytest.fixture(scope="module")
def whole(base, labeled, tmp_path_factory):
    """A run that nothing disturbed."""
    return run("finetune", base, labeled, tmp_path_factory.mktemp("whole") / "out", **STEPS)


@pytest.fixture(params=[{}, {"lora": {"r": 4}}], ids=["full", "lora"])
def stopped(request, base, labeled, tmp_path):
    """Stops a run before its final save, with all checkpoints written; returns how to go on with it."""
    again = partial(run, "finetune", base, labeled, tmp_path / "out", **STEPS, **request.param)
    stop_at_the_save(again)
    assert sorted(checkpoints(tmp_path / "out")) == [1, 2, 3, 4]
    assert not (tmp_path / "out" / "model.safetensors").exists()
    return tmp_path / "out", partial(again, resume_from_checkpoint=True)


def interrupt(*_, **__):
    raise KeyboardInterrupt


def stop_at_the_save(function):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "staged_model", interrupt)
        with pytest.raises(KeyboardInterrupt):
            function()


def same_weights(first, second):
    a, b = load_file(first), load_file(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def names(folder):
    return {path.name for path in folder.iterdir()}


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
    assert same_weights(out / "model.safetensors", out / "checkpoint-4" / "model.safetensors")
    assert names(out) >= {"model.safetensors", "config.json", "tokenizer.json", "loss.png"}
    assert not names(out) & {".saving", ".lock"}


def test_a_run_that_was_stopped_at_its_end_trains_no_further(stopped, base, labeled, tmp_path):
    """Its last checkpoint is in the middle of an epoch; transformers alone would train a step more."""
    out, again = stopped
    options = {"lora": {"r": 4}} if (out / "checkpoint-4" / "adapter_model.safetensors").is_file() else {}
    again()
    assert sorted(checkpoints(out)) == [1, 2, 3, 4]
    undisturbed = run("finetune", base, labeled, tmp_path / "whole", **STEPS, **options)
    assert same_weights(out / "model.safetensors", undisturbed / "model.safetensors")


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
        with pytest.raises(InputError, match=rf"^cannot write .* GB free\): resume_from_checkpoint=true .*{last}"):
            run("finetune", base, labeled, tmp_path / "out", **STEPS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    monkeypatch.undo()
    assert not names(tmp_path / "out") & {".saving", "checkpoint-2" if what == "checkpoint-2" else "model.safetensors"}
    out = run("finetune", base, labeled, tmp_path / "out", **STEPS, resume_from_checkpoint=True)
    assert same_weights(out / "model.safetensors", whole / "model.safetensors")


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


# Checkpoints that are not whole.


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


def arguments_for(folder, **more):
    values = {"model_name_or_path": "m", "train_data": "d", "output_dir": str(folder), **TRAINING, **more}
    return RunConfig.parse(values, "test")[1]


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
    assert same_weights(out / "model.safetensors", undisturbed / "model.safetensors")


def test_no_whole_checkpoint_is_one_sentence(base, labeled, tmp_path):
    again = partial(run, "finetune", base, labeled, tmp_path / "out", **STEPS | {"save_only_model": True})
    stop_at_the_save(again)
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
    assert same_weights(out / "model.safetensors", resumed / "model.safetensors")


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
    assert same_weights(out / "model.safetensors", best / "model.safetensors")


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
