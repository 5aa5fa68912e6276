"""Makes the comparer of a judge from a checkpoint or from a loaded model."""

import logging
import os
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from gram_fast.comparing.label_comparer import LabelComparer
from gram_fast.comparing.replicas import Replicas
from gram_fast.devices import find_devices, on_device
from gram_fast.errors import BackendError, InputError
from gram_fast.models.callers import plain_model
from gram_fast.models.checkpoint import (
    find_template,
    load_config,
    recorded_modes,
    records_template,
    warn_of_another_prompt,
)
from gram_fast.models.loading import load_runners
from gram_fast.models.next_tokens import NextTokens
from gram_fast.models.options import JudgeOptions
from gram_fast.models.tokenizer import load_tokenizer
from gram_fast.models.transformers_runner import TransformersRunner
from gram_fast.scoring.runner import Runner
from gram_fast.scoring.surroundings import sheltered
from gram_fast.text.prompts import PairTemplate, preset_names
from gram_fast.text.tokens import PairTokenizer

log = logging.getLogger(__name__)


@sheltered
def load_comparer(
    name: str, options: JudgeOptions, *, reasons: bool = False
) -> LabelComparer | Replicas[LabelComparer]:
    """Loads the comparer of a checkpoint, a folder or a name on the hub; with several devices, one replica on each.

    It is pickled as this call, its files by their whole paths. `reasons`: its prompts end where a rationale begins.
    Raises errors like PairwiseJudge.from_pretrained, and InputError on a template with rationales without `reasons`.
    """
    devices = find_devices(options.device)
    if options.tensor_parallel and len(devices) > 1:
        raise BackendError(f"tensor_parallel=True: expected one device a process, got {len(devices)}")
    config = load_config(name, **options.hub)
    tokenizer = load_pair_tokenizer(name, config, options, reasons=reasons)
    # load_runners is lazy: each runner is checked before the next is loaded.
    comparers = [
        _comparer_of(tokenizer, runner, options, name, config)
        for runner in load_runners(name, config, tokenizer.label_ids, devices, options)
    ]
    _warn_of_next_tokens(comparers[0], config)
    reload = partial(load_comparer, whole_path(name), with_whole_paths(options), reasons=reasons)
    return replace(comparers[0], reload=reload) if len(comparers) == 1 else Replicas(comparers, reload)


def with_whole_paths(options: JudgeOptions) -> JudgeOptions:
    """The same options with whole paths of the files that are here, for a process that runs elsewhere."""
    preset = options.preset if options.preset in ("auto", *preset_names()) else whole_path(options.preset)
    return replace(options, preset=preset, tokenizer=whole_path(options.tokenizer))


def whole_path(name: Any) -> Any:
    """The whole path of a file or folder that is there; anything else, such as a name on the hub, as it is."""
    return os.path.abspath(name) if isinstance(name, str | os.PathLike) and os.path.exists(name) else name


@sheltered
def comparer_of_model(
    model: nn.Module, tokenizer: Any, options: JudgeOptions, *, reasons: bool = False
) -> LabelComparer:
    """Makes the comparer of a caller's transformers model, on its device, and its tokenizer.

    Uses the options preset, chat_template_kwargs, include_reasoning, attention, max_batch_tokens and max_length.
    `reasons` as for `load_comparer`. Raises errors like PairwiseJudge.from_pretrained, and those of `plain_model`.
    """
    model = plain_model(model)
    pair_tokenizer = _pair_tokenizer(tokenizer, model.config, options, reasons)
    runner = TransformersRunner(model, pair_tokenizer.label_ids, options.attention, may_change=True)
    name = str(getattr(model, "name_or_path", ""))
    comparer = _comparer_of(pair_tokenizer, runner, options, name, model.config)
    _warn_of_next_tokens(comparer, model.config)
    return comparer


def load_template(name: str, options: JudgeOptions) -> PairTemplate:
    """The template of a checkpoint's judge. Raises errors like `load_comparer`."""
    return find_template(options.preset, load_config(name, **options.hub), options.chat_template_kwargs)


def load_pair_tokenizer(name: str, config: Any, options: JudgeOptions, *, reasons: bool = False) -> PairTokenizer:
    """Loads the tokenizer of a checkpoint with the judge's template. Raises errors like `load_comparer`."""
    return _pair_tokenizer(load_tokenizer(name, options.tokenizer, **options.hub), config, options, reasons)


def _pair_tokenizer(tokenizer: Any, config: Any, options: JudgeOptions, reasons: bool) -> PairTokenizer:
    template = find_template(options.preset, config, options.chat_template_kwargs)
    if template.reasons and not reasons:
        raise InputError(
            f"preset {template.preset or 'given'}: the judge writes a rationale before its verdict: expected "
            "gram_fast.ReasoningJudge"
        )
    if reasons and not template.reasons:
        # What the judge writes is a verdict at once, behind the prompt that it was trained with.
        kwargs = {"enable_thinking": False, **template.chat_template_kwargs}
        template = replace(template, reasons=True, chat_template_kwargs=kwargs)
    pair_tokenizer = PairTokenizer(tokenizer, template)
    warn_of_another_prompt(config, pair_tokenizer, options.include_reasoning)
    return pair_tokenizer


def _comparer_of(
    tokenizer: PairTokenizer, runner: Runner, options: JudgeOptions, name: str, config: Any
) -> LabelComparer:
    budget = None if options.max_batch_tokens == "auto" else options.max_batch_tokens
    return LabelComparer.of(tokenizer, runner, budget, options.max_length, name, recorded_modes(config))


def _warn_of_next_tokens(comparer: LabelComparer, config: Any) -> None:
    """Logs a warning where the model does not expect a label behind the prompt.

    A judge used with the prompt that it records needs none: training compares its two labels with each other alone.
    """
    template = comparer.tokenizer.template
    if not template.reasons and not records_template(config, template):
        with on_device(comparer.runner.device):
            problem = NextTokens.of(comparer.tokenizer, comparer.runner).problem
        if problem:
            log.warning(problem)
