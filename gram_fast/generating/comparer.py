"""Comparer of a judge that reasons: an engine writes rationales, votes are counted (GRAM-R2, arXiv 2509.02492)."""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from gram_fast.comparing.comparer import Answers, Pairs, Reload, Rounds
from gram_fast.comparing.label_comparer import LabelComparer
from gram_fast.comparing.left_out import left_out, shown_in
from gram_fast.comparing.orders import Orders
from gram_fast.errors import GramFastError, InputError, ServerError
from gram_fast.generating.ballots import Ballot
from gram_fast.generating.generator import Generation, GenerationRequest, Sampling, TextGenerator
from gram_fast.generating.options import TOP_LOGPROBS, ReasoningOptions
from gram_fast.generating.second_step import Thought, label_margins, margin_of_tokens, text_before_label
from gram_fast.generating.verdicts import Verdict, reader
from gram_fast.models.digest import config_digest
from gram_fast.results import ForwardStats, ReasoningStats, total_stats
from gram_fast.scoring.calls import Calls
from gram_fast.scoring.forks import in_forked_children
from gram_fast.text.chat_marks import flags_of
from gram_fast.text.digest import digest
from gram_fast.text.encoded import EncodedTexts
from gram_fast.text.group import Group
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokens import PairTokenizer

log = logging.getLogger(__name__)

# Tokens of a presentation, roughly, and answers that keep an engine busy for each that it writes at once: what cuts
# large work into calls.
_TOKENS, _ROUNDS = 500, 4
_NO_FORWARDS = ForwardStats(comparisons=0, seconds=0.0, tokens_unshared=0, tokens_tree=0, tokens_computed=0, passes=0)


class ModelTurn:
    """The turns of threads at a model that both writes and reads; one after the other."""

    def __init__(self) -> None:
        self._start()
        in_forked_children(self._start)  # a thread of the parent may have had it

    def _start(self) -> None:
        self._lock, self._calls = threading.Lock(), Calls()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Waits for the turn and has it. Raises InputError from within another turn, for which it would wait."""
        with self._calls.open(), self._lock:
            yield


@dataclass(frozen=True, repr=False)
class ReasoningComparer:
    """Compares candidates by what a model writes about them."""

    generator: TextGenerator
    template: PairTemplate
    options: ReasoningOptions
    max_new_tokens: int
    """Most tokens of an answer."""
    tokenizer: PairTokenizer | None = None
    """Where it is here, so that the engine is given token ids; a server without it is given the user message."""
    labels: LabelComparer | None = None
    """Reads the soft verdict; None where the engine gives the labels' probabilities, or nobody does."""
    turn: ModelTurn | None = None
    """Where `generator` and `labels` have one model."""
    reload: Reload | None = None
    """Loads the comparer anew: what it is pickled as."""

    def __repr__(self) -> str:
        preset, options = self.template.preset or "custom", self.options
        return (
            f"{type(self).__name__}({self.generator.name}, preset={preset!r}, votes={options.votes}, "
            f"verdict={options.verdict!r}, labels={self.labels!r})"
        )

    def __reduce__(self) -> tuple[Reload, tuple[()]]:
        if self.reload is None:
            raise InputError(
                "a judge of a model in memory cannot be pickled: expected one of from_pretrained or from_server"
            )
        return self.reload, ()

    def __copy__(self) -> "ReasoningComparer":
        """The comparer itself, as of a LabelComparer."""
        return self

    def __deepcopy__(self, memo: object) -> "ReasoningComparer":
        """The comparer itself, as of a LabelComparer."""
        return self

    @property
    def recorded(self) -> dict[str, Any]:
        """What answers depend on, as found in place of each "auto": JSON values. Of servers not where they are."""
        text = {"prompt_digest": digest([self.template.text, self.template.frame])}
        of_labels = self.labels.recorded if self.labels else text
        if self.labels and self.turn:  # what another engine has for it is known to that alone
            of_labels["generation_digest"] = config_digest(self.labels.runner.model.generation_config)
        return {
            **of_labels,
            **self.options.recorded,
            "engine": "server" if self.options.urls else self.options.engine,
            "max_new_tokens": self.max_new_tokens,
        }

    @property
    def max_length(self) -> int:
        """Most tokens of one presentation, without its answer; where a server alone knows, 0."""
        return self.labels.max_length if self.labels else 0

    @property
    def tokens_at_once(self) -> int:
        """Tokens of presentations that keep the engine busy for a while."""
        return max(1, _ROUNDS * self.generator.at_once * _TOKENS // self.options.votes)

    @property
    def verifies(self) -> bool:
        """Whether the template shows one response rather than a pair."""
        return self.template.is_verifier

    @property
    def markers(self) -> tuple[str, ...]:
        """What `flags` finds, beside marks of chats."""
        return self.tokenizer.markers if self.tokenizer else self.template.markers

    @property
    def sampling(self) -> Sampling:
        """How answers are drawn."""
        wants_logprobs = self.options.verdict == "soft" and self.labels is None
        return Sampling(self.max_new_tokens, self.options.temperature, TOP_LOGPROBS if wants_logprobs else 0)

    def flags(self, text: str) -> tuple[str, ...]:
        """Finds the lines of the template, special tokens and marks of chats that `text` contains."""
        return flags_of(text, self.markers)

    def unfit(self, groups: Sequence[Group], pairs: Sequence[Pairs], orders: Orders) -> dict[str, str]:
        """Finds the texts that are too long with their answers, as in `Comparer`; nothing where a server knows."""
        return self.labels.unfit(groups, pairs, orders) if self.labels else {}

    @contextmanager
    def open(
        self, groups: Sequence[Group], orders: Orders, *, num_pairs: Sequence[int], has_one_round: bool
    ) -> "Iterator[ReasoningSession]":
        """Opens a call. Nothing is written, and no model waited for, before its first round."""
        session = ReasoningSession(self, groups, orders)
        yield session
        session.warn()


@dataclass
class ReasoningSession:
    """One call of a ReasoningComparer."""

    comparer: ReasoningComparer
    groups: Sequence[Group]
    orders: Orders
    started: float = field(default_factory=time.perf_counter)
    forwards: ForwardStats = _NO_FORWARDS
    """Cost of the second step."""
    comparisons: int = 0
    votes: int = 0
    votes_saved: int = 0
    invalid_votes: int = 0
    tokens_generated: int = 0
    unread: int = 0
    """Votes whose rationale is too long for the second step."""
    unlisted: int = 0
    """Verdicts of which the engine gives no log probability that a soft verdict could be made of."""

    def compare(self, rounds: Rounds) -> Answers:
        """Has all pairs of all groups written about at once, counts the votes, and draws more where they are needed.

        Raises InputError on a pair that is too long, or that the engine refuses, and what the engine raises.
        """
        self._check_lengths(rounds)
        options = self.comparer.options
        ballots = {
            g: [Ballot.of(i, j, self.orders, options.votes, options.adaptive, self.comparer.verifies) for i, j in pairs]
            for g, pairs in rounds.items()
        }
        total = sum(ballot.total for of_group in ballots.values() for ballot in of_group)
        # The bar shows on a terminal, when the call takes longer than two seconds.
        with tqdm(total=total, unit="vote", delay=2, leave=False, disable=None) as bar:
            while drawing := [
                _Drawing(g, ballot, order, n)
                for g, of_group in ballots.items()
                for ballot in of_group
                for order, n in ballot.missing.items()
            ]:
                with self._turn():
                    self._draw(drawing, bar)
        for ballot in (ballot for of_group in ballots.values() for ballot in of_group):
            self.comparisons += len(ballot.orders)
            self.votes_saved += ballot.total - len(ballot.votes)
            self.invalid_votes += ballot.count(None)
        return {g: [ballot.preference(options.verdict) for ballot in of_group] for g, of_group in ballots.items()}

    @property
    def stats(self) -> ReasoningStats:
        """Cost of the call so far."""
        of_call = {"comparisons": self.comparisons, "seconds": time.perf_counter() - self.started}
        return ReasoningStats(
            **{**vars(self.forwards), **of_call},
            votes=self.votes,
            votes_saved=self.votes_saved,
            invalid_votes=self.invalid_votes,
            tokens_generated=self.tokens_generated,
        )

    def warn(self) -> None:
        """Logs how many votes of the call are invalid, and how many have no soft verdict and why."""
        if self.invalid_votes:
            log.warning("%d of %d answers of the judge have no verdict", self.invalid_votes, self.votes)
        if self.unread:
            log.warning(
                "%d of %d answers are too long to be read with their prompts: they have no soft verdict",
                self.unread,
                self.votes,
            )
        if self.unlisted:
            log.warning(
                "%d of %d answers have a verdict that is no token of its own to the engine: they have no soft verdict",
                self.unlisted,
                self.votes,
            )

    def _turn(self) -> AbstractContextManager[Any]:
        return self.comparer.turn.taken() if self.comparer.turn else nullcontext()

    def _check_lengths(self, rounds: Rounds) -> None:
        numbers = [g for g, pairs in rounds.items() if len(pairs)]
        pairs = [np.array(rounds[g], np.int64).reshape(-1, 2) for g in numbers]
        if reasons := self.comparer.unfit([self.groups[g] for g in numbers], pairs, self.orders):
            raise InputError.of(reasons)

    def _draw(self, drawing: "Sequence[_Drawing]", bar: "tqdm[Any]") -> None:
        """Draws votes, and reads the soft verdict of each."""
        comparer = self.comparer
        requests, written = self._requests(drawing), [list[Generation]()] * len(drawing)
        errors: dict[int, GramFastError] = {}
        with closing(comparer.generator.generate(requests, comparer.sampling)) as generated:  # type: ignore[type-var]
            for number, found in generated:
                if isinstance(found, GramFastError):
                    errors[number] = found
                else:
                    written[number] = found
                    bar.update(len(found))
        if errors:
            self._fail([(drawing[number], errors[number]) for number in sorted(errors)])
        if any(len(of_draw) != draw.count for draw, of_draw in zip(drawing, written, strict=True)):
            raise ValueError(f"{comparer.generator.name}: expected as many answers of each request as it asked for")
        read = reader(comparer.template)
        cast = [
            (draw, generation, read.read(generation.text, generation.is_cut))
            for draw, of_draw in zip(drawing, written, strict=True)
            for generation in of_draw
        ]
        for (draw, _, verdict), margin in zip(cast, self._margins(cast), strict=True):
            draw.ballot.add(draw.order, verdict, margin)
        self.votes += len(cast)
        self.tokens_generated += sum(generation.num_tokens for _, generation, _ in cast)

    def _fail(self, errors: "Sequence[tuple[_Drawing, GramFastError]]") -> NoReturn:
        """Raises an InputError of all that the engine refuses, by group; but any other error before that."""
        for draw, error in errors:
            if not isinstance(error, InputError):
                raise type(error)(f"{self._name(draw)}: {error}") from error
        refused: dict[int, dict[tuple[int, ...], GramFastError]] = {}
        for draw, error in errors:
            refused.setdefault(draw.group, {})[draw.shown] = error
        raise InputError.of_groups(
            {g: _refused(self.groups[g], of_group) for g, of_group in refused.items()}
        ) from errors[0][1]

    def _requests(self, drawing: "Sequence[_Drawing]") -> list[GenerationRequest]:
        rows = [(self.groups[d.group].prompt, *(self.groups[d.group].texts[k] for k in d.shown)) for d in drawing]
        tokenizer = self.comparer.tokenizer
        ids = [None] * len(rows) if tokenizer is None else tokenizer.whole_ids(rows)
        return [
            GenerationRequest(
                content=self.comparer.template.fill(*row),
                ids=of_row,
                n=draw.count,
                seed=_seed(self.comparer.options.seed, row, draw.ballot.drawn(draw.order)),
            )
            for draw, row, of_row in zip(drawing, rows, ids, strict=True)
        ]

    def _margins(self, cast: "Sequence[tuple[_Drawing, Generation, Verdict]]") -> list[float | None]:
        """Reads of each vote the logit of the first label less that of the second, where it can be known."""
        comparer, template = self.comparer, self.comparer.template
        if comparer.labels is None:
            if comparer.sampling.top_logprobs and any(generation.tokens is None for _, generation, _ in cast):
                raise ServerError(
                    f"{comparer.generator.name}: expected log probabilities with its answers, got none: the soft "
                    "verdict wants them, or a second step, or verdict='hard'"
                )
            labels = reader(template).labels
            found = [margin_of_tokens(generation, verdict, labels) for _, generation, verdict in cast]
            if comparer.options.verdict == "soft":
                missing = [verdict.label for (_, _, verdict), margin in zip(cast, found, strict=True) if margin is None]
                self.unlisted += sum(label is not None for label in missing)
            return found
        if not template.answer_prefix.strip():
            return [None] * len(cast)
        numbers = {g: place for place, g in enumerate(dict.fromkeys(draw.group for draw, _, _ in cast))}
        groups = [self.groups[g] for g in numbers]
        encoded = EncodedTexts.of(
            comparer.labels.tokenizer, [group.prompt for group in groups], [group.texts for group in groups]
        )
        thoughts = [
            Thought((numbers[draw.group], *draw.shown), text_before_label(verdict, template))
            for draw, _, verdict in cast
        ]
        margins, cost = label_margins(comparer.labels, encoded, thoughts)
        self.forwards = total_stats([self.forwards, cost], seconds=0.0)
        self.unread += int(np.isnan(margins).sum())
        return [None if np.isnan(margin) else float(margin) for margin in margins]

    def _name(self, draw: "_Drawing") -> str:
        group = self.groups[draw.group]
        return " with ".join(group.names[group.first_of[k]] for k in draw.shown)


@dataclass(frozen=True)
class _Drawing:
    """Votes to draw of one presentation."""

    group: int
    ballot: Ballot
    order: str
    count: int

    @property
    def shown(self) -> tuple[int, ...]:
        return self.ballot.shown(self.order)


def _refused(group: Group, errors: Mapping[tuple[int, ...], GramFastError]) -> dict[str, str]:
    """Finds candidates without which an engine refuses nothing, the longest -> reasons by name.

    `errors`: why it refuses a presentation, by what is shown.
    """
    shown = np.array(list(errors))
    # What is refused is too long, mostly. A reference stays: the others are nothing without it.
    sizes = np.array([len(text) for text in group.texts])
    if group.numbers[0] < 0:
        sizes[0] = -1
    reasons: dict[str, str] = {}
    for text, number in left_out(shown, sizes[shown].sum(axis=1), sizes).items():
        pair = tuple(shown[number].tolist())
        reason = f"{shown_in(group, pair, text)}: {errors[pair]}"
        reasons |= {name: reason for name, of in zip(group.names, group.text_of, strict=True) if of == text}
    return reasons


def _seed(seed: int, texts: Sequence[str], drawn: int) -> int:
    """Seed of a request: of what is shown and how many votes it has, so that it is the same whatever else is asked."""
    text = json.dumps([seed, drawn, *texts]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little") >> 1
