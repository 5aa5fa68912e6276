"""Training runs of tiny models, through the same functions and command as real ones."""

import json
import signal
import time

import pytest
import torch
import transformers
from accelerate.utils import DeepSpeedPlugin
from helpers.small_models import CONFIGS, tiny_tokenizer
from helpers.small_training import (
    SGD,
    assert_same,
    finish,
    launch,
    logged,
    run,
    weights,
    write_checkpoint,
    write_config,
    write_obvious_pairs,
)
from safetensors.torch import load_file

from gram_fast import PairwiseJudge
from gram_fast.errors import InputError
from gram_fast.models.tokenizer import load_tokenizer
from gram_fast.training.config import RunConfig
from gram_fast.training.train import train


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "scalar"])
def test_loss_falls(stage, base, unlabeled, tmp_path):
    data = unlabeled if stage == "pretrain" else write_obvious_pairs(tmp_path / "pairs.jsonl", 24)
    out = run(stage, base, data, tmp_path / "out", num_train_epochs=8, save_strategy="epoch")
    curve = logged(out, "loss")
    assert sum(curve[-6:]) < 0.8 * sum(curve[:6])
    assert (out / "loss.png").stat().st_size > 1000


def test_the_judge_of_a_checkpoint_is_the_one_that_was_trained(base, tmp_path):
    """Its prompt is recorded, and its verdicts are the evaluation's of the training run."""
    labeled = write_obvious_pairs(tmp_path / "pairs.jsonl", 24)
    out = run(
        "finetune", base, labeled, tmp_path / "out", num_train_epochs=5, eval_data=str(labeled), eval_strategy="epoch",
        save_strategy="epoch",
    )  # fmt: skip
    judge = PairwiseJudge.from_pretrained(out)
    assert judge.comparer.tokenizer.template.text.startswith("[Question]\n")
    accuracy = logged(out, "eval_accuracy")[-1]
    rows = [json.loads(line) for line in labeled.read_text().splitlines()]
    comparisons = [judge.compare(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    right = [p > 0.5 for c in comparisons for p in (c.p_ab, c.p_ba)]
    assert sum(right) / len(right) == pytest.approx(accuracy, abs=1.5 / len(right))
    model, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.gram_fast["labels"] == ["A", "B"]


@pytest.mark.parametrize(
    ("stage", "options"), [("pretrain", {}), ("finetune", {}), ("finetune", {"lm_weight": 0.5}), ("scalar", {})]
)
def test_one_large_batch_is_accumulated_small_ones(stage, options, base, labeled, unlabeled, tmp_path):
    """Sequences differ in length, so a mean of means would be another number."""
    data = unlabeled if stage == "pretrain" else labeled
    shapes = {"large": (8, 1), "small": (1, 8)}
    for name, (batch, steps) in shapes.items():
        run(
            stage, base, data, tmp_path / name, per_device_train_batch_size=batch, gradient_accumulation_steps=steps,
            max_steps=2, **SGD, **options,
        )  # fmt: skip
    start = load_file(base / "model.safetensors")
    after = weights(tmp_path / "large")
    moved = max((after[name] - start[name]).abs().max().item() for name in start.keys() & after.keys())
    assert moved > 1e-3
    assert_same(tmp_path / "large", tmp_path / "small", tolerance=2e-4 * moved)


def test_two_processes_are_one_with_twice_the_batch(base, labeled, tmp_path):
    """All 24 pairs in every step, so that what is compared is the loss and not the order in which data is drawn.

    The second step once more, in two new processes: as if the last checkpoint lacked a process' random state.
    """
    options = {"max_steps": 2, "lm_weight": 0.5, **SGD}
    config = write_config(
        tmp_path / "config.yaml", base, labeled, tmp_path / "two", **options, per_device_train_batch_size=12,
        save_strategy="steps", save_steps=1,
    )  # fmt: skip
    finish(launch("finetune", config, processes=2))
    run("finetune", base, labeled, tmp_path / "one", per_device_train_batch_size=24, **options)
    assert_same(tmp_path / "one", tmp_path / "two", tolerance=1e-5)
    (tmp_path / "two" / "model.safetensors").rename(tmp_path / "model.safetensors")
    (tmp_path / "two" / "checkpoint-2" / "rng_state_1.pth").unlink()
    output = finish(launch("finetune", config, "resume_from_checkpoint=true", processes=2))
    assert output.count("checkpoint-2 is not whole (it has no rng_state_1.pth)") == 1
    assert_same(tmp_path, tmp_path / "two")


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_goes_on_to_the_same_weights(base, labeled, tmp_path):
    more = {"max_steps": 12, "save_steps": 2, "logging_steps": 4}
    config = write_config(tmp_path / "config.yaml", base, labeled, tmp_path / "killed", **more)
    process = launch("finetune", config)
    while not (tmp_path / "killed" / "checkpoint-4" / "trainer_state.json").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    # What a kill in the middle of saving leaves behind.
    (tmp_path / "killed" / "checkpoint-99").mkdir()
    more["save_strategy"] = "steps"
    run("finetune", base, labeled, tmp_path / "killed", resume_from_checkpoint=True, **more)
    run("finetune", base, labeled, tmp_path / "whole", **more)
    assert_same(tmp_path / "killed", tmp_path / "whole")


def test_lora_moves_adapters_alone_and_is_merged(base, labeled, tmp_path):
    out = run("finetune", base, labeled, tmp_path / "out", max_steps=3, lora={"r": 4})
    before, after = load_file(base / "model.safetensors"), weights(out)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("proj" in name for name in changed)
    assert (out / "adapter" / "adapter_config.json").is_file()
    assert PairwiseJudge.from_pretrained(out).comparer.tokenizer.template.text.startswith("[Question]\n")


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"r": 0}, "set the training up"),
        ({"target_modules": "nope"}, "nope"),
        ({"target_modules": ["lm_head"]}, "output"),
    ],
)
def test_adapters_that_cannot_be_are_said(base, labeled, tmp_path, lora, message):
    with pytest.raises(InputError, match=message):
        run("finetune", base, labeled, tmp_path / "out", max_steps=1, lora=lora)


@pytest.mark.parametrize("stage", ["finetune", "scalar"])
def test_accuracy_counts_every_pair_of_an_uneven_last_batch(stage, base, tmp_path):
    """Of 5 pairs in batches of 4; the model knows them all."""
    data, few = write_obvious_pairs(tmp_path / "pairs.jsonl", 24), write_obvious_pairs(tmp_path / "few.jsonl", 5)
    rows = few.read_text().splitlines(keepends=True)
    wrong = {"prompt": "Question 4?", "chosen": "bad 4", "rejected": "good 4"}
    few.write_text("".join([json.dumps(wrong) + "\n", *rows[1:]]))
    out = run(
        stage, base, data, tmp_path / "out", num_train_epochs=8, eval_data=str(few), per_device_eval_batch_size=4,
        save_strategy="epoch",
    )  # fmt: skip
    assert logged(out, "eval_accuracy")[-1] == pytest.approx(0.8)


def test_bfloat16_and_gradient_checkpointing_run(base, labeled, tmp_path):
    plain = run("finetune", base, labeled, tmp_path / "plain", max_steps=2, **SGD)
    checkpointed = run("finetune", base, labeled, tmp_path / "gc", max_steps=2, gradient_checkpointing=True, **SGD)
    assert_same(plain, checkpointed, tolerance=1e-6)
    half = run("finetune", base, labeled, tmp_path / "half", max_steps=2, bf16=True, **SGD)
    assert_same(plain, half, tolerance=5e-2)


def test_a_compiled_model_is_trained_like_a_plain_one(base, labeled, tmp_path, monkeypatch):
    """In a process of its own, as transformers passes it on by the environment; without the compiler of C++."""
    more = {"max_steps": 3, "pad_to_multiple_of": 64, "pairs_together": 2, "lm_weight": 0.5, **SGD}
    plain = run("finetune", base, labeled, tmp_path / "plain", **more)
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager", **more}
    config = write_config(tmp_path / "config.yaml", base, labeled, tmp_path / "compiled", **compiled)
    monkeypatch.setenv("TORCH_LOGS", "dynamo")
    output = finish(launch("finetune", config))
    assert "torchdynamo start tracing forward" in output
    assert "gram-fast: the model is compiled during the first steps, which may take a minute" in output
    assert "UserWarning" not in output
    assert_same(plain, tmp_path / "compiled", tolerance=1e-5)


def test_long_pairs_are_left_out_and_counted(base, labeled, tmp_path, caplog):
    run("finetune", base, labeled, tmp_path / "out", max_steps=1, cutoff_len=90)
    assert "pairs longer than cutoff_len=90 left out" in caplog.text
    with pytest.raises(InputError, match=r"train_data: no pair of .* is left"):
        run("finetune", base, labeled, tmp_path / "none", max_steps=1, cutoff_len=3)


def test_deepspeed_and_the_run_agree_on_the_precision(tmp_path):
    values = {"model_name_or_path": "m", "train_data": "d", "output_dir": str(tmp_path / "out"), "use_cpu": True}
    config, arguments = RunConfig.parse(values, "test")
    # As `accelerate launch` leaves them.
    arguments.deepspeed_plugin, arguments.mixed_precision = DeepSpeedPlugin(), "bf16"
    with pytest.raises(InputError, match=r"^bf16: expected true, as DeepSpeed was launched with mixed_precision bf16"):
        train("finetune", config, arguments)


def test_an_output_folder_is_never_overwritten(base, labeled, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match=r"output_dir .* is not empty: go on with resume_from_checkpoint=true"):
        run("finetune", base, labeled, tmp_path / "out", max_steps=1)
    with pytest.raises(InputError, match=r"holds no training run to go on with"):
        run("finetune", base, labeled, tmp_path / "out", max_steps=1, resume_from_checkpoint=True)
    run("finetune", base, labeled, tmp_path / "run", max_steps=1)
    with pytest.raises(InputError, match=r"learning_rate was 0.01, now it is 0.5"):
        run("finetune", base, labeled, tmp_path / "run", max_steps=1, resume_from_checkpoint=True, learning_rate=0.5)
    with pytest.raises(InputError, match=r"adam_beta2 was 0.999, now it is 0.5"):
        run("finetune", base, labeled, tmp_path / "run", max_steps=1, resume_from_checkpoint=True, adam_beta2=0.5)
    with pytest.raises(InputError, match=r"holds a run that is finished"):
        run("finetune", base, labeled, tmp_path / "run", max_steps=1, resume_from_checkpoint=True)
    with pytest.raises(InputError, match=r"resume_from_checkpoint: '.*base.*' is no whole checkpoint"):
        run("finetune", base, labeled, tmp_path / "new", max_steps=1, resume_from_checkpoint=str(base))
    with pytest.raises(InputError, match=r"output_dir '.*thesis.txt' is no folder"):
        run("finetune", base, labeled, tmp_path / "out" / "thesis.txt", max_steps=1)


def test_unlabeled_pairs_are_no_preferences(base, unlabeled, tmp_path):
    with pytest.raises(InputError, match=r"unlabeled.jsonl line 1: finetune wants labeled pairs"):
        run("finetune", base, unlabeled, tmp_path / "out", max_steps=1)


def test_a_pair_may_not_be_longer_than_the_model_can_read(labeled, tmp_path):
    model = write_checkpoint(tmp_path / "model", max_position_embeddings=64)
    with pytest.raises(InputError, match=r"cutoff_len: expected at most 64 \(max_position_embeddings\), got 2048"):
        run("finetune", model, labeled, tmp_path / "out", max_steps=1)


def test_the_tokenizer_of_another_folder_is_trained_with_and_saved(base, labeled, tmp_path):
    other = tiny_tokenizer(vocab_size=400)
    other.save_pretrained(tmp_path / "other")
    CONFIGS["qwen3"]().save_pretrained(tmp_path / "other")
    result = run("finetune", base, labeled, tmp_path / "out", tokenizer=str(tmp_path / "other"), max_steps=1)
    assert load_tokenizer(str(result)).get_vocab() == other.get_vocab() != load_tokenizer(str(base)).get_vocab()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim": "galore_adamw"}, "cannot make the optimizer: "),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "cannot make the scheduler: .*min_lr"),
        ({"report_to": "dvclive"}, "cannot set the training up: .*dvclive"),
    ],
)
def test_what_a_setting_lacks_is_one_sentence(base, labeled, tmp_path, options, message):
    with pytest.raises(InputError, match=f"^{message}"):
        run("finetune", base, labeled, tmp_path / "out", max_steps=1, **options)
