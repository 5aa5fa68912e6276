"""Prover: writes proofs of labels and chooses one of each pair, which becomes the rationale of its label (GRAM-R2)."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gram_fast.errors import GramFastError, InputError
from gram_fast.generating.generator import Generation, GenerationRequest, Sampling, TextGenerator
from gram_fast.generating.loading import load_engine
from gram_fast.generating.options import ReasoningOptions
from gram_fast.generating.transformers_generator import TransformersGenerator
from gram_fast.generating.verdicts import OVER_THE_LIMIT
from gram_fast.models.checkpoint import find_template, load_config
from gram_fast.models.options import JudgeOptions
from gram_fast.models.supported import plain_attention_span, plain_output_embedding
from gram_fast.models.tokenizer import load_tokenizer
from gram_fast.scoring.surroundings import sheltered
from gram_fast.text.digest import digest
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokens import PairTokenizer
from gram_fast.training.data.answers import early_end
from gram_fast.training.data.formats import Label
from gram_fast.training.data.records import PairRecord
from gram_fast.training.proofs import prover_template, read_proof
from gram_fast.training.self_training.loading import load_on_device
from gram_fast.training.self_training.proof_scores import score_proofs, separator

OTHER_LABEL = "the other label"
NO_PROOF = "not of the form"
NO_SCORE = "no score"

LABELS: tuple[Label, Label] = ("A", "B")


@dataclass(frozen=True)
class Proven:
    """What the proofs of a pair came to."""

    rationale: str | None
    """Text of the best proof between its first and last sentence, without white space at its ends; None where no proof
    can be used."""
    score: float | None
    """`ProofScore.score` of the best proof."""
    written: int
    unusable: Mapping[str, int] = field(default_factory=dict)
    """Proofs that cannot be used, by reason, in the order of the reasons' names."""

    @property
    def recorded(self) -> dict[str, Any]:
        """The fields of an output row, JSON values."""
        counts = {"written": self.written, "usable": self.written - sum(self.unusable.values()), **self.unusable}
        return {"rationale": self.rationale, "score": self.score, "proofs": counts}


def read_rationale(generation: Generation, label: Label, template: PairTemplate) -> tuple[str, str]:
    """Reads a proof -> (its rationale, nothing) or (nothing, why it cannot be used).

    `template`: the judge's; a rationale that would end where its answer does not cannot be used.
    """
    if generation.is_cut:
        return "", OVER_THE_LIMIT
    try:
        body = read_proof(generation.text, label).strip()
    except InputError:
        other: Label = "B" if label == "A" else "A"
        return "", OTHER_LABEL if _is_proof(generation.text, other) else NO_PROOF
    return (body, "") if body and not early_end(template, body) else ("", NO_PROOF)


def _is_proof(text: str, label: Label) -> bool:
    try:
        read_proof(text, label)
    except InputError:
        return False
    return True


def choose(rationales: Sequence[str], scores: Sequence[float]) -> tuple[str, float] | None:
    """The rationale with the highest score, of equal ones the first; None where none has a finite score."""
    finite = [(score, -k) for k, score in enumerate(scores) if score > -float("inf")]
    if not finite:
        return None
    score, place = max(finite)
    return rationales[-place], score


@dataclass(frozen=True, repr=False)
class Prover:
    """A proving model: an engine that writes with it, and the model itself, which says how likely proofs are."""

    generator: TextGenerator
    model: Any
    template: PairTemplate
    """Of the judge whose labels it proves."""
    tokenizers: Mapping[Label, PairTokenizer]
    """By label, for the prompts that ask for its proof."""
    sampling: Sampling
    proofs: int
    """Proofs that are written for each pair."""
    separator: int
    """Token behind which a proof stands alone."""
    max_length: int
    """Most tokens of a prompt with its proof."""
    max_length_reason: str

    @property
    def prompt_digest(self) -> str:
        """Digest of the prompts' whole texts, dates of the chat template included."""
        return digest([self.tokenizers[label].text.digest for label in LABELS])

    def prove(
        self,
        pairs: Sequence[PairRecord],
        seeds: Sequence[int],
        on_proven: Callable[[int], object] = lambda count: None,
    ) -> list[Proven | GramFastError]:
        """Writes proofs of the labels of pairs -> the best of each, or why there is none to choose from.

        `seeds`: of the proofs of each pair, in [0, 2**31). `on_proven` is told of pairs that are done. A prompt that is
        too long, or that the engine refuses, is its pair's error. Raises errors of the engine, and of `score_proofs`.
        """
        found: list[Proven | GramFastError] = [InputError("no proofs were written")] * len(pairs)
        requests: dict[int, GenerationRequest] = {}
        for number, (pair, seed) in enumerate(zip(pairs, seeds, strict=True)):
            request = self._request(pair, seed)
            if isinstance(request, GramFastError):
                found[number] = request
                on_proven(1)
            else:
                requests[number] = request
        written: dict[int, list[Generation]] = {}
        places = list(requests)
        with closing(self.generator.generate(list(requests.values()), self.sampling)) as generated:  # type: ignore[type-var]
            for place, answers in generated:
                if isinstance(answers, GramFastError):
                    found[places[place]] = type(answers)(f"{pairs[places[place]].where}: {answers}")
                    on_proven(1)
                else:
                    written[places[place]] = answers
        # Once the engine has ended: it may have the model, with an attention of its own, until then.
        for number, answers in sorted(written.items()):
            found[number] = self._choose(pairs[number], requests[number], answers)
            on_proven(1)
        return found

    def _request(self, pair: PairRecord, seed: int) -> GenerationRequest | InputError:
        tokenizer = self.tokenizers[_label(pair)]
        row = (pair.prompt, pair.response_a, pair.response_b)
        room = self.max_length - self.sampling.max_new_tokens
        if beginning := next(filter(None, (tokenizer.long_beginning(text, room) for text in row)), None):
            return self._too_long(pair, f"at least {beginning[1]}")
        (ids,) = tokenizer.whole_ids([row])
        if len(ids) > room:
            return self._too_long(pair, str(len(ids)))
        return GenerationRequest(tokenizer.template.fill(*row), ids, self.proofs, seed)

    def _too_long(self, pair: PairRecord, length: str) -> InputError:
        return InputError(
            f"{pair.where}: the prover's prompt has {length} tokens: expected at most {self.max_length} "
            f"({self.max_length_reason}) less max_new_tokens {self.sampling.max_new_tokens}"
        )

    def _choose(self, pair: PairRecord, request: GenerationRequest, written: Sequence[Generation]) -> Proven:
        label = _label(pair)
        assert request.ids is not None
        read = [(generation, *read_rationale(generation, label, self.template)) for generation in written]
        unusable = Counter(problem for _, _, problem in read if problem)
        usable = [(generation.text, rationale) for generation, rationale, problem in read if not problem]
        ids = self.tokenizers[label].answer_ids([text for text, _ in usable])
        fits = [k for k, proof in enumerate(ids) if len(request.ids) + len(proof) <= self.max_length]
        unusable[OVER_THE_LIMIT] += len(usable) - len(fits)
        scored = score_proofs(self.model, request.ids, [ids[k] for k in fits], self.separator) if fits else []
        scores = [one.score for one in scored]
        unusable[NO_SCORE] += sum(score == -float("inf") for score in scores)
        best = choose([usable[k][1] for k in fits], scores)
        counts = {reason: count for reason, count in sorted(unusable.items()) if count}
        rationale, score = best or (None, None)
        return Proven(rationale, score, len(written), counts)


def _label(pair: PairRecord) -> Label:
    if pair.preferred is None:
        raise InputError(f"{pair.where}: expected a labeled pair, this one has no label")
    return pair.preferred


def prover_prompt(name: str, judge: JudgeOptions) -> PairTemplate:
    """The template of the judge whose labels a prover's checkpoint proves."""
    return find_template(judge.preset, load_config(name, **judge.hub), judge.chat_template_kwargs)


def check_room(config: Any, max_new_tokens: int) -> tuple[int, str]:
    """Most tokens of a prompt with its proof, and the reason for that limit. `config`: the checkpoint's.

    Raises InputError where max_new_tokens leaves no room for a prompt.
    """
    limit, reason = plain_attention_span(config.get_text_config(decoder=True))
    if max_new_tokens >= limit:
        raise InputError(f"max_new_tokens: expected fewer than {limit} ({reason}) less a prompt, got {max_new_tokens}")
    return limit, reason


@sheltered
def load_prover(
    name: str,
    judge: JudgeOptions,
    options: ReasoningOptions,
    sampling: Sampling,
    proofs: int,
    max_batch_tokens: int | None = None,
) -> Prover:
    """Loads the prover of a checkpoint.

    Args:
        name: a folder, or a name on the hub.
        judge: preset, chat_template_kwargs, tokenizer, device, dtype and what the hub wants are used.
        options: the engine, with what a server wants.
        sampling: how proofs are drawn.
        proofs: how many are written for each pair.
        max_batch_tokens: most tokens of prompts and proofs that an engine with this model writes side by side; None: as
            many as memory allows.

    Raises InputError on a wrong limit, several devices and a verifier's template, and errors of loading.
    """
    config = load_config(name, **judge.hub)
    template = find_template(judge.preset, config, judge.chat_template_kwargs)
    if template.is_verifier:
        raise InputError("preset: expected a prompt that shows a pair, got a verifier's, whose labels are not proven")
    limit, reason = check_room(config, sampling.max_new_tokens)
    tokenizer = load_tokenizer(name, judge.tokenizer, **judge.hub)
    is_shared = options.engine in ("transformers", "transformers-continuous")
    # Before the model, as it may not be there.
    apart = None if is_shared else load_engine(name, judge, options)
    model = load_on_device(name, judge)
    plain_output_embedding(model)
    continuous = options.engine == "transformers-continuous"
    own = partial(TransformersGenerator, model, tokenizer, continuous=continuous, max_batch_tokens=max_batch_tokens)
    return Prover(
        generator=apart or own(),
        model=model,
        template=template,
        tokenizers={label: PairTokenizer(tokenizer, prover_template(template, label)) for label in LABELS},
        sampling=sampling,
        proofs=proofs,
        separator=separator(tokenizer),
        max_length=limit,
        max_length_reason=reason,
    )
