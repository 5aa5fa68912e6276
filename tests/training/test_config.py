"""Configurations of training: files, recipes, overrides, and what is said of wrong ones."""

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin

from gram_fast.errors import InputError
from gram_fast.training.config import RunConfig, accelerate_configs, recipes
from gram_fast.training.train import train


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
        ("run.yaml: lm_weight: expected a number from 0 on, got -1", {"lm_weight": -1}),
        ("run.yaml: lambda_correct: expected a number from 0 on, got 'much'", {"lambda_correct": "much"}),
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
        ("lora: layers_to_transform: expected a list of numbers of layers", {"lora": {"layers_to_transform": [-1]}}),
        ("lora: layers_to_transform: expected a list of numbers of layers", {"lora": {"layers_to_transform": []}}),
        ("lora: layers_to_transform: expected a list of numbers of layers", {"lora": {"layers_to_transform": 3}}),
        (
            "lora: target_modules: expected all-linear or a list of names beside layers_to_transform, got the pattern",
            {"lora": {"layers_to_transform": [3], "target_modules": r".*\.q_proj"}},
        ),
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
        ("run.yaml: eval_on_start: expected eval_data as well", {"eval_on_start": True}),
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
    with pytest.raises(
        InputError, match=r"no configuration file or recipe 'qwen4': recipes are factored, genrm, gram-r2, ll"
    ):
        RunConfig.load("qwen4", "finetune")


OTHERS = {"factored", "genrm", "gram-r2"}


@pytest.mark.parametrize("name", sorted(recipes().keys() - OTHERS))
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


def test_the_recipe_of_genrm_carries_its_settings():
    config, arguments = RunConfig.load("genrm", "reason", ["use_cpu=true"])
    assert (config.preset, config.cutoff_len, config.lambda_correct) == ("genrm", 32768, 0)
    assert (arguments.learning_rate, arguments.num_train_epochs, arguments.bf16) == (5e-6, 2, True)
    # On 8 GPUs.
    assert (arguments.per_device_train_batch_size, 8 * arguments.gradient_accumulation_steps) == (1, 128)


@pytest.mark.parametrize("stage", ["reason", "prove"])
def test_the_recipe_of_gram_r2_has_both_stages(stage):
    config, _ = RunConfig.load("gram-r2", stage, ["use_cpu=true"])
    assert (config.preset, config.train_data) == ("gram-r2", ["nvidia/HelpSteer3"])


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


def test_every_accelerate_configuration_ships():
    assert [path.stem for path in accelerate_configs()] == sorted(ACCELERATE)


@pytest.mark.parametrize(
    ("stage", "metric", "expected"),
    [("pretrain", "accuracy", "loss in pretrain"), ("finetune", "eval_acuracy", "loss or accuracy in finetune")],
)
def test_a_metric_that_is_not_measured_is_named_before_anything_loads(tmp_path, stage, metric, expected):
    config, arguments = RunConfig.parse(
        {"model_name_or_path": "m", "train_data": "d", "eval_data": "d", "output_dir": str(tmp_path / "out"),
         "use_cpu": True, "load_best_model_at_end": True, "save_strategy": "epoch", "metric_for_best_model": metric},
        "test",
    )  # fmt: skip
    with pytest.raises(InputError, match=rf"^metric_for_best_model: expected {expected}, got '{metric}'"):
        train(stage, config, arguments)
