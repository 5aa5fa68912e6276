"""Comparer of a GRAM judge: reads P(first better) from a model's two label logits (arXiv 2506.14175)."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gram_fast.comparing.comparer import Answers, Rounds
from gram_fast.comparing.orders import Orders, shown
from gram_fast.comparing.preference import preference
from gram_fast.devices import on_device
from gram_fast.errors import InputError, NumericalError, UnsupportedModelError
from gram_fast.models.finite import why_not_finite
from gram_fast.models.known_answers import KnownAnswer, known_answers, rounding
from gram_fast.results import ForwardStats, Preference
from gram_fast.scoring.engine import Engine, ScoringRequest
from gram_fast.scoring.runner import Runner
from gram_fast.text.encoded import EncodedRound, EncodedTexts, Presentation
from gram_fast.text.group import Group
from gram_fast.text.tokens import PairTokenizer


@dataclass(frozen=True)
class LabelComparer:
    """Compares candidates by the label logits of one model, in forwards over shared prefixes."""

    tokenizer: PairTokenizer
    runner: Runner
    engine: Engine
    max_length: int
    max_length_reason: str
    known_answers: list[KnownAnswer]
    """Results of the check on a known pair, in orders ab and ba; a verifier's on each of the two responses."""

    @classmethod
    def of(
        cls,
        tokenizer: PairTokenizer,
        runner: Runner,
        max_batch_tokens: int | None = None,
        max_length: int | None = None,
    ) -> "LabelComparer":
        """Makes a comparer from a runner, and checks its logits on a known pair.

        `max_batch_tokens`: most tokens of one pass; None chooses by device. `max_length`: most tokens of one
        presentation; None for what the model allows. Raises UnsupportedModelError where the logits are wrong, and
        NumericalError where the model's own are not finite.
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
        """Most tokens of one pass; halved whenever memory runs out."""
        return self.engine.budget

    @property
    def verifies(self) -> bool:
        """Whether the template shows one response rather than a pair."""
        return self.tokenizer.template.is_verifier

    def flags(self, text: str) -> tuple[str, ...]:
        """Finds the lines of the judge's template and the special tokens that `text` contains."""
        return self.tokenizer.flags(text)

    @contextmanager
    def open(
        self, groups: Sequence[Group], orders: Orders, *, num_pairs: Sequence[int], has_one_round: bool
    ) -> "Iterator[LabelSession]":
        """Tokenizes the groups, then waits for the engine and holds it until the end of the context.

        Raises InputError on a text that is so long that it need not be tokenized to know that it is over `max_length`.
        """
        started = time.perf_counter()
        for group in groups:
            self._check_beginnings(group)
        encoded = EncodedTexts.of(self.tokenizer, [group.prompt for group in groups], [g.texts for g in groups])
        with self.engine.request(encoded.head_ids) as request:
            yield LabelSession(self, groups, orders, not has_one_round, encoded, request, started)

    def _check_beginnings(self, group: Group) -> None:
        for number, text in enumerate((*group.texts, group.prompt)):
            if found := self.tokenizer.long_beginning(text, self.max_length):
                name = (*(group.names[first] for first in group.first_of), group.prompt_name)[number]
                characters, tokens = found
                raise InputError(
                    f"{name}: the text has {len(text)} characters, of which the first {characters} alone are {tokens} "
                    f"tokens, the limit is {self.max_length} ({self.max_length_reason})"
                )


@dataclass(frozen=True)
class LabelSession:
    """One call of a LabelComparer."""

    comparer: LabelComparer
    groups: Sequence[Group]
    orders: Orders
    has_more_rounds: bool
    encoded: EncodedTexts
    request: ScoringRequest
    started: float

    def compare(self, rounds: Rounds) -> Answers:
        """Compares all pairs of all groups at once, packed together."""
        pairs = [(g, i, j) for g, of_group in rounds.items() for i, j in of_group]
        presentations: list[Presentation] = (
            [(g, i) for g, i, _ in pairs]
            if self.comparer.verifies
            else [(g, *ab) for g, i, j in pairs for ab in shown(i, j, self.orders)]
        )
        with on_device(self.comparer.runner.device):
            logits = self._logits(presentations)
        per_pair = logits.reshape(len(pairs), -1, 2)
        answers: dict[int, list[Preference]] = {g: [] for g in rounds}
        for (g, i, j), of_pair in zip(pairs, per_pair, strict=True):
            answers[g].append(preference(i, j, of_pair, self.orders))
        return answers

    @property
    def stats(self) -> ForwardStats:
        """Cost of the call so far."""
        return self.request.stats(time.perf_counter() - self.started)

    def _logits(self, presentations: list[Presentation]) -> NDArray[np.float32]:
        """Computes label logits [P, 2]. Raises InputError on a presentation that is too long, NumericalError on NaN."""
        limit, reason = self.comparer.max_length, self.comparer.max_length_reason
        made = self.encoded.round(presentations, self.request.num_segments)
        if self.comparer.tokenizer.num_ids > self.comparer.runner.num_embeddings:
            self._check_ids(made)
        leaves = self.request.add(made)
        lengths = self.request.lengths(leaves)
        longest = int(lengths.argmax())
        if lengths[longest] > limit:
            raise InputError(
                f"{self._name(presentations[longest])}: the {'text' if self.comparer.verifies else 'pair'} has "
                f"{lengths[longest]} tokens, the limit is {limit} ({reason})"
            )
        logits = self.request.score(leaves, self.has_more_rounds)
        bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(bad):
            raise NumericalError(
                f"{self._name(presentations[bad[0]])}: the model returned label logits {logits[bad[0]].tolist()}, "
                f"expected finite numbers ({len(bad)} of {len(presentations)} comparisons)"
            )
        return logits

    def _check_ids(self, made: EncodedRound) -> None:
        """Raises InputError on a token that the model has no embedding of, with the text that it stands in."""
        rows = self.comparer.runner.num_embeddings
        highest = max((int(ids.max(initial=0)) for ids in made.segments), default=0)
        if highest < rows:
            return
        tokenizer = self.comparer.tokenizer
        named = [(group.prompt_name, group.prompt) for group in self.groups]
        named += [(g.names[k], text) for g in self.groups for k, text in zip(g.first_of, g.texts, strict=True)]
        alone = tokenizer.ids_between(("", ""), [(text,) for _, text in named])
        places = [name for (name, _), ids in zip(named, alone, strict=True) if ids.max(initial=0) >= rows]
        raise InputError(
            f"{places[0] if places else 'a text'}: it has token {highest}, {tokenizer.token_text(highest)!r}, but the "
            f"model has embeddings of {rows} tokens"
        )

    def _name(self, presentation: Presentation) -> str:
        g, *responses = presentation
        group = self.groups[g]
        names = [group.names[group.first_of[k]] for k in responses]
        return names[0] if self.comparer.verifies else f"{names[0]} in slot A with {names[1]} in slot B"


def _check(answers: Sequence[KnownAnswer], runner: Runner) -> None:
    """Raises NumericalError when plain logits are not finite, UnsupportedModelError when ours differ from them."""
    for answer in answers:
        if not np.isfinite(answer.plain_logits).all():
            raise NumericalError(
                f"{type(runner.model).__name__} gives label logits {answer.plain_logits} in a plain forward: "
                f"{why_not_finite(runner)}"
            )
        if not answer.is_right:
            raise UnsupportedModelError(
                f"{type(runner.model).__name__} cannot be scored by prefix sharing on {runner.device} with "
                f"attention {runner.attention!r}: its label logits are {answer.plain_logits} in a plain forward "
                f"and {answer.logits} here, where rounding to {rounding(runner)[0]} explains {answer.tolerance:.1e}"
            )
