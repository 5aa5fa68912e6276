"""Runs one training stage: reads data, trains with transformers' Trainer, writes a checkpoint for PairwiseJudge."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from gram_fast.errors import InputError, one_line
from gram_fast.models.adapters import load_adapted, merge_adapted
from gram_fast.models.checkpoint import (
    find_template,
    load_config,
    load_model,
    record_prompt,
    warn_of_another_prompt,
    write_record,
)
from gram_fast.models.supported import plain_attention_span, plain_output_embedding
from gram_fast.models.tokenizer import load_tokenizer
from gram_fast.text.dates import fix_date
from gram_fast.text.encoded import check_factored
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokens import PairTokenizer
from gram_fast.training import lora, objectives
from gram_fast.training.config import RunConfig, Stage
from gram_fast.training.curve import draw_curve
from gram_fast.training.data import sequences
from gram_fast.training.data.records import PairRecord
from gram_fast.training.data.sequences import PairEncoder, TokenizedPair
from gram_fast.training.output_folder import locked, on_main_process
from gram_fast.training.packed_attention import PACKED_ATTENTION
from gram_fast.training.padding import set_pad_token
from gram_fast.training.reader import DataReader
from gram_fast.training.reasoning import check_ending, prove_encoder, reason_encoder
from gram_fast.training.run_file import checkpoint_to_resume, dated_before, write_run_file
from gram_fast.training.saving import (
    check_weights,
    drop_invalid_generation_config,
    rehearse,
    staged_folder,
    staged_model,
)
from gram_fast.training.trainer import JudgeTrainer

log = logging.getLogger(__name__)

# Stages whose loss is language modelling: there is no accuracy.
_LANGUAGE = ("pretrain", "reason", "prove")
# Pairs whose loss a merged model is compared on, on the CPU.
_PAIRS_OF_CHECK = 2


def train(stage: Stage, config: RunConfig, arguments: TrainingArguments) -> Path:
    """Trains one stage and writes model, tokenizer and loss.png into `config.output_dir`, which is returned.

    Raises InputError for bad data or configuration, and UnsupportedModelError for a model that cannot be trained on
    packed sequences, with the objective or, for its prompt, in the mode; both before training starts, where they can be
    known by then.
    """
    check_arguments(stage, arguments)
    if config.mode != "full" and stage != "finetune":
        raise InputError(f"mode: expected full in {stage}, as stage 2 alone knows others, got {config.mode!r}")
    with locked(Path(config.output_dir), arguments):
        return _train(stage, config, arguments)


def check_arguments(stage: Stage, arguments: TrainingArguments) -> None:
    """Raises InputError on arguments with which a stage cannot be trained on these devices."""
    if arguments.n_gpu > 1:
        raise InputError(
            f"{arguments.n_gpu} GPUs in one process: expected `accelerate launch`, or one GPU in CUDA_VISIBLE_DEVICES"
        )
    mixed = arguments.mixed_precision
    if arguments.deepspeed_plugin is not None and not getattr(arguments, mixed, True):
        raise InputError(f"{mixed}: expected true, as DeepSpeed was launched with mixed_precision {mixed}, got false")
    metrics = ("loss",) if stage in _LANGUAGE else ("loss", "accuracy")
    if (metric := arguments.metric_for_best_model) and metric.removeprefix("eval_") not in metrics:
        raise InputError(f"metric_for_best_model: expected {' or '.join(metrics)} in {stage}, got {metric!r}")


def _train(stage: Stage, config: RunConfig, arguments: TrainingArguments) -> Path:
    checkpoint = on_main_process(arguments, lambda: checkpoint_to_resume(stage, config, arguments))
    hub = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    tokenizer = load_tokenizer(config.model_name_or_path, config.tokenizer, **hub)
    model_config = load_config(config.model_name_or_path, **hub)
    kwargs = {**dated_before(checkpoint), **config.chat_template_kwargs}
    template = fix_date(_template_for(stage, find_template(config.preset, model_config, kwargs)), tokenizer)
    limit, reason = plain_attention_span(model_config.get_text_config(decoder=True))
    if config.cutoff_len > limit:
        raise InputError(f"cutoff_len: expected at most {limit} ({reason}), got {config.cutoff_len}")
    pair_tokenizer = PairTokenizer(tokenizer, template)
    if config.mode != "full":
        check_factored(pair_tokenizer)
    if stage in ("reason", "prove"):
        check_ending(config.model_name_or_path, model_config, template, tokenizer, **hub)
    warn_of_another_prompt(model_config, pair_tokenizer, config.include_reasoning)
    rows = model_config.get_text_config(decoder=True).vocab_size
    encode = _encoder(stage, pair_tokenizer, tokenizer, config, arguments.seed)
    encode = sequences.within_embedding(encode, pair_tokenizer, rows)
    if stage == "scalar":
        [pair] = encode([PairRecord("prompt", "chosen", "rejected", "A", "")])
        set_pad_token(tokenizer, int(pair.input_ids[-1]), rows)
    reader = DataReader(stage, config, pair_tokenizer, encode, arguments.seed, logs=arguments.process_index == 0)
    train_data = reader.dataset(config.train_data, "train_data", stream=config.streaming)
    eval_data = reader.dataset(config.eval_data, "eval_data") if config.eval_data else None

    set_seed(arguments.seed)
    dtype = getattr(torch, config.dtype)
    model = _load(stage, config, dtype, hub)
    record_prompt(model.config, pair_tokenizer, config.include_reasoning, config.modes)
    _set_objective(model, stage, pair_tokenizer, config)
    try:
        trainer = JudgeTrainer(
            lora.add_adapters(model, config.lora, ["score"] if stage == "scalar" else None) if config.lora else model,
            arguments,
            data_collator=_collator(config),
            train_dataset=train_data,
            eval_dataset=eval_data,
            processing_class=tokenizer,
            compute_metrics=None if stage in _LANGUAGE else _accuracy,
        )
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise InputError(f"cannot set the training up: {one_line(error)}") from error
    trainer.pairs_together = config.pairs_together
    folder = Path(config.output_dir)
    trainer.check_writes_whole_weights()
    on_main_process(arguments, lambda: rehearse(trainer.model, tokenizer, arguments, folder))
    write_run_file(stage, config, arguments, template, reader.counts)
    if arguments.torch_compile and trainer.is_world_process_zero():
        log.info("the model is compiled during the first steps, which may take a minute")
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


def _template_for(stage: Stage, template: PairTemplate) -> PairTemplate:
    """The judge's template in this stage: one that reasons where it is a text that is written.

    Raises InputError in stage 2 for a judge that reasons: its label does not stand right behind the prompt.
    """
    if stage in ("reason", "prove"):
        return replace(template, reasons=True)
    if stage == "finetune" and template.reasons:
        raise InputError(
            "preset: finetune trains the label right behind the prompt: expected one without reasons, or stage reason"
        )
    return template


def _collator(config: RunConfig) -> Callable[[Sequence[dict[str, Any]]], dict[str, torch.Tensor]]:
    return partial(_collate, shares=config.pairs_together > 1, multiple=config.pad_to_multiple_of)


def _collate(rows: Sequence[dict[str, Any]], shares: bool, multiple: int) -> dict[str, torch.Tensor]:
    """A function of the module, as a spawned worker of a DataLoader gets it pickled."""
    return sequences.collate([TokenizedPair(**row) for row in rows], shares, multiple)


def _encoder(stage: Stage, pair_tokenizer: PairTokenizer, chat: Any, config: RunConfig, seed: int) -> PairEncoder:
    if stage == "pretrain":
        return sequences.pretrain_encoder(pair_tokenizer, chat)
    if stage == "finetune":
        return sequences.finetune_encoder(pair_tokenizer, config.lm_weight, config.modes, seed)
    if stage == "reason":
        return reason_encoder(pair_tokenizer, chat, config.lambda_correct)
    if stage == "prove":
        return prove_encoder(pair_tokenizer, chat)
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
    if stage in _LANGUAGE:
        loss = objectives.language_modelling(model)
    elif stage == "finetune":
        if config.lm_weight:
            objectives.unbiased_head(model)
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
    batch = _collator(config)(list(islice(trainer.train_dataset, _PAIRS_OF_CHECK)))
    loss = lora.trained_loss(trainer, batch)
    with staged_folder(folder / "adapter", trainer.args.should_save) as staged:
        trainer.save_model(str(staged))
        if trainer.args.should_save:
            write_record(trainer.model.config, staged)
    if trainer.is_world_process_zero():
        # Otherwise ZeRO-3 would shard the loaded model and wait for the other processes.
        unset_hf_deepspeed_config()
        base = _load(stage, config, dtype, hub)
        record_prompt(base.config, pair_tokenizer, config.include_reasoning, config.modes)
        # As the Trainer does for a model that it saves itself.
        base.config.pad_token_id = trainer.processing_class.pad_token_id
        merged = merge_adapted(load_adapted(base, str(folder / "adapter")))
        _set_objective(merged, stage, pair_tokenizer, config)
        lora.check_merged(merged, batch, loss, lora.rounding(trainer, dtype), folder / "adapter")
        check_weights(merged, "the merged model")
        with staged_model(folder) as staged:
            merged.save_pretrained(staged)
            trainer.processing_class.save_pretrained(staged)
