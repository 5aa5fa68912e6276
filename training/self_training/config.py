"""Configuration of self-training: a YAML file with the keys of SelfTrainConfig, in sections for the steps of a round.

Which numbers are the paper's (arXiv 2509.02492) and which are this package's defaults is in docs/self_training.md.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from transformers import TrainingArguments

from gram_fast.devices import find_devices
from gram_fast.errors import InputError
from gram_fast.generating.generator import Sampling
from gram_fast.generating.options import ReasoningOptions
from gram_fast.models.options import JudgeOptions
from gram_fast.training.config import RunConfig, apply_override, read_yaml

# Keys of a training run that follow from those of self-training.
_SET = (
    "model_name_or_path", "output_dir", "train_data", "preset", "dataset_info", "include_reasoning",
    "trust_remote_code", "streaming", "skip_bad", "max_samples", "resume_from_checkpoint",
)  # fmt: skip

Section = TypeVar("Section")


@dataclass(frozen=True)
class Writing:
    """How a judge writes: `predict`, about unlabeled pairs."""

    votes: int = 4
    """Runs for a pair and order; each pair is shown in both orders."""
    temperature: float = 0.75
    max_new_tokens: int = 1024

    def options(self, seed: int) -> ReasoningOptions:
        """The judge's options. Raises InputError on wrong ones."""
        return ReasoningOptions(seed=seed, **asdict(self))


@dataclass(frozen=True)
class Evaluating(Writing):
    """How a judge writes: `evaluate`, about held-out pairs."""

    votes: int = 1
    temperature: float = 0.0


@dataclass(frozen=True)
class Denoising:
    """Which labels are kept: `denoise`."""

    min_probability: float = 0.6
    """Least probability of a label, in [0, 1]."""
    max_rationale_characters: int | None = None
    """Longest rationale of a run that counts; None: as long as max_new_tokens lets it get."""


@dataclass(frozen=True)
class Proving:
    """How the prover writes: `prove`."""

    proofs: int = 4
    """Proofs for each pair, of which one is chosen."""
    temperature: float = 0.75
    max_new_tokens: int = 1024

    def options(self) -> ReasoningOptions:
        """The prover's options. Raises InputError on wrong ones."""
        return ReasoningOptions(temperature=self.temperature, max_new_tokens=self.max_new_tokens)

    @property
    def sampling(self) -> Sampling:
        """How proofs are drawn."""
        return Sampling(self.max_new_tokens, self.temperature)


@dataclass(frozen=True)
class SelfTrainConfig:
    """Settings of self-training."""

    output_dir: str
    judge: str
    """Checkpoint of a judge that reasons, which labels the first batch."""
    prover: str
    """Checkpoint of the proving model."""
    unlabeled_data: list[str]
    """Pairs that judges label, the first batch first; files and names as of training data. Labels that they have are
    not shown to the judge, but labels that disagree are dropped."""
    eval_data: list[str]
    """Held-out labeled pairs."""
    pairs_per_round: int
    base: str | None = None
    """Checkpoint that the training of every round starts from; None: `judge`."""
    seed_data: list[str] = field(default_factory=list)
    """Labeled pairs, with rationales or without, that every round is trained on as well."""
    dataset_info: str | None = None
    rounds: int = 3
    preset: str = "auto"
    include_reasoning: bool = False
    skip_bad: bool = False
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    """Of judge and prover; `train` has its own."""
    trust_remote_code: bool = False
    chunk_rows: int = 256
    """Rows that are computed in one call and written as a whole."""
    max_batch_tokens: int = 32768
    """Most tokens of prompts and answers that a judge or the prover writes side by side. A number, so that batches, and
    with them rounding, do not depend on the memory that is free."""
    predict: Writing = field(default_factory=Writing)
    denoise: Denoising = field(default_factory=Denoising)
    prove: Proving = field(default_factory=Proving)
    evaluate: Evaluating = field(default_factory=Evaluating)
    train: dict[str, Any] = field(default_factory=dict)
    """Keys of a training run, as of `gram-fast train reason`."""

    @classmethod
    def load(cls, name: str, overrides: Sequence[str] = ()) -> "SelfTrainConfig":
        """Reads a YAML file and applies `key=value` overrides, such as denoise.min_probability=0.8.

        Raises InputError that names the file and the key.
        """
        values = read_yaml(Path(name))
        for override in overrides:
            apply_override(values, override)
        return cls.parse(values, name)

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str) -> "SelfTrainConfig":
        """Validates keys and values; error messages call them `source`."""
        given = {key: [value] if key in _LISTS and isinstance(value, str) else value for key, value in values.items()}
        for key, kind in _SECTIONS.items():
            if key in given:
                given[key] = _section(kind, given[key], f"{source}: {key}")
        config = _section(cls, given, source)
        config._check(source)
        return config

    def _check(self, source: str) -> None:
        def expect(holds: bool, key: str, what: str, value: Any) -> None:
            if not holds:
                raise InputError(f"{source}: {key}: expected {what}, got {value!r}")

        for key in ("output_dir", "judge", "prover", "preset", "device", "dtype"):
            value = getattr(self, key)
            expect(isinstance(value, str) and bool(value), key, "text", value)
        for key in ("base", "dataset_info"):
            value = getattr(self, key)
            expect(value is None or (isinstance(value, str) and bool(value)), key, "text", value)
        for key in _LISTS:
            value = getattr(self, key)
            are_names = isinstance(value, list) and all(isinstance(name, str) for name in value)
            expect(are_names, key, "a name or a list of names", value)
            expect("-" not in value, key, "names of data, since standard input cannot be read again", value)
            expect(bool(value) or key == "seed_data", key, "at least one name", value)
        for key in ("include_reasoning", "skip_bad", "trust_remote_code"):
            value = getattr(self, key)
            expect(isinstance(value, bool), key, "true or false", value)
        for key, least in (
            ("pairs_per_round", 1),
            ("rounds", 1),
            ("chunk_rows", 1),
            ("max_batch_tokens", 1),
            ("seed", 0),
        ):
            value = getattr(self, key)
            expect(type(value) is int and value >= least, key, f"an integer of at least {least}", value)
        probability, longest = self.denoise.min_probability, self.denoise.max_rationale_characters
        is_number = isinstance(probability, int | float) and not isinstance(probability, bool)
        expect(is_number and 0 <= probability <= 1, "denoise", "min_probability from 0 to 1", probability)
        expect(
            longest is None or (type(longest) is int and longest > 0),
            "denoise",
            "max_rationale_characters of at least 1",
            longest,
        )
        expect(
            type(self.prove.proofs) is int and self.prove.proofs > 0, "prove", "proofs of at least 1", self.prove.proofs
        )
        expect(
            self.prove.proofs == 1 or self.prove.temperature != 0,
            "prove",
            f"a temperature above 0 for {self.prove.proofs} proofs",
            self.prove.temperature,
        )
        for key, step in (("predict", self.predict), ("evaluate", self.evaluate), ("prove", self.prove)):
            for name in ("temperature", "max_new_tokens"):
                expect(getattr(step, name) is not None, key, f"a number for {name}", None)
            try:
                _ = step.options() if isinstance(step, Proving) else step.options(0)
            except InputError as error:
                raise InputError(f"{source}: {key}: {error}") from None
        expect(isinstance(self.train, dict), "train", "a section of keys and values", self.train)
        for key in _SET:
            if key in self.train:
                raise InputError(f"{source}: train: {key} follows from the other keys: leave it out")
        if self.train.get("save_only_model"):
            raise InputError(f"{source}: train: save_only_model: expected false, as a run goes on from its checkpoints")
        devices = find_devices(self.judge_options.device)
        expect(len(devices) == 1, "device", "one device", self.device)
        self.training(self.output_dir, ["data"], source)

    @property
    def judge_options(self) -> JudgeOptions:
        """What judges and the prover are loaded with. Raises errors like JudgeOptions."""
        names = ("preset", "device", "dtype", "include_reasoning", "trust_remote_code")
        return JudgeOptions(**{name: getattr(self, name) for name in names})

    @property
    def recorded(self) -> dict[str, Any]:
        """The settings that must be equal for a run to go on, JSON values."""
        settings = {key: value for key, value in asdict(self).items() if key != "output_dir"}
        return dict(
            json.loads(json.dumps(settings, default=str))
        )  # dates of YAML and keys that are numbers, as read back

    def training(self, folder: str, data: list[str], source: str) -> tuple[RunConfig, TrainingArguments]:
        """The configuration of a round's training.

        The loss is logged in every step unless `train` says otherwise: between two logs, transformers averages what
        no checkpoint holds, so that the curve of a resumed run would differ. Raises InputError that names `source`.
        """
        values = {
            "seed": self.seed,
            "logging_steps": 1,
            "use_cpu": self.device == "cpu",
            **self.train,
            "model_name_or_path": self.base or self.judge,
            "output_dir": folder,
            "train_data": data,
            "preset": self.preset,
            "dataset_info": self.dataset_info,
            "include_reasoning": self.include_reasoning,
            "trust_remote_code": self.trust_remote_code,
            "skip_bad": self.skip_bad,
            "resume_from_checkpoint": True,
        }
        return RunConfig.parse(values, f"{source}: train")


_LISTS = ("unlabeled_data", "eval_data", "seed_data")
_SECTIONS: dict[str, Any] = {"predict": Writing, "denoise": Denoising, "prove": Proving, "evaluate": Evaluating}


def _section(kind: type[Section], values: Any, source: str) -> Section:
    """Makes a dataclass of keys and values. Raises InputError on unknown and missing keys."""
    if not isinstance(values, Mapping):
        raise InputError(f"{source}: expected a section of keys and values, got {values!r}")
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise InputError(f"{source}: there is no key {key!r}: expected one of {', '.join(known)}")
    for name, f in known.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise InputError(f"{source}: expected a value for {name}")
    return kind(**values)
