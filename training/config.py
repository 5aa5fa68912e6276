"""Configuration of a training run: a YAML file with the keys of RunConfig and of transformers' TrainingArguments."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from transformers import TrainingArguments

from gram_fast.errors import InputError, one_line
from gram_fast.text.settings import check_kwargs

_HERE = Path(__file__).parent

Stage = Literal["pretrain", "finetune", "scalar", "reason", "prove"]
"""What is trained: GRAM's stage 1, its stage 2, the scalar reward baseline, a judge that writes a rationale before its
label, or the proving model that writes rationales for given labels."""

Mode = Literal["full", "factored", "both"]
"""How stage 2 reads a pair: response B behind A, each response by itself, or some pairs so and the others so."""

ALL_LINEAR = "all-linear"
"""peft's name of all linear modules of a model but its output embedding."""


@dataclass(frozen=True)
class LoraOptions:
    """Options of low-rank adapters, with the names and meanings of peft's LoraConfig."""

    r: int = 16
    lora_alpha: float = 32
    lora_dropout: float = 0.0
    target_modules: str | list[str] = ALL_LINEAR
    layers_to_transform: list[int] | None = None
    """Layers that are adapted, counted from 0; None for all. The backward ends at the first of them."""


@dataclass(frozen=True)
class RunConfig:
    """Settings of one training run; all other keys of the YAML file go to transformers' TrainingArguments."""

    model_name_or_path: str
    output_dir: str
    train_data: list[str]
    """Files, names in `dataset_info`, or names on the hub; read one after the other."""
    eval_data: list[str] = field(default_factory=list)
    """Data for the loss, and in stage 2 and scalar the accuracy, during training: see eval_strategy."""
    dataset_info: str | None = None
    """Path of a LLaMA-Factory dataset_info.json."""
    preset: str = "auto"
    """The judge's prompt: a preset, a preset file, or "auto", the prompt that the checkpoint records, else gram."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables of the chat template; a date that it would write is fixed in any case, and recorded."""
    cutoff_len: int = 2048
    """Most tokens of one sequence; longer pairs are left out and counted, never truncated."""
    max_samples: int | None = None
    """Most pairs to read; None for all."""
    streaming: bool = False
    """Read and tokenize during training, pass after pass, for data larger than memory; requires max_steps."""
    skip_bad: bool = False
    """Skip bad rows; each is logged, and their number is reported."""
    include_reasoning: bool = False
    """Train on the reasoning in chat messages too; the judge is then asked with include_reasoning."""
    pairs_together: int = 1
    """Most pairs of one prompt that share a batch, whose equal beginnings are computed once; 1 is plain training."""
    pad_to_multiple_of: int = 1
    """Batches are filled up to a multiple of tokens: on a CPU, small models are faster where few lengths occur."""
    label_smoothing: float = 0.1
    """Stage 2: label smoothing as in torch, over two classes, in [0, 1); GRAM recommends 0.05 to 0.15."""
    lm_weight: float = 0.0
    """Stage 2: weight of -log P(next token) of the better response, a mean over its tokens, beside the label's loss."""
    mode: Mode = "full"
    """Stage 2: "full", "factored", where neither response reads the other, or "both": each pair in one of the two.

    Which one, the seed and the pair's texts draw, in `eval_data` as in `train_data`: what is evaluated is then a judge
    that is asked in one mode as often as in the other.
    """
    lambda_correct: float = 0.0
    """Stage reason: weight of -log P(next token) of the better response after its prompt, beside the answer's loss."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights; with bf16: true, computation is in bfloat16 in any case."""
    lora: LoraOptions | None = None
    """Train low-rank adapters instead of all parameters; they are merged into the result."""
    tokenizer: str | None = None
    """A checkpoint whose tokenizer and chat template are used, and saved, in place of the model's own."""
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def modes(self) -> tuple[str, ...]:
        """Those that a judge of this run is trained in."""
        return ("full", "factored") if self.mode == "both" else (self.mode,)

    @classmethod
    def load(cls, name: str, stage: Stage, overrides: Sequence[str] = ()) -> tuple["RunConfig", TrainingArguments]:
        """Reads a YAML file or a recipe by name and applies `key=value` overrides, such as lora.r=8.

        The section named after the stage overrides the top-level keys; those of other stages are ignored. Raises
        InputError that names the file and the key.
        """
        path = _find(name)
        values = read_yaml(path)
        sections = {other: values.pop(other, None) or {} for other in get_args(Stage)}
        if not isinstance(sections[stage], dict):
            raise InputError(f"{path}: {stage}: expected a section of keys and values, got {sections[stage]!r}")
        values |= sections[stage]
        for override in overrides:
            apply_override(values, override)
        return cls.parse(values, str(path))

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str) -> tuple["RunConfig", TrainingArguments]:
        """Validates the keys and values of a configuration; error messages call it `source`."""
        own_names = {f.name for f in fields(cls)}
        known = {f.name for f in fields(TrainingArguments)} | own_names | {"warmup_ratio"}
        for key in values:
            if key not in known:
                raise InputError(
                    f"{source}: there is no key {key!r}: expected one of gram_fast's or TrainingArguments'"
                )
        own = {key: value for key, value in values.items() if key in own_names}
        for f in fields(cls):
            if f.name not in own and f.default is MISSING and f.default_factory is MISSING:
                raise InputError(f"{source}: expected a value for {f.name}")
        for key in ("train_data", "eval_data"):
            if isinstance(own.get(key), str):
                own[key] = [own[key]]
        if isinstance(own.get("lora"), dict):
            own["lora"] = _lora_options(own["lora"], f"{source}: lora")
        config = cls(**own)
        config._check(source)
        config = replace(config, output_dir=str(Path(config.output_dir).expanduser()))
        return config, _training_arguments(config, {k: v for k, v in values.items() if k not in own_names}, source)

    def _check(self, source: str) -> None:
        def expect(holds: bool, key: str, what: str) -> None:
            if not holds:
                raise InputError(f"{source}: {key}: expected {what}, got {getattr(self, key)!r}")

        for key in ("model_name_or_path", "output_dir", "preset"):
            value = getattr(self, key)
            expect(isinstance(value, str) and bool(value), key, "text")
        for key in ("train_data", "eval_data"):
            value = getattr(self, key)
            expect(isinstance(value, list) and all(isinstance(v, str) for v in value), key, "a name or a list of names")
            expect("-" not in value, key, "names of data, since standard input cannot be read in every pass")
        expect(bool(self.train_data), "train_data", "at least one name")
        for key in ("dataset_info", "tokenizer", "revision"):
            expect(getattr(self, key) is None or isinstance(getattr(self, key), str), key, "text")
        for key in ("streaming", "skip_bad", "include_reasoning", "trust_remote_code"):
            expect(isinstance(getattr(self, key), bool), key, "true or false")
        check_kwargs(self.chat_template_kwargs, source)
        expect(type(self.cutoff_len) is int and self.cutoff_len > 0, "cutoff_len", "a positive integer")
        expect(
            self.max_samples is None or (type(self.max_samples) is int and self.max_samples > 0),
            "max_samples",
            "a positive integer",
        )
        multiple = self.pad_to_multiple_of
        expect(type(multiple) is int and multiple > 0, "pad_to_multiple_of", "a positive integer")
        together = self.pairs_together
        expect(type(together) is int and together > 0, "pairs_together", "a positive integer")
        expect(together == 1 or not self.streaming, "pairs_together", "1 with streaming, which shuffles as it reads")
        expect(
            isinstance(self.label_smoothing, int | float) and 0 <= self.label_smoothing < 1,
            "label_smoothing",
            "a number from 0 to below 1",
        )
        for key in ("lm_weight", "lambda_correct"):
            weight = getattr(self, key)
            expect(isinstance(weight, int | float) and 0 <= weight < math.inf, key, "a number from 0 on")
        expect(self.mode in get_args(Mode), "mode", "full, factored or both")
        expect(self.dtype in get_args(self.__annotations__["dtype"]), "dtype", "float32 or bfloat16")
        expect(self.lora is None or isinstance(self.lora, LoraOptions), "lora", "a section with r, lora_alpha, ...")


def recipes() -> dict[str, Path]:
    """Returns the configuration files of the recipes that ship with the package, by name."""
    return {path.stem: path for path in sorted((_HERE / "recipes").glob("*.yaml"))}


def accelerate_configs() -> list[Path]:
    """Returns the configuration files for `accelerate launch` that ship with the package."""
    return sorted((_HERE / "accelerate").glob("*.yaml"))


def _find(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    if name not in recipes():
        raise InputError(f"there is no configuration file or recipe {name!r}: recipes are {', '.join(recipes())}")
    return recipes()[name]


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads the keys and values of a configuration file. Raises InputError that names it."""
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the configuration {path}: {one_line(error)}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: expected YAML, {one_line(error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected keys and values, got {type(values).__name__}")
    return values


def apply_override(values: dict[str, Any], override: str) -> None:
    """Applies one override `key=value` or `section.key=value` to `values`; the value is parsed as YAML.

    Raises InputError on one of another form.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"expected key=value, got {override!r}")
    *sections, name = key.split(".")
    target = values
    for section in sections:
        if not isinstance(target.get(section) or {}, dict):
            raise InputError(f"{override}: {section} is no section, it is {target[section]!r}")
        target[section] = target = dict(target.get(section) or {})
    try:
        target[name] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"{override}: expected YAML behind the =, got {text!r}") from None


def _lora_options(values: dict[str, Any], source: str) -> LoraOptions:
    names = [f.name for f in fields(LoraOptions)]
    for key in values:
        if key not in names:
            raise InputError(f"{source}: there is no key {key!r}: expected one of {', '.join(names)}")
    options = LoraOptions(**values)
    if (layers := options.layers_to_transform) is not None:
        are_numbers = isinstance(layers, list) and all(type(layer) is int and layer >= 0 for layer in layers)
        if not are_numbers or not layers:
            raise InputError(
                f"{source}: layers_to_transform: expected a list of numbers of layers from 0, got {layers!r}"
            )
        if isinstance(options.target_modules, str) and options.target_modules != ALL_LINEAR:
            raise InputError(
                f"{source}: target_modules: expected {ALL_LINEAR} or a list of names beside layers_to_transform, got "
                f"the pattern {options.target_modules!r}"
            )
    return options


def _training_arguments(config: RunConfig, values: dict[str, Any], source: str) -> TrainingArguments:
    values = dict(values)
    if values.get("label_smoothing_factor"):
        raise InputError(f"{source}: label_smoothing_factor smooths over the vocabulary: expected label_smoothing")
    if values.get("push_to_hub"):
        # For it transformers writes the result once more, neither whole or absent nor, with lora, merged.
        raise InputError(f"{source}: push_to_hub: expected false, and `hf upload` of the finished folder")
    if "warmup_ratio" in values:
        # The name before transformers 5, where a value of warmup_steps below 1 is the ratio.
        ratio = values.pop("warmup_ratio")
        if "warmup_steps" in values:
            raise InputError(f"{source}: expected one of warmup_ratio and warmup_steps, got both")
        if not isinstance(ratio, int | float) or not 0 <= ratio < 1:
            raise InputError(f"{source}: warmup_ratio: expected a number from 0 to below 1, got {ratio!r}")
        values["warmup_steps"] = ratio
    for key in ("save_strategy", "eval_strategy", "logging_strategy"):
        if values.get(key) is False:  # YAML parses no as false
            values[key] = "no"
    if config.streaming:
        for key in ("save_strategy", "eval_strategy", "logging_strategy"):
            if values.get(key) == "epoch":
                raise InputError(f"{source}: {key}: expected steps, as a stream has no end, got 'epoch'")
    if config.eval_data:
        values.setdefault("eval_strategy", "steps" if config.streaming else "epoch")
    else:
        for key in ("eval_strategy", "eval_on_start"):
            if values.get(key, "no") not in ("no", False):
                raise InputError(f"{source}: {key}: expected eval_data as well")
    for f in fields(TrainingArguments):
        if f.name in values:
            values[f.name] = _typed(f.name, values[f.name], f.default, source)
    if config.pairs_together > 1:
        size = values.get("per_device_train_batch_size", TrainingArguments.per_device_train_batch_size)
        if config.pairs_together > size:
            raise InputError(
                f"{source}: pairs_together: expected at most per_device_train_batch_size, {size}, got "
                f"{config.pairs_together}"
            )
        if (strategy := values.get("train_sampling_strategy", "random")) != "random":
            raise InputError(
                f"{source}: train_sampling_strategy: expected random with pairs_together, got {strategy!r}"
            )
    if config.streaming and not values.get("max_steps", -1) > 0:
        raise InputError(f"{source}: streaming wants max_steps, the length of the data being unknown")
    accelerator = values.pop("accelerator_config", None) or {}
    if not isinstance(accelerator, dict):
        raise InputError(f"{source}: accelerator_config: expected a section, got {accelerator!r}")
    fixed = {
        "label_names": ["labels"],
        "remove_unused_columns": False,
        # Every parameter gets a gradient in every objective.
        "ddp_find_unused_parameters": False,
        # The objectives call Liger-Kernel themselves.
        "use_liger_kernel": False,
        # It would hide losses that are not finite, at which JudgeTrainer stops.
        "logging_nan_inf_filter": False,
    }
    for key in fixed.keys() & values.keys():
        raise InputError(f"{source}: {key} is set by gram_fast: leave it out")
    try:
        return TrainingArguments(
            # A short run has a curve too: transformers logs every 500th step, and evaluates when it logs.
            **{"report_to": "none", "logging_steps": 0.01, "eval_steps": 500, **values, **fixed},
            output_dir=config.output_dir,
            # A packed batch cannot be split between processes.
            accelerator_config={**accelerator, "dispatch_batches": False},
        )
    except (ValueError, TypeError, ImportError, KeyError, AssertionError, OSError) as error:
        keys = [f"{key}: " for key, value in values.items() if str(error).startswith(f"{value} is not a valid")]
        raise InputError(f"{source}: {''.join(keys[:1])}{one_line(error)}") from error


# Arguments that must be above zero; TrainingArguments itself accepts any number.
_POSITIVE = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "learning_rate",
    "num_train_epochs", "logging_steps", "save_steps", "eval_steps",
)  # fmt: skip


def _typed(key: str, value: Any, default: Any, source: str) -> Any:
    """Converts a value to the type of the argument's default; TrainingArguments itself accepts any type."""
    number: float | None = None
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise InputError(f"{source}: {key}: expected true or false, got {value!r}")
    elif isinstance(default, int | float):
        try:
            number = float(value)  # YAML parses 1e-5 as text
        except (TypeError, ValueError):
            raise InputError(f"{source}: {key}: expected a number, got {value!r}") from None
        # Arguments ending in _steps may be a fraction of all steps.
        if isinstance(default, int) and not key.endswith("_steps") and number != int(number):
            raise InputError(f"{source}: {key}: expected an integer, got {value!r}")
        value = int(number) if isinstance(default, int) and number == int(number) else number
    if key in _POSITIVE and number is not None and number <= 0:
        raise InputError(f"{source}: {key}: expected a number above 0, got {value!r}")
    return value
