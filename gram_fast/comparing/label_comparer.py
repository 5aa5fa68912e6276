"""Compares by the two label logits of one model, over the token tree of the call: the comparer of a GRAM judge."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gram_fast.comparing.comparer import Answers, Rounds
from gram_fast.comparing.preference import Orders, preference, shown
from gram_fast.devices import on_device
from gram_fast.errors import InputError, NumericalError, UnsupportedModelError
from gram_fast.models.known_answers import KnownAnswer, known_answers
from gram_fast.results import ForwardStats, Preference
from gram_fast.scoring.engine import Engine, ScoringRequest
from gram_fast.scoring.runner import Runner
from gram_fast.text.encoded import EncodedTexts, Presentation
from gram_fast.text.group import Group
from gram_fast.text.tokens import PairTokenizer


@dataclass(frozen=True)
class LabelComparer:
    """A tokenizer and an engine, the longest pair that they may be given, and the pair that they were checked on."""

    tokenizer: PairTokenizer
    runner: Runner
    engine: Engine
    max_length: int
    max_length_reason: str
    known_answers: list[KnownAnswer]
    """One for each order."""

    @classmethod
    def of(
        cls,
        tokenizer: PairTokenizer,
        runner: Runner,
        max_batch_tokens: int | None = None,
        max_length: int | None = None,
    ) -> "LabelComparer":
        """A comparer over a runner, which is checked on a known answer.

        `max_batch_tokens`: most tokens of one forward, or None for what suits the device; `max_length`: most tokens of
        a pair, or None for what the model allows. Raises UnsupportedModelError where the answer is wrong.
        """
        limit, reason = runner.max_length, runner.max_length_reason
        if max_length is not None and max_length < limit:
            limit, reason = max_length, "max_length"
        with on_device(runner.device):
            answers = known_answers(tokenizer, runner)
            _check(answers, runner)
            return cls(tokenizer, runner, Engine(runner, max_batch_tokens), limit, reason, answers)

    @property
    def tokens_at_once(self) -> int:
        """Most tokens of one forward at present: what was asked for, or less since memory ran out."""
        return self.engine.budget

    def flags(self, text: str) -> tuple[str, ...]:
        """Lines of the judge's template, and texts of special tokens, that `text` contains."""
        return self.tokenizer.flags(text)

    @contextmanager
    def open(
        self, groups: Sequence[Group], orders: Orders, *, num_pairs: Sequence[int], one_round: bool
    ) -> "Iterator[LabelSession]":
        """Tokenizes the groups and takes the engine, when its other callers are done with it."""
        started = time.perf_counter()
        encoded = EncodedTexts.of(self.tokenizer, [group.prompt for group in groups], [g.texts for g in groups])
        with self.engine.request(encoded.head_ids) as request:
            yield LabelSession(self, groups, orders, not one_round, encoded, request, started)


@dataclass(frozen=True)
class LabelSession:
    """One call: its groups, their pieces, and the engine's request."""

    comparer: LabelComparer
    groups: Sequence[Group]
    orders: Orders
    has_more_rounds: bool
    encoded: EncodedTexts
    request: ScoringRequest
    started: float

    def compare(self, rounds: Rounds) -> Answers:
        """Compares all pairs of all groups in one packed round."""
        asked = [(g, i, j) for g, pairs in rounds.items() for i, j in pairs]
        presentations = [(g, a, b) for g, i, j in asked for a, b in shown(i, j, self.orders)]
        with on_device(self.comparer.runner.device):
            logits = self._logits(presentations)
        per_pair = logits.reshape(len(asked), -1, 2)
        answers: dict[int, list[Preference]] = {g: [] for g in rounds}
        for (g, i, j), of_pair in zip(asked, per_pair, strict=True):
            answers[g].append(preference(i, j, of_pair, self.orders))
        return answers

    @property
    def stats(self) -> ForwardStats:
        """What the call has cost so far."""
        return self.request.stats(time.perf_counter() - self.started)

    def _logits(self, presentations: list[Presentation]) -> NDArray[np.float32]:
        """Label logits [P, 2]."""
        limit, reason = self.comparer.max_length, self.comparer.max_length_reason
        leaves = self.request.add(self.encoded.round(presentations, self.request.num_segments))
        lengths = self.request.lengths(leaves)
        longest = int(lengths.argmax())
        if lengths[longest] > limit:
            raise InputError(
                f"{self._name(presentations[longest])}: the pair has {lengths[longest]} tokens, the limit is "
                f"{limit} ({reason})"
            )
        logits = self.request.score(leaves, self.has_more_rounds)
        bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(bad):
            raise NumericalError(
                f"{self._name(presentations[bad[0]])}: the model returned label logits {logits[bad[0]].tolist()}, "
                f"expected finite numbers ({len(bad)} of {len(presentations)} comparisons)"
            )
        return logits

    def _name(self, presentation: Presentation) -> str:
        g, a, b = presentation
        group = self.groups[g]
        return f"{group.names[group.first_of[a]]} in slot A with {group.names[group.first_of[b]]} in slot B"


def _check(answers: Sequence[KnownAnswer], runner: Runner) -> None:
    """Raises UnsupportedModelError when a known answer is wrong."""
    for answer in answers:
        if not answer.is_right:
            raise UnsupportedModelError(
                f"{type(runner.model).__name__} cannot be scored by prefix sharing on {runner.device} with "
                f"attention {runner.attention!r}: its label logits are {answer.plain_logits} in a plain forward "
                f"and {answer.logits} here"
            )
