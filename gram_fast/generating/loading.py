"""Makes the comparer of a judge that reasons: of a checkpoint and an engine, a model in memory, or a server."""

import os
from dataclasses import fields, replace
from functools import partial
from typing import Any

from torch import nn

from gram_fast.comparing.label_comparer import LabelComparer
from gram_fast.comparing.loading import (
    comparer_of_model,
    load_comparer,
    load_pair_tokenizer,
    load_template,
    whole_path,
    with_whole_paths,
)
from gram_fast.comparing.replicas import Replicas
from gram_fast.errors import BackendError, InputError, shown_value
from gram_fast.generating.comparer import ModelTurn, ReasoningComparer
from gram_fast.generating.generator import TextGenerator
from gram_fast.generating.options import ReasoningOptions, check_template
from gram_fast.generating.transformers_generator import TransformersGenerator
from gram_fast.models.checkpoint import load_config
from gram_fast.models.options import JudgeOptions
from gram_fast.models.supported import attention_span
from gram_fast.scoring.surroundings import sheltered
from gram_fast.text.prompts import PairTemplate

# Most tokens of an answer, by default: what the scripts of GRAM-R2 ask for.
_MAX_NEW_TOKENS = 2048
# Tokens that a rationale may have more when its text is encoded again than when it was written.
_SPARE = 16


@sheltered
def load_reasoning_comparer(
    name: str, judge: JudgeOptions, options: ReasoningOptions
) -> ReasoningComparer | Replicas[ReasoningComparer]:
    """Makes the comparer of a checkpoint; of several devices, each writes and reads with its own copy of the model.

    Raises errors like `ReasoningJudge.from_pretrained`.
    """
    # Where servers write, the name is also what they call the model.
    place = name if options.urls else whole_path(name)
    reload = partial(load_reasoning_comparer, place, with_whole_paths(judge), options)
    if not options.second_step:
        return replace(_without_second_step(name, judge, options), reload=reload)
    is_shared = options.engine in ("transformers", "transformers-continuous")
    if is_shared:
        if judge.dense_only or judge.runner == "dense":
            asked = judge.dense_only[0] if judge.dense_only else "runner='dense'"
            raise BackendError(
                f"{asked} is of runner 'dense': expected it beside another engine, as {options.engine!r} writes and "
                "reads with one model, which runner 'transformers' runs"
            )
        judge = replace(judge, runner="transformers")
    if judge.preset != "auto":
        check_template(PairTemplate.load(judge.preset), options)
    # One engine for all devices, as a server and vLLM have their own. It comes first: it may not be there.
    generator = None if is_shared else load_engine(name, judge, options)
    loaded = load_comparer(name, judge, reasons=True)
    comparers = loaded.comparers if isinstance(loaded, Replicas) else (loaded,)
    made = [
        _sharing(comparer, options) if generator is None else _reading(generator, comparer, options)
        for comparer in comparers
    ]
    found = [replace(comparer, reload=reload) for comparer in made]
    return found[0] if len(found) == 1 else Replicas(found, reload)


@sheltered
def reasoning_comparer_of_model(
    model: nn.Module, tokenizer: Any, judge: JudgeOptions, options: ReasoningOptions
) -> ReasoningComparer:
    """Makes the comparer of a caller's transformers model, which writes and reads. Raises as `comparer_of_model`."""
    return _sharing(comparer_of_model(model, tokenizer, judge, reasons=True), options)


def comparer_of_server(model: str, template: PairTemplate, options: ReasoningOptions) -> ReasoningComparer:
    """Makes the comparer of a server's model, of which nothing is here: it is sent user messages.

    Raises errors like `ReasoningJudge.from_server`.
    """
    template = replace(template, reasons=True)
    check_template(template, options)
    generator = _server(model, options, by_ids=False)
    made = ReasoningComparer(generator, template, options, options.max_new_tokens or _MAX_NEW_TOKENS)
    return replace(made, reload=partial(comparer_of_server, model, template, options))


def _without_second_step(name: str, judge: JudgeOptions, options: ReasoningOptions) -> ReasoningComparer:
    """The comparer of an engine that gives the labels' probabilities itself.

    For vLLM the tokenizer is loaded here; of a server's model nothing is, as it need not be a checkpoint that is here.
    """
    if options.urls:
        _check_nothing_is_loaded(judge)
        return comparer_of_server(name, _template_of_server(name, judge), options)
    if options.engine in ("transformers", "transformers-continuous"):
        raise InputError(
            f"second_step=False spares a model beside the engine: expected it with vllm or URLs, as {options.engine!r} "
            "has one model for both"
        )
    config = load_config(name, **judge.hub)
    tokenizer = load_pair_tokenizer(name, config, judge, reasons=True)
    check_template(tokenizer.template, options)
    limit, _ = attention_span(config.get_text_config(decoder=True))
    max_new_tokens = _max_new_tokens(limit, options)
    generator = load_engine(name, judge, options)
    return ReasoningComparer(generator, tokenizer.template, options, max_new_tokens, tokenizer)


def _check_nothing_is_loaded(judge: JudgeOptions) -> None:
    """Raises InputError on options of a checkpoint that is loaded here, of which a server's model has none."""
    for option in fields(JudgeOptions):
        if option.name not in ("preset", "include_reasoning") and getattr(judge, option.name) != option.default:
            raise InputError(
                f"{option.name}: expected its default with second_step=False and a server, as nothing is loaded here, "
                f"got {shown_value(getattr(judge, option.name))}"
            )


def _template_of_server(name: str, judge: JudgeOptions) -> PairTemplate:
    """The template that is asked for; by default what a checkpoint of that name here records, else gram-r2."""
    if judge.preset == "auto" and os.path.isdir(name):
        return load_template(name, judge)
    return PairTemplate.load("gram-r2" if judge.preset == "auto" else judge.preset)


def _sharing(labels: LabelComparer, options: ReasoningOptions) -> ReasoningComparer:
    """The comparer of a model that both writes and reads."""
    _check_draws(bool(labels.runner.model.generation_config.do_sample), options)
    generator = TransformersGenerator(
        labels.runner.model,
        labels.tokenizer.plain,
        continuous=options.engine == "transformers-continuous",
    )
    return replace(_reading(generator, labels, options), turn=ModelTurn())


def _check_draws(is_sampled: bool, options: ReasoningOptions) -> None:
    """Raises InputError on several votes where the checkpoint's generation configuration draws none."""
    if options.votes > 1 and options.temperature is None and not is_sampled:
        raise InputError(
            f"temperature: the checkpoint's generation configuration takes the most likely token, so that "
            f"{options.votes} votes would be one vote {options.votes} times: expected a temperature above 0, or votes=1"
        )


def _reading(generator: TextGenerator, labels: LabelComparer, options: ReasoningOptions) -> ReasoningComparer:
    """The comparer of an engine and of the model that reads the soft verdict."""
    template = labels.tokenizer.template
    check_template(template, options)
    limit, reason = labels.runner.max_length, labels.runner.max_length_reason
    max_new_tokens = _max_new_tokens(limit, options)
    behind = len(labels.tokenizer.answer_ids([template.answer_prefix])[0])
    left = limit - max_new_tokens - behind - _SPARE
    if left < 1:
        raise InputError(f"max_new_tokens: expected fewer than {limit} ({reason}) less a prompt, got {max_new_tokens}")
    if left < labels.max_length:
        reason = f"{reason}, less max_new_tokens {max_new_tokens} and the verdict"
        labels = replace(labels, max_length=left, max_length_reason=reason)
    return ReasoningComparer(generator, template, options, max_new_tokens, labels.tokenizer, labels)


def _max_new_tokens(limit: int, options: ReasoningOptions) -> int:
    return options.max_new_tokens or min(_MAX_NEW_TOKENS, limit // 2)


def load_engine(name: str, judge: JudgeOptions, options: ReasoningOptions) -> TextGenerator:
    """An engine with a model of its own: vLLM in this process, or servers, which are sent token ids."""
    if options.urls:
        return _server(name, options, by_ids=True)
    from gram_fast.generating.vllm_generator import VllmGenerator

    dtype = str(judge.dtype).removeprefix("torch.")
    found = VllmGenerator(name, revision=judge.revision, dtype=dtype, trust_remote_code=judge.trust_remote_code)
    _check_draws(found.is_sampled, options)
    return found


def _server(model: str, options: ReasoningOptions, by_ids: bool) -> TextGenerator:
    from gram_fast.generating.server_generator import ServerGenerator  # httpx takes long to import

    return ServerGenerator(
        options.urls,
        model,
        api_key=options.api_key,
        timeout=options.timeout,
        retries=options.retries,
        concurrency=options.concurrency,
        by_ids=by_ids,
    )
