"""Plays tournaments: turns the pairs that they ask for into sequences, scores all of a round together, answers."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gram_fast.errors import InputError, NumericalError
from gram_fast.ranking.preference import check_orders, preference, shown
from gram_fast.ranking.tournament import Round, Strategy, Tournament
from gram_fast.results import Preference, Stats
from gram_fast.scoring.engine import Engine, EngineRequest
from gram_fast.text.group import Group
from gram_fast.text.tokens import Pair, PairTokenizer, TokenizedRequest


@dataclass(frozen=True)
class Outcome:
    """What the tournaments came to; responses are numbered as in Group.texts."""

    winners: list[int | None]
    comparisons: list[list[Preference]]
    stats: Stats


@dataclass(frozen=True)
class Arena:
    """A tokenizer, an engine, the engine's device and the longest pair that it may be given."""

    tokenizer: PairTokenizer
    engine: Engine
    device: torch.device
    max_length: int
    max_length_reason: str

    @property
    def num_devices(self) -> int:
        """Over how many devices groups are spread."""
        return 1

    @property
    def max_batch_tokens(self) -> int:
        """Most tokens of one forward at present."""
        return self.engine.budget

    def play(self, groups: Sequence[Group], strategy: Strategy, orders: str, seed: int = 0) -> Outcome:
        """Plays one tournament a group, in lockstep: a round of all groups is packed into the same passes."""
        started = time.perf_counter()
        check_orders(orders)
        if not isinstance(seed, int) or seed < 0:
            raise InputError(f"seed: expected an integer of at least 0, got {seed!r}")
        request = self.tokenizer.request([group.prompt for group in groups], [group.texts for group in groups])
        outcome = Outcome([None] * len(groups), [[] for _ in groups], Stats(0, 0, 0, 0, 0, 0.0))
        with on_device(self.device), self.engine.request(request.head_ids, started) as engine_request:
            playing: dict[int, tuple[Tournament, Round]] = {}
            for g, group in enumerate(groups):
                tournament = strategy.play(len(group.texts), np.random.default_rng(seed))
                _advance(g, tournament, None, playing, outcome)
            while playing:
                asked = [(g, i, j) for g, (_, pairs) in playing.items() for i, j in pairs]
                answers = self._compare(asked, groups, request, engine_request, orders, not strategy.has_one_round)
                for (g, _, _), answer in zip(asked, answers, strict=True):
                    outcome.comparisons[g].append(answer)
                for g, (tournament, pairs) in list(playing.items()):
                    p = np.array([answer.p for answer in outcome.comparisons[g][-len(pairs) :]])
                    _advance(g, tournament, p, playing, outcome)
            return Outcome(outcome.winners, outcome.comparisons, engine_request.stats)

    def _compare(
        self,
        asked: list[Pair],
        groups: Sequence[Group],
        request: TokenizedRequest,
        engine_request: EngineRequest,
        orders: str,
        more_rounds: bool,
    ) -> list[Preference]:
        pairs = [(g, a, b) for g, i, j in asked for a, b in shown(i, j, orders)]
        sequences = request.sequences(pairs)
        leaves = engine_request.add(request.segments, sequences, request.reusable)
        lengths = engine_request.lengths(leaves)
        if (longest := int(lengths.argmax())) >= 0 and lengths[longest] > self.max_length:
            raise InputError(
                f"{_name(pairs[longest], groups)}: the pair has {lengths[longest]} tokens, the limit is "
                f"{self.max_length} ({self.max_length_reason})"
            )
        logits = engine_request.score(leaves, more_rounds)
        bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(bad):
            raise NumericalError(
                f"{_name(pairs[bad[0]], groups)}: the model returned label logits {logits[bad[0]].tolist()}, expected "
                f"finite numbers ({len(bad)} of {len(pairs)} comparisons)"
            )
        per_pair = logits.reshape(len(asked), -1, 2)
        return [preference(i, j, of_pair, orders) for (_, i, j), of_pair in zip(asked, per_pair, strict=True)]


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one of this thread: what a model allocates or launches without naming one goes there."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _advance(
    g: int,
    tournament: Tournament,
    p: NDArray[np.float64] | None,
    playing: dict[int, tuple[Tournament, Round]],
    outcome: Outcome,
) -> None:
    """Sends a round's answers (None at the start) and files the next round that is not empty, or the winner."""
    try:
        pairs = next(tournament) if p is None else tournament.send(p)
        while not pairs:
            pairs = tournament.send(np.empty(0))
        playing[g] = (tournament, pairs)
    except StopIteration as stop:
        outcome.winners[g] = stop.value
        playing.pop(g, None)


def _name(pair: Pair, groups: Sequence[Group]) -> str:
    g, a, b = pair
    group = groups[g]
    return f"{group.names[group.first_of[a]]} in slot A with {group.names[group.first_of[b]]} in slot B"
