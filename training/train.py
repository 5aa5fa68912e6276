"""Runs one training stage: reads data, trains with transformers' Trainer, writes a checkpoint for PairwiseJudge."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from gram_fast.errors import GramFastError, InputError, one_line
from gram_fast.models.adapters import load_adapted, merge_adapted
from gram_fast.models.checkpoint import (
    find_template,
    load_config,
    load_model,
    record_prompt,
    warn_of_another_prompt,
    write_record,
)
from gram_fast.models.supported import attention_span, plain_output_embedding
from gram_fast.models.tokenizer import load_tokenizer
from gram_fast.rows.bad_rows import OnBad
from gram_fast.text.dates import fix_date
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokens import PairTokenizer
from gram_fast.training import lora, objectives
from gram_fast.training.checkpoints import WEIGHTS, find_whole, problem
from gram_fast.training.config import RunConfig, Stage
from gram_fast.training.curve import draw_curve
from gram_fast.training.data import sequences
from gram_fast.training.data.records import PairRecord, read_pair_records
from gram_fast.training.data.sequences import PairEncoder, TokenizedPair
from gram_fast.training.data.stream import PairStream
from gram_fast.training.output_folder import LOCK, locked, on_main_process
from gram_fast.training.packed_attention import PACKED_ATTENTION
from gram_fast.training.padding import set_pad_token
from gram_fast.training.saving import (
    SAVING,
    check_weights,
    drop_invalid_generation_config,
    rehearse,
    staged_folder,
    staged_model,
    write_whole,
    writing,
)
from gram_fast.training.trainer import JudgeTrainer

log = logging.getLogger(__name__)

_RUN_FILE = "run.json"
# Key in it of the variables that the chat template was given, with the date that was fixed.
_DATED = "dated_chat_template_kwargs"
# Pairs whose loss a merged model is compared on, on the CPU.
_PAIRS_OF_CHECK = 2


def train(stage: Stage, config: RunConfig, arguments: TrainingArguments) -> Path:
    """Trains one stage and writes model, tokenizer and loss.png into `config.output_dir`, which is returned.

    Raises InputError for bad data or configuration, and UnsupportedModelError for a model that cannot be trained on
    packed sequences or with the objective; both before training starts, where they can be known by then.
    """
    if arguments.n_gpu > 1:
        raise InputError(
            f"{arguments.n_gpu} GPUs in one process: expected `accelerate launch`, or one GPU in CUDA_VISIBLE_DEVICES"
        )
    mixed = arguments.mixed_precision
    if arguments.deepspeed_plugin is not None and not getattr(arguments, mixed, True):
        raise InputError(f"{mixed}: expected true, as DeepSpeed was launched with mixed_precision {mixed}, got false")
    with locked(Path(config.output_dir), arguments):
        return _train(stage, config, arguments)


def _train(stage: Stage, config: RunConfig, arguments: TrainingArguments) -> Path:
    checkpoint = on_main_process(arguments, lambda: _checkpoint_to_resume(stage, config, arguments))
    hub = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    tokenizer = load_tokenizer(config.model_name_or_path, config.tokenizer, **hub)
    model_config = load_config(config.model_name_or_path, **hub)
    kwargs = {**_dated_before(checkpoint), **config.chat_template_kwargs}
    template = fix_date(find_template(config.preset, model_config, kwargs), tokenizer)
    limit, reason = attention_span(model_config.get_text_config(decoder=True))
    if config.cutoff_len > limit:
        raise InputError(f"cutoff_len: expected at most {limit} ({reason}), got {config.cutoff_len}")
    pair_tokenizer = PairTokenizer(tokenizer, template)
    warn_of_another_prompt(model_config, pair_tokenizer, config.include_reasoning)
    rows = model_config.get_text_config(decoder=True).vocab_size
    encode = sequences.within_embedding(_encoder(stage, pair_tokenizer, tokenizer), pair_tokenizer, rows)
    if stage == "scalar":
        [pair] = encode([PairRecord("prompt", "chosen", "rejected", "A", "")])
        set_pad_token(tokenizer, int(pair.input_ids[-1]), rows)
    reader = _Reader(stage, config, pair_tokenizer, encode, logs=arguments.process_index == 0)
    train_data = reader.dataset(config.train_data, "train_data", stream=config.streaming, seed=arguments.seed)
    eval_data = reader.dataset(config.eval_data, "eval_data") if config.eval_data else None

    set_seed(arguments.seed)
    dtype = getattr(torch, config.dtype)
    model = _load(stage, config, dtype, hub)
    record_prompt(model.config, pair_tokenizer, config.include_reasoning)
    _set_objective(model, stage, pair_tokenizer, config)
    try:
        trainer = JudgeTrainer(
            lora.add_adapters(model, config.lora, ["score"] if stage == "scalar" else None) if config.lora else model,
            arguments,
            data_collator=_collate,
            train_dataset=train_data,
            eval_dataset=eval_data,
            processing_class=tokenizer,
            compute_metrics=None if stage == "pretrain" else _accuracy,
        )
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"cannot set the training up: {one_line(error)}") from error
    folder = Path(config.output_dir)
    trainer.check_writes_whole_weights()
    on_main_process(arguments, lambda: rehearse(trainer.model, tokenizer, arguments, folder))
    _write_run_file(stage, config, arguments, template)
    trainer.train(resume_from_checkpoint=checkpoint)
    reader.report("train_data")
    if trainer.state.global_step == 0:
        raise InputError(f"train_data: no pair of {', '.join(config.train_data)} is left to train on")
    check_weights(trainer.model, "the trained model")
    if trainer.is_world_process_zero():
        try:
            draw_curve(trainer.state.log_history, folder / "loss.png")
        except OSError as error:
            log.warning("cannot write the loss curve: %s", one_line(error))
    if config.lora is None:
        with staged_model(folder, arguments.should_save) as staged:
            trainer.save_model(str(staged))
    else:
        _save_merged(trainer, stage, config, pair_tokenizer, dtype, hub)
    return folder


class _Reader:
    """Reads named data sets into datasets of tokenized pairs and logs how many pairs were left out."""

    def __init__(
        self, stage: Stage, config: RunConfig, tokenizer: PairTokenizer, encode: PairEncoder, logs: bool
    ) -> None:
        self._stage, self._config, self._tokenizer, self._encode = stage, config, tokenizer, encode
        self._logs = logs
        self._bad = self._long = 0

    def dataset(self, names: Sequence[str], key: str, stream: bool = False, seed: int = 0) -> Any:
        """Reads data sets into one dataset for the Trainer: a list in memory or, with `stream`, one without end."""
        if stream:
            return PairStream(lambda number: map(vars, self._tokenized(names, counts=number == 0)), seed)
        with tqdm(self._tokenized(names), unit=" pairs", desc=key, disable=None if self._logs else True) as bar:
            pairs = [vars(pair) for pair in bar]
        self.report(key)
        if not pairs:
            raise InputError(f"{key}: no pair of {', '.join(names)} is left to train on")
        return pairs

    def report(self, key: str) -> None:
        """Logs how many pairs were left out since the last report; for a stream, by this process in the first pass."""
        if self._long and self._logs:
            log.warning("%s: %d pairs longer than cutoff_len=%d left out", key, self._long, self._config.cutoff_len)
        if self._bad and self._logs:
            log.warning("%s: %d bad rows left out", key, self._bad)
        self._bad = self._long = 0

    def _tokenized(self, names: Sequence[str], counts: bool = True) -> Iterator[TokenizedPair]:
        on_bad, on_long = (self._on_bad, self._on_long) if counts else (_ignore, _ignore)
        records = self._records(names, on_bad if self._config.skip_bad else None)
        limit = self._config.cutoff_len
        bounded = sequences.without_endless(records, self._tokenizer, limit, on_long)
        return sequences.tokenize_pairs(bounded, self._encode, limit, on_long)

    def _records(self, names: Sequence[str], skip_bad: OnBad | None) -> Iterator[PairRecord]:
        count = 0
        for name in names:
            pairs = read_pair_records(
                name,
                template=self._tokenizer.template,
                dataset_info=self._config.dataset_info,
                skip_bad=skip_bad,
                include_reasoning=self._config.include_reasoning,
            )
            for record in pairs:
                if count == self._config.max_samples:
                    return
                if self._stage != "pretrain" and record.preferred is None:
                    raise InputError(f"{record.where}: {self._stage} wants labeled pairs, this one has no label")
                yield _alternated(record, count) if self._stage == "pretrain" else record
                count += 1

    def _on_bad(self, error: GramFastError) -> None:
        self._bad += 1
        if self._logs:
            log.warning("skipped: %s", error)

    def _on_long(self, record: PairRecord, length: int) -> None:
        self._long += 1


def _ignore(*left_out: object) -> None:
    """Counts nothing: in later passes, what is left out was counted in the first."""


def _alternated(record: PairRecord, number: int) -> PairRecord:
    """Swaps every second labeled pair, so that stage 1 does not learn that the better response comes first."""
    if record.preferred is None or number % 2 == 0:
        return record
    return PairRecord(record.prompt, record.response_b, record.response_a, None, record.where)


def _collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return sequences.collate([TokenizedPair(**row) for row in rows])


def _encoder(stage: Stage, pair_tokenizer: PairTokenizer, chat: Any) -> PairEncoder:
    if stage == "pretrain":
        return sequences.pretrain_encoder(pair_tokenizer, chat)
    if stage == "finetune":
        return sequences.finetune_encoder(pair_tokenizer)
    return sequences.scalar_encoder(pair_tokenizer, chat)


def _load(stage: Stage, config: RunConfig, dtype: torch.dtype, hub: dict[str, Any]) -> Any:
    if stage == "scalar":
        return load_model(
            config.model_name_or_path,
            dtype,
            kind=AutoModelForSequenceClassification,
            new_weights=("score.weight",),
            num_labels=1,
            **hub,
        )
    model = load_model(config.model_name_or_path, dtype, kind=AutoModelForCausalLM, **hub)
    drop_invalid_generation_config(model)
    plain_output_embedding(model)
    return model


def _set_objective(model: Any, stage: Stage, pair_tokenizer: PairTokenizer, config: RunConfig) -> None:
    if stage == "pretrain":
        loss = objectives.language_modelling(model)
    elif stage == "finetune":
        loss = objectives.label_preference(model, pair_tokenizer.label_ids, config.label_smoothing)
    else:
        loss = objectives.bradley_terry_loss(model)
    model.set_attn_implementation(PACKED_ATTENTION)
    objectives.set_objective(model, loss)


def _accuracy(prediction: Any) -> dict[str, float]:
    right = prediction.predictions
    return {"accuracy": float(right[right >= 0].mean())}


def _save_merged(
    trainer: Trainer,
    stage: Stage,
    config: RunConfig,
    pair_tokenizer: PairTokenizer,
    dtype: torch.dtype,
    hub: dict[str, Any],
) -> None:
    """Writes the adapters, then what they make of a newly loaded copy of the base model, if that has the same loss."""
    folder = Path(config.output_dir)
    batch = _collate(list(islice(trainer.train_dataset, _PAIRS_OF_CHECK)))
    loss = lora.trained_loss(trainer, batch)
    with staged_folder(folder / "adapter", trainer.args.should_save) as staged:
        trainer.save_model(str(staged))
        if trainer.args.should_save:
            write_record(trainer.model.config, staged)
    if trainer.is_world_process_zero():
        # Otherwise ZeRO-3 would shard the loaded model and wait for the other processes.
        unset_hf_deepspeed_config()
        base = _load(stage, config, dtype, hub)
        record_prompt(base.config, pair_tokenizer, config.include_reasoning)
        # As the Trainer does for a model that it saves itself.
        base.config.pad_token_id = trainer.processing_class.pad_token_id
        merged = merge_adapted(load_adapted(base, str(folder / "adapter")))
        _set_objective(merged, stage, pair_tokenizer, config)
        lora.check_merged(merged, batch, loss, lora.rounding(trainer, dtype), folder / "adapter")
        check_weights(merged, "the merged model")
        with staged_model(folder) as staged:
            merged.save_pretrained(staged)
            trainer.processing_class.save_pretrained(staged)


def _checkpoint_to_resume(stage: Stage, config: RunConfig, arguments: TrainingArguments) -> str | None:
    """Finds the checkpoint to resume from: the one named, else the last whole one of an interrupted run, or None.

    Raises InputError when the output folder is not empty and does not hold an unfinished run of the same configuration,
    or when resuming was not requested.
    """
    folder, asked = Path(config.output_dir), arguments.resume_from_checkpoint
    named = isinstance(asked, str) and asked not in ("true", "auto")
    if named and (reason := problem(Path(asked), arguments)):
        raise InputError(f"resume_from_checkpoint: {asked!r} is no whole checkpoint of a run: {reason}")
    if all(path.name in (LOCK, SAVING) for path in folder.iterdir()):
        return asked if named else None
    if not asked:
        raise InputError(
            f"output_dir {config.output_dir!r} is not empty: go on with resume_from_checkpoint=true, or name another"
        )
    if not (folder / _RUN_FILE).is_file():
        raise InputError(f"output_dir {config.output_dir!r} holds no training run to go on with")
    before, now = _read_run_file(folder / _RUN_FILE), _run_record(stage, config, arguments)
    if different := [key for key in now if before.get(key) != now[key]]:
        key = different[0]
        raise InputError(f"{key} was {before.get(key)!r}, now it is {now[key]!r}: expected the run that is resumed")
    if any((folder / name).exists() for name in WEIGHTS):
        raise InputError(f"output_dir {config.output_dir!r} holds a run that is finished")
    if named:
        return str(asked)
    checkpoint = find_whole(folder, arguments)
    return None if checkpoint is None else str(checkpoint)


def _read_run_file(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the settings of the run in {path}: {one_line(error)}") from None
    if not isinstance(record, dict):
        raise InputError(f"cannot read the settings of the run in {path}: expected an object, got {record!r:.80}")
    return record


# Parts of the names of TrainingArguments that may differ when a run is resumed: output, logging, saving.
_FREE = (
    "dir",
    "log",
    "report",
    "save",
    "push",
    "hub",
    "resume",
    "tqdm",
    "run_name",
    "local_rank",
    "dataloader",
    "ddp",
)


def _run_record(stage: Stage, config: RunConfig, arguments: TrainingArguments) -> dict[str, Any]:
    """The settings that must be equal for a run to be resumed, as JSON values."""
    theirs = {key: value for key, value in arguments.to_dict().items() if not any(word in key for word in _FREE)}
    own = {"stage": stage, **asdict(config), "num_processes": arguments.world_size, **theirs}
    own["output_dir"] = str(Path(config.output_dir).resolve())
    return dict(json.loads(json.dumps(own, default=str)))


def _dated_before(checkpoint: str | None) -> dict[str, Any]:
    """Variables of the chat template in the run of a checkpoint: resumed, it goes on with the date of its beginning."""
    run_file = Path(checkpoint or "").parent / _RUN_FILE
    if checkpoint is None or not run_file.is_file():
        return {}
    return dict(_read_run_file(run_file).get(_DATED, {}))


def _write_run_file(stage: Stage, config: RunConfig, arguments: TrainingArguments, template: PairTemplate) -> None:
    if arguments.process_index == 0:
        record = {**_run_record(stage, config, arguments), _DATED: template.chat_template_kwargs}
        folder = Path(config.output_dir)
        with writing(_RUN_FILE, folder):
            write_whole(folder / _RUN_FILE, json.dumps(record, indent=2) + "\n")
