"""Training runs of tiny models, through the same functions and command as real ones."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import transformers
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin
from helpers.small_models import CONFIGS, tiny_tokenizer
from helpers.small_training import run, write_checkpoint, write_obvious_pairs, write_pairs
from safetensors.torch import load_file

from gram_fast import PairwiseJudge
from gram_fast.errors import InputError
from gram_fast.models.tokenizer import load_tokenizer
from gram_fast.training.config import RunConfig, accelerate_configs, recipes
from gram_fast.training.train import train

SGD = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data") / "labeled.jsonl", 24)


@pytest.fixture(scope="module")
def unlabeled(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data") / "unlabeled.jsonl", 24, labeled=False)


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same(first, second, tolerance=0.0):
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def logged(folder, key):
    """All values of a key that the run logged, up to its last checkpoint."""
    state = max(folder.glob("checkpoint-*/trainer_state.json"), key=lambda p: int(p.parent.name.split("-")[1]))
    return [entry[key] for entry in json.loads(state.read_text())["log_history"] if key in entry]


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


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "scalar"])
def test_one_large_batch_is_accumulated_small_ones(stage, base, labeled, unlabeled, tmp_path):
    """Sequences differ in length, so a mean of means would be another number."""
    data = unlabeled if stage == "pretrain" else labeled
    shapes = {"large": (8, 1), "small": (1, 8)}
    for name, (batch, steps) in shapes.items():
        run(
            stage, base, data, tmp_path / name, per_device_train_batch_size=batch, gradient_accumulation_steps=steps,
            max_steps=2, **SGD,
        )  # fmt: skip
    start = load_file(base / "model.safetensors")
    after = weights(tmp_path / "large")
    moved = max((after[name] - start[name]).abs().max().item() for name in start.keys() & after.keys())
    assert moved > 1e-3
    assert_same(tmp_path / "large", tmp_path / "small", tolerance=2e-4 * moved)


def launch(*arguments, processes=1):
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    command = [sys.executable, "-m", *(launcher if processes > 1 else []), "gram_fast.cli", "train"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def write_config(path, base, data, output, **more):
    values = {
        "model_name_or_path": str(base), "train_data": str(data), "output_dir": str(output), "preset": "short",
        "use_cpu": True, "per_device_train_batch_size": 4, "learning_rate": 1e-2, **more,
    }  # fmt: skip
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()))
    return path


def test_two_processes_are_one_with_twice_the_batch(base, unlabeled, tmp_path):
    """All 24 pairs in every step, so that what is compared is the loss and not the order in which data is drawn.

    The second step once more, in two new processes: as if the last checkpoint lacked a process' random state.
    """
    options = {"max_steps": 2, **SGD}
    config = write_config(
        tmp_path / "config.yaml", base, unlabeled, tmp_path / "two", **options, per_device_train_batch_size=12,
        save_strategy="steps", save_steps=1,
    )  # fmt: skip
    finish(launch("pretrain", config, processes=2))
    run("pretrain", base, unlabeled, tmp_path / "one", per_device_train_batch_size=24, **options)
    assert_same(tmp_path / "one", tmp_path / "two", tolerance=1e-5)
    (tmp_path / "two" / "model.safetensors").rename(tmp_path / "model.safetensors")
    (tmp_path / "two" / "checkpoint-2" / "rng_state_1.pth").unlink()
    output = finish(launch("pretrain", config, "resume_from_checkpoint=true", processes=2))
    assert output.count("checkpoint-2 is not whole (it has no rng_state_1.pth)") == 1
    assert_same(tmp_path, tmp_path / "two")


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
    finish(launch("finetune", config, "resume_from_checkpoint=true"))
    whole = launch("finetune", config, f"output_dir={tmp_path / 'whole'}")
    finish(whole)
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


def test_streaming_reads_while_it_trains(base, unlabeled, tmp_path):
    out = run("pretrain", base, unlabeled, tmp_path / "out", streaming=True, max_steps=4, save_strategy="steps",
              save_steps=4)  # fmt: skip
    assert len(logged(out, "loss")) == 4


@pytest.mark.parametrize(
    "more",
    [
        {"max_steps": 13, "save_steps": 9},
        {"max_steps": 5, "save_steps": 4, "gradient_accumulation_steps": 4},
        {"max_steps": 13, "save_steps": 9, "dataloader_num_workers": 2},
    ],
    ids=["plain", "accumulation", "workers"],
)
def test_a_stream_goes_on_in_a_later_pass_to_the_same_weights(more, base, unlabeled, tmp_path):
    """A pass has 6 batches. Accumulation goes on across its end."""
    more = {**more, "streaming": True, "save_strategy": "steps"}
    whole = run("pretrain", base, unlabeled, tmp_path / "whole", **more)
    checkpoint = whole / f"checkpoint-{more['save_steps']}"
    again = run("pretrain", base, unlabeled, tmp_path / "again", resume_from_checkpoint=str(checkpoint), **more)
    assert_same(whole, again)


def test_a_stream_counts_what_it_leaves_out_once(base, tmp_path, caplog):
    data = tmp_path / "pairs.jsonl"
    long = json.dumps({"prompt": "p " * 300, "chosen": "a", "rejected": "b"})
    data.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n' * 3 + f'{{"prompt": "p"}}\n{long}\n')
    more = {"skip_bad": True, "streaming": True, "max_steps": 5, "cutoff_len": 200}
    run("finetune", base, data, tmp_path / "out", **more)
    assert "train_data: 1 bad rows left out" in caplog.text
    assert "train_data: 1 pairs longer than cutoff_len=200 left out" in caplog.text
    assert caplog.text.count("skipped: ") == 1


def test_a_stream_of_which_nothing_is_left_is_an_error(base, unlabeled, tmp_path, caplog):
    with pytest.raises(InputError, match=r"train_data: no pair of .* is left"):
        run("pretrain", base, unlabeled, tmp_path / "out", streaming=True, max_steps=2, cutoff_len=3)
    assert "train_data: 24 pairs longer than cutoff_len=3 left out" in caplog.text
    assert not (tmp_path / "out" / "model.safetensors").exists()


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


def test_long_pairs_are_left_out_and_counted(base, labeled, tmp_path, caplog):
    run("finetune", base, labeled, tmp_path / "out", max_steps=1, cutoff_len=90)
    assert "pairs longer than cutoff_len=90 left out" in caplog.text
    with pytest.raises(InputError, match=r"train_data: no pair of .* is left"):
        run("finetune", base, labeled, tmp_path / "none", max_steps=1, cutoff_len=3)


def refused(tmp_path, message, stage="finetune", **values):
    values = {"model_name_or_path": "m", "train_data": "d", "output_dir": str(tmp_path / "out")} | values
    with pytest.raises(InputError, match=message):
        RunConfig.parse({k: v for k, v in values.items() if (k, v) != ("train_data", None)}, "run.yaml")


@pytest.mark.parametrize(
    ("message", "values"),
    [
        ("run.yaml: there is no key 'leaning_rate'", {"leaning_rate": 1}),
        ("run.yaml: expected a value for train_data", {"train_data": None}),
        ("run.yaml: train_data: expected a name", {"train_data": 3}),
        ("run.yaml: eval_data: expected names of data, since standard input", {"eval_data": ["-"]}),
        ("run.yaml: cutoff_len: expected a positive integer, got 'long'", {"cutoff_len": "long"}),
        ("run.yaml: label_smoothing: expected a number", {"label_smoothing": 1.5}),
        ("run.yaml: learning_rate: expected a number, got 'fast'", {"learning_rate": "fast"}),
        ("run.yaml: streaming wants max_steps", {"streaming": True}),
        (
            "run.yaml: save_strategy: expected steps, as a stream has no end, got 'epoch'",
            {"streaming": True, "max_steps": 3, "save_strategy": "epoch"},
        ),
        ("run.yaml: max_steps: expected a number, got None", {"streaming": True, "max_steps": None}),
        ("run.yaml: push_to_hub: expected false", {"push_to_hub": True}),
        ("run.yaml: label_smoothing_factor .* expected label_smoothing", {"label_smoothing_factor": 0.1}),
        ("run.yaml: expected one of warmup_ratio and warmup_steps", {"warmup_ratio": 0.1, "warmup_steps": 3}),
        ("run.yaml: lora: there is no key 'rank'", {"lora": {"rank": 3}}),
        ("run.yaml: dtype: expected float32 or bfloat16, got 'int8'", {"dtype": "int8"}),
        ("run.yaml: lr_scheduler_type: wavy is not", {"lr_scheduler_type": "wavy"}),
        ("run.yaml: skip_bad: expected true or false", {"skip_bad": "maybe"}),
        ("run.yaml: bf16: expected true or false, got 'maybe'", {"bf16": "maybe"}),
        ("run.yaml: seed: expected a number, got 'abc'", {"seed": "abc"}),
        ("run.yaml: seed: expected an integer, got 1.5", {"seed": 1.5}),
        ("run.yaml: learning_rate: expected a number, got None", {"learning_rate": None}),
        ("run.yaml: learning_rate: expected a number above 0, got -1.0", {"learning_rate": -1}),
        ("per_device_train_batch_size: expected a number above 0, got 0", {"per_device_train_batch_size": 0}),
        ("run.yaml: eval_strategy: expected eval_data as well", {"eval_strategy": "steps"}),
        ("run.yaml: warmup_ratio: expected a number from 0 to below 1, got 5", {"warmup_ratio": 5}),
        ("run.yaml: accelerator_config: expected a section", {"accelerator_config": "abc"}),
        ("run.yaml: use_liger_kernel is set by gram_fast", {"use_liger_kernel": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_configuration_names_file_and_key(tmp_path, message, values):
    refused(tmp_path, message, **values)


def test_files_and_overrides(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "model_name_or_path: m\ntrain_data: [a, b]\nlearning_rate: 1e-5\nlora: {r: 4}\nuse_cpu: true\n"
        f"finetune:\n  output_dir: {tmp_path / 'fine'}\npretrain:\n  output_dir: {tmp_path / 'pre'}\n"
    )
    config, arguments = RunConfig.load(
        str(path), "finetune", ["lora.lora_alpha=8", "warmup_ratio=0.25", "seed=7", "save_strategy=no"]
    )
    assert (config.train_data, config.output_dir) == (["a", "b"], str(tmp_path / "fine"))
    assert (config.lora.r, config.lora.lora_alpha) == (4, 8)
    assert (arguments.learning_rate, arguments.warmup_steps, arguments.seed) == (1e-5, 0.25, 7)
    assert arguments.save_strategy == "no"
    assert RunConfig.load(str(path), "pretrain")[0].output_dir == str(tmp_path / "pre")
    for override in ("seed", "=3", "learning_rate.x=3", "seed=[1"):
        with pytest.raises(InputError, match=r"seed|=3|learning_rate"):
            RunConfig.load(str(path), "finetune", [override])
    for text, message in (("a: [", "expected YAML"), ("- a", "expected keys"), ("finetune: 3", "expected a section")):
        path.write_text(text)
        with pytest.raises(InputError, match=rf"run.yaml: .*{message}"):
            RunConfig.load(str(path), "finetune")
    with pytest.raises(InputError, match=r"no configuration file or recipe 'qwen4': recipes are llama3.1-8b"):
        RunConfig.load("qwen4", "finetune")


@pytest.mark.parametrize("name", sorted(recipes()))
def test_recipes_carry_grams_settings(name, tmp_path):
    for stage, rate, epochs, batch in (("pretrain", 1e-5, 1, 32), ("finetune", 2e-5, 2, 8)):
        config, arguments = RunConfig.load(name, stage, ["use_cpu=true"])
        if name == "small":
            continue
        assert (arguments.learning_rate, arguments.num_train_epochs) == (rate, epochs)
        assert arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps == batch
        assert (config.cutoff_len, config.label_smoothing, arguments.warmup_steps) == (2048, 0.1, 0.1)
        assert arguments.lr_scheduler_type == "cosine"
        assert arguments.bf16


# Kind, ZeRO stage, and where optimizer and parameters are kept.
ACCELERATE = {
    "one_gpu": ("NO",),
    "fsdp2": ("FSDP",),
    "zero2": ("DEEPSPEED", 2, "none", "none"),
    "zero2_offload": ("DEEPSPEED", 2, "cpu", "none"),
    "zero3": ("DEEPSPEED", 3, "none", "none"),
    "zero3_offload": ("DEEPSPEED", 3, "cpu", "cpu"),
}


@pytest.mark.parametrize("path", accelerate_configs(), ids=lambda path: path.stem)
def test_accelerate_reads_the_shipped_configurations(path):
    config = load_config_from_file(str(path))
    kind, *zero = ACCELERATE[path.stem]
    assert config.distributed_type == kind
    assert config.mixed_precision == "bf16"
    if zero:
        section = DeepSpeedPlugin(**config.deepspeed_config).deepspeed_config["zero_optimization"]
        places = [section[key]["device"] for key in ("offload_optimizer", "offload_param")]
        assert [section["stage"], *places] == zero
        assert section["stage3_gather_16bit_weights_on_model_save"] == (section["stage"] == 3)


def test_deepspeed_and_the_run_agree_on_the_precision(tmp_path):
    values = {"model_name_or_path": "m", "train_data": "d", "output_dir": str(tmp_path / "out"), "use_cpu": True}
    config, arguments = RunConfig.parse(values, "test")
    # As `accelerate launch` leaves them.
    arguments.deepspeed_plugin, arguments.mixed_precision = DeepSpeedPlugin(), "bf16"
    with pytest.raises(InputError, match=r"^bf16: expected true, as DeepSpeed was launched with mixed_precision bf16"):
        train("finetune", config, arguments)


def test_every_accelerate_configuration_ships():
    assert [path.stem for path in accelerate_configs()] == sorted(ACCELERATE)


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
