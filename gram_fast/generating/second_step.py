"""The second step: reads label logits behind rationales, all of them at once.

The token tree holds prompt | rationale | answer prefix of every vote, so that the votes of a presentation share its
prompt, and presentations share what they have in common.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gram_fast.comparing.label_comparer import LabelComparer
from gram_fast.devices import on_device
from gram_fast.errors import NumericalError
from gram_fast.generating.generator import Generation, Token
from gram_fast.generating.verdicts import Verdict
from gram_fast.results import ForwardStats
from gram_fast.scoring.surroundings import sheltered
from gram_fast.text.encoded import EncodedRound, EncodedTexts, Presentation
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokens import Ids


@dataclass(frozen=True)
class Thought:
    """A rationale and what it is about."""

    presentation: Presentation
    text: str
    """The rationale with the answer prefix behind it."""


def text_before_label(verdict: Verdict, template: PairTemplate) -> str:
    """A rationale with the answer prefix behind it, up to the label.

    One that was cut gets the end of line that stands before a prefix of several lines.
    """
    is_torn = verdict.problem is not None and verdict.rationale[-1:].strip() != ""
    end = "\n" if is_torn and len(template.answer_prefix.strip().splitlines()) > 1 else ""
    return verdict.rationale + end + template.answer_prefix


@sheltered
def label_margins(
    comparer: LabelComparer, encoded: EncodedTexts, thoughts: Sequence[Thought]
) -> tuple[NDArray[np.float64], ForwardStats]:
    """Computes logit of the first label less that of the second behind thoughts -> float64 [P], and the cost.

    Those of more than the model's tokens have NaN. `encoded`: the texts of the presentations, all of the call. Raises
    NumericalError where logits are not finite.
    """
    started = time.perf_counter()
    limit = comparer.runner.max_length
    margins = np.full(len(thoughts), np.nan)
    with comparer.engine.request(encoded.head_ids) as request:
        answers = comparer.tokenizer.answer_ids([thought.text for thought in thoughts])
        made = encoded.round([thought.presentation for thought in thoughts], 0)
        sizes = np.array([len(ids) for ids in made.segments])
        lengths = len(encoded.head_ids) + sizes[made.sequences].sum(axis=1) + list(map(len, answers))
        fits = np.flatnonzero(lengths <= limit)
        if len(fits):
            request.add(_continued(made, answers, fits))
            with on_device(comparer.runner.device):
                logits = request.score(more_rounds=False)
            if not np.isfinite(logits).all():
                bad = logits[~np.isfinite(logits).all(axis=1)][0].tolist()
                raise NumericalError(
                    f"the model returned label logits {bad} behind a rationale, expected finite numbers"
                )
            margins[fits] = logits[:, 0].astype(np.float64) - logits[:, 1]
        stats = request.stats(time.perf_counter() - started)
    return margins, stats


def _continued(made: EncodedRound, answers: Sequence[Ids], kept: NDArray[np.int64]) -> EncodedRound:
    """The kept sequences of a round with an answer behind each, whose prompts are shared."""
    numbers = len(made.segments) + np.arange(len(kept), dtype=np.int32)
    return EncodedRound(
        segments=[*made.segments, *(answers[k] for k in kept)],
        sequences=np.column_stack([made.sequences[kept], numbers]).astype(np.int32),
        reusable=made.reusable + 1,
    )


def margin_of_tokens(generation: Generation, verdict: Verdict, labels: tuple[str, str]) -> float | None:
    """Reads the same from the log probabilities that an engine gives at the verdict.

    None without a verdict, and where no token is sure to begin with its label. Where one of the labels is not among the
    tokens that the engine gives, that label counts as the least likely of them: the margin is that much or more.
    """
    token = _token_of_label(generation, verdict, labels)
    if token is None or verdict.label is None:
        return None
    known = [_log_sum([lp for text, lp in token.logprobs.items() if text.strip() == label]) for label in labels]
    if known[verdict.label] is None:
        return None
    first, second = (min(token.logprobs.values()) if logprob is None else logprob for logprob in known)
    return first - second


def _token_of_label(generation: Generation, verdict: Verdict, labels: tuple[str, str]) -> Token | None:
    """The token that begins with the verdict's label; None where it is not sure which one does.

    It is found from the end: from the label on, the tokens must have the characters that the text has, as far as those
    are `_sure`.
    """
    if verdict.label_at is None or generation.tokens is None:
        return None
    wanted, found = _sure(generation.text[verdict.label_at :], labels), ""
    for token in reversed(generation.tokens):
        found = _sure(token.text, labels) + found
        if len(found) >= len(wanted):
            return token if found == wanted else None
    return None


def _sure(text: str, labels: tuple[str, str]) -> str:
    """The characters that an engine's tokens have as its text has them.

    White space may be taken away, and any other than ASCII be divided among tokens that each have some text for it.
    """
    kept = "".join(labels)
    return "".join(c for c in text if (c.isascii() or c in kept) and not c.isspace())


def _log_sum(logprobs: Sequence[float]) -> float | None:
    return float(np.logaddexp.reduce(logprobs)) if logprobs else None
