"""Comparer of a GRAM judge: reads P(first better) from a model's two label logits (arXiv 2506.14175)."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gram_fast.comparing.comparer import Answers, Pairs, Reload, Rounds
from gram_fast.comparing.left_out import left_out, shown_in
from gram_fast.comparing.modes import Mode
from gram_fast.comparing.orders import Orders, shown
from gram_fast.comparing.preference import preference
from gram_fast.devices import on_device
from gram_fast.errors import InputError, NumericalError, UnsupportedModelError
from gram_fast.models.checkpoint import ADAPT
from gram_fast.models.digest import weights_digest
from gram_fast.models.finite import why_not_finite
from gram_fast.models.known_answers import KnownAnswer, known_answers, rounding
from gram_fast.results import ForwardStats, Preference
from gram_fast.scoring.engine import Engine
from gram_fast.scoring.request import ScoringRequest
from gram_fast.scoring.runner import Runner
from gram_fast.scoring.surroundings import sheltered
from gram_fast.text.encoded import MOVES_A_CUT, EncodedRound, EncodedTexts, Presentation, check_factored
from gram_fast.text.group import Group
from gram_fast.text.tokens import PairTokenizer


@dataclass(frozen=True, repr=False)
class LabelComparer:
    """Compares candidates by the label logits of one model, in forwards over shared prefixes."""

    tokenizer: PairTokenizer
    runner: Runner
    engine: Engine
    max_length: int
    max_length_reason: str
    known_answers: list[KnownAnswer]
    """Results of the check on a known pair, in orders ab and ba; a verifier's on each of the two responses."""
    name: str = ""
    """Checkpoint of the model."""
    reload: Reload | None = None
    """Loads the comparer anew: what it is pickled as."""
    modes: tuple[str, ...] = ("full",)
    """Modes that the checkpoint was trained in."""
    mode: Mode = "full"
    """How it reads pairs."""

    @classmethod
    def of(
        cls,
        tokenizer: PairTokenizer,
        runner: Runner,
        max_batch_tokens: int | None = None,
        max_length: int | None = None,
        name: str = "",
        modes: tuple[str, ...] = ("full",),
    ) -> "LabelComparer":
        """Makes a comparer from a runner, and checks its logits on a known pair.

        `max_batch_tokens`: most tokens of one pass; None chooses by device. `max_length`: most tokens of one
        presentation; None for what the model allows. `name`: of the checkpoint. `modes`: that it was trained in.
        Raises UnsupportedModelError where the logits are wrong, and NumericalError where the model's own are not
        finite.
        """
        limit, reason = runner.max_length, runner.max_length_reason
        if max_length is not None and max_length < limit:
            limit, reason = max_length, "max_length"
        with on_device(runner.device):
            answers = known_answers(tokenizer, runner)
            _check(answers, runner)
            return cls(tokenizer, runner, Engine(runner, max_batch_tokens), limit, reason, answers, name, modes=modes)

    def in_mode(self, mode: Mode) -> "LabelComparer":
        """This comparer, with the same engine, reading pairs in a mode. Raises errors like `modes.in_mode`."""
        if mode not in self.modes:
            wanted = f"mode={self.modes[0]!r}" if mode == "full" else f"a checkpoint that was adapted: {ADAPT}"
            raise InputError(
                f"mode {mode!r}: this judge was trained in mode {self.modes[0]!r} alone, expected {wanted}"
            )
        if mode == "factored":
            check_factored(self.tokenizer)
            if not self.runner.reads_whole_paths:
                raise UnsupportedModelError(
                    f"mode 'factored': expected a model whose layers all attend to everything before a token, "
                    f"{type(self.runner.model).__name__} has others"
                )
        return self if mode == self.mode else replace(self, mode=mode)

    def __repr__(self) -> str:
        runner, template = self.runner, self.tokenizer.template
        found = {
            "runner": type(runner).__name__.removesuffix("Runner").lower(),
            "device": str(runner.device),
            "dtype": str(runner.dtype).removeprefix("torch."),
            "attention": runner.attention,
            "products": runner.products,
            "preset": template.preset or "custom",
            "max_length": self.max_length,
        } | ({} if self.mode == "full" else {"mode": self.mode})
        settings = ", ".join(f"{name}={value!r}" for name, value in found.items())
        return f"{type(self).__name__}({self.name or type(runner.model).__name__!r}, {settings})"

    def __reduce__(self) -> tuple[Reload, tuple[()]]:
        if self.reload is None:
            raise InputError(
                "a judge of a model in memory cannot be pickled: expected one of from_pretrained, which is loaded anew "
                "where it is unpickled"
            )
        return self.reload, ()

    def __copy__(self) -> "LabelComparer":
        """The comparer itself: what `__reduce__` makes would be loaded anew."""
        return self

    def __deepcopy__(self, memo: object) -> "LabelComparer":
        """The comparer itself: calls leave nothing in it that a copy could be spared, and a model is large."""
        return self

    @property
    def recorded(self) -> dict[str, Any]:
        """What answers depend on, as found in place of each "auto": JSON values."""
        return {
            "prompt_digest": self.tokenizer.text.digest,
            "label_ids": list(self.tokenizer.label_ids),
            "device": self.runner.device.type,
            "dtype": str(self.runner.dtype).removeprefix("torch."),
            "runner": type(self.runner).__name__,
            "attention": self.runner.attention,
            "products": self.runner.products,
            "weights_digest": weights_digest(self.runner.model),
        }

    @property
    def tokens_at_once(self) -> int:
        """Most tokens of one pass; halved whenever memory runs out."""
        return self.engine.budget

    @property
    def verifies(self) -> bool:
        """Whether the template shows one response rather than a pair."""
        return self.tokenizer.template.is_verifier

    @property
    def markers(self) -> tuple[str, ...]:
        """What `flags` finds, beside marks of chats."""
        return self.tokenizer.markers

    def advance_together(self, cache_bytes: int) -> None:
        """Has calls that are open at the same time advance side by side, pass by pass, from now on.

        Prompts, and responses in slot A, that were read last keep their keys and values for calls to come, in at most
        `cache_bytes`, but at least a pass of them. Raises InputError in a judge that is divided among processes, which
        must all make the same calls.
        """
        if self.runner.processes.count > 1:
            raise InputError("tensor_parallel: expected a judge that one process runs, whose calls can make way")
        slots = cache_bytes // self.runner.bytes_per_slot
        self.engine.cache_limit = max(slots, self.engine.budget)

    def flags(self, text: str) -> tuple[str, ...]:
        """Finds the lines of the judge's template and the special tokens that `text` contains."""
        return self.tokenizer.flags(text)

    @contextmanager
    def open(
        self, groups: Sequence[Group], orders: Orders, *, num_pairs: Sequence[int], has_one_round: bool
    ) -> "Iterator[LabelSession]":
        """Tokenizes the groups; the session waits for the engine at its first round, and has it until it ends.

        Sessions that wait at the same time are scored together, whatever their groups, orders and rounds. Raises
        InputError on texts that are so long that they need not be tokenized to know that they are over `max_length`.
        """
        started = time.perf_counter()
        if endless := self._endless(groups):
            raise InputError.of(endless)
        encoded = self._encoded(groups)
        with self.engine.request(encoded.head_ids, is_factored=encoded.is_factored) as request:
            yield LabelSession(self, groups, orders, not has_one_round, encoded, request, started)

    def unfit(self, groups: Sequence[Group], pairs: Sequence[Pairs], orders: Orders) -> dict[str, str]:
        """Finds the texts that are too long, or have tokens without an embedding, as in `Comparer`."""
        if endless := self._endless(groups):
            return endless
        if self.tokenizer.num_ids > self.runner.num_embeddings and (strange := self.strange(groups)):
            return strange
        try:
            encoded = self._encoded(groups)
        except InputError as error:
            if error.reasons:
                return dict(error.reasons)
            raise
        shown = [self.shown(of_group, orders) for of_group in pairs]
        return self.too_long(groups, shown, [encoded.lengths(g, of_group) for g, of_group in enumerate(shown)])

    def _encoded(self, groups: Sequence[Group]) -> EncodedTexts:
        """The texts as token ids. Raises InputError that names texts which a factored judge cannot read."""
        prompts, texts = [group.prompt for group in groups], [group.texts for group in groups]
        try:
            return EncodedTexts.of(self.tokenizer, prompts, texts, is_factored=self.mode == "factored")
        except InputError as error:
            reasons = {
                name: f"the text {MOVES_A_CUT}"
                for group in groups
                for name, text in group.named_texts.items()
                if self.tokenizer.moves_a_cut(text, name == group.prompt_name)
            }
            raise InputError.of(reasons) if reasons else error from None

    def shown(self, pairs: Pairs, orders: Orders) -> Pairs:
        """Presentations of pairs of a group [P, 2], in each order -> texts in slots A and B, or those of a verifier."""
        if self.verifies:
            return pairs[:, :1]
        return np.concatenate([pairs[:, slots] for slots in shown(0, 1, orders)])

    def strange(self, groups: Sequence[Group]) -> dict[str, str]:
        """Finds the texts with tokens that the model has no embedding of -> reasons by name."""
        rows = self.runner.num_embeddings
        named = {name: text for group in groups for name, text in group.named_texts.items()}
        alone = self.tokenizer.ids_between(("", ""), [(text,) for text in named.values()])
        highest = {name: int(ids.max(initial=0)) for name, ids in zip(named, alone, strict=True)}
        return {name: self.no_embedding(token) for name, token in highest.items() if token >= rows}

    def no_embedding(self, token: int) -> str:
        """Says that the model has no embedding of a token."""
        text, rows = self.tokenizer.token_text(token), self.runner.num_embeddings
        return f"it has token {token}, {text!r}, but the model has embeddings of {rows} tokens"

    def too_long(
        self, groups: Sequence[Group], shown: Sequence[Pairs], lengths: Sequence[NDArray[np.int64]]
    ) -> dict[str, str]:
        """Finds texts without which no presentation of these lengths is over the limit -> reasons by name."""
        reasons: dict[str, str] = {}
        for group, of_group, of_pairs in zip(groups, shown, lengths, strict=True):
            long = np.flatnonzero(of_pairs > self.max_length)
            if not len(long):
                continue
            if len(long) == len(of_pairs) and (alone := self._prompt_alone(group)) > self.max_length:
                reasons[group.prompt_name] = f"the judge's prompt with it alone has {alone} tokens, {self._limit}"
                continue
            ids = self.tokenizer.ids_between(("", ""), [(text,) for text in group.texts])
            sizes = np.array(list(map(len, ids)))
            if group.numbers[0] < 0:
                sizes[0] = -1  # the others are nothing without their reference
            for text, pair in left_out(of_group[long], of_pairs[long], sizes).items():
                what = shown_in(group, of_group[long[pair]].tolist(), text)
                reason = f"{what} has {of_pairs[long[pair]]} tokens, {self._limit}"
                reasons |= {name: reason for name, of in zip(group.names, group.text_of, strict=True) if of == text}
        return reasons

    def _prompt_alone(self, group: Group) -> int:
        """Tokens of the judge's whole prompt with empty responses."""
        responses = [""] * (len(self.tokenizer.text.slots) - 1)
        return len(self.tokenizer.whole_ids([(group.prompt, *responses)])[0])

    def _endless(self, groups: Sequence[Group]) -> dict[str, str]:
        """Finds the texts of which a beginning has far more tokens than the limit -> reasons by name."""
        reasons: dict[str, str] = {}
        for name, text in ((name, text) for group in groups for name, text in group.named_texts.items()):
            if found := self.tokenizer.long_beginning(text, self.max_length):
                characters, tokens = found
                reasons[name] = (
                    f"the text has {len(text)} characters, of which the first {characters} alone are {tokens} "
                    f"tokens, {self._limit}"
                )
        return reasons

    @property
    def _limit(self) -> str:
        return f"the limit is {self.max_length} ({self.max_length_reason})"


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
        logits = self._logits(presentations)
        per_pair = logits.reshape(len(pairs), -1, 2)
        answers: dict[int, list[Preference]] = {g: [] for g in rounds}
        for (g, i, j), of_pair in zip(pairs, per_pair, strict=True):
            answers[g].append(preference(i, j, of_pair, self.orders, self.comparer.mode))
        return answers

    @property
    def stats(self) -> ForwardStats:
        """Cost of the call so far."""
        return self.request.stats(time.perf_counter() - self.started)

    @sheltered
    def _logits(self, presentations: list[Presentation]) -> NDArray[np.float32]:
        """Computes label logits [P, 2]. Raises InputError on a presentation that is too long, NumericalError on NaN."""
        made = self.encoded.round(presentations, self.request.num_segments)
        self._check_ids(made)
        self._check_lengths(presentations, self.request.add(made))
        with on_device(self.comparer.runner.device):
            logits = self.request.score(self.has_more_rounds)
        bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(bad):
            raise NumericalError(
                f"{self._name(presentations[bad[0]])}: the model returned label logits {logits[bad[0]].tolist()}, "
                f"expected finite numbers ({len(bad)} of {len(presentations)} comparisons)"
            )
        return logits

    def _check_ids(self, made: EncodedRound) -> None:
        """Raises InputError on tokens that the model has no embedding of, with the texts that they stand in."""
        rows = self.comparer.runner.num_embeddings
        if self.comparer.tokenizer.num_ids > rows:
            highest = max((int(ids.max(initial=0)) for ids in made.segments), default=0)
            if highest >= rows:
                found = self.comparer.strange(self.groups)
                raise InputError.of(found or {"a text": self.comparer.no_embedding(highest)})

    def _check_lengths(self, presentations: Sequence[Presentation], lengths: NDArray[np.int64]) -> None:
        """Raises InputError, which names the texts to leave out, on presentations that are too long."""
        if lengths.max() <= self.comparer.max_length:
            return
        group_of, shown = np.array([g for g, *_ in presentations]), np.array([texts for _, *texts in presentations])
        numbers = np.unique(group_of[lengths > self.comparer.max_length]).tolist()
        groups, of_group = [self.groups[g] for g in numbers], [group_of == g for g in numbers]
        raise InputError.of(
            self.comparer.too_long(groups, [shown[its] for its in of_group], [lengths[its] for its in of_group])
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
