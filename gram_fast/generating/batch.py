"""A batch of answers that one model writes side by side, a token each a step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from gram_fast.errors import NumericalError
from gram_fast.generating.drawing import Draws, logits_processors
from gram_fast.scoring.stops import StoppedError
from gram_fast.text.tokens import Ids


@dataclass(frozen=True)
class Row:
    """One answer that is wanted."""

    request: int
    """Number of its request."""
    answer: int
    """Its own number in the request."""
    seed: int
    """Of its request."""
    ids: Ids
    """The prompt, int32 [T]."""
    limit: int
    """Most tokens of the answer, at least 1."""


@dataclass(frozen=True)
class Written:
    """An answer as token ids."""

    row: Row
    ids: list[int] = field(default_factory=list)
    """With the token that ended it, where one did."""
    likely: list[dict[int, float]] = field(default_factory=list)
    """In the place of each token, log probabilities by id of the most likely and of its own, where they were asked for;
    of the distribution as the model gives it, before penalties and temperature."""


class Batch:
    """Writes the answers of some rows. Prompts of one request are read once; an answer that has ended leaves."""

    def __init__(self, model: Any, rows: Sequence[Row], config: Any, top_logprobs: int) -> None:
        """`rows`: those of a request next to each other. `config`: `drawing.generation_config`."""
        self._model, self._config, self._top = model, config, top_logprobs
        self._ends = frozenset(config.eos_token_id)
        self._processors = logits_processors(model, config)
        self._draws: Draws | None = None
        if config.do_sample:
            seeds = [(row.seed, row.answer) for row in rows]
            self._draws = Draws(seeds, max(row.limit for row in rows), model.device)
        self._open = [Written(row) for row in rows]
        self._cache = DynamicCache(config=model.config)
        longest = max(len(row.ids) for row in rows)
        starts = [longest - len(row.ids) for row in rows]
        self._starts_R = torch.tensor(starts, device=model.device)
        # In front of a short prompt, where nothing reads it, its own first token: a penalty on tokens that were seen
        # would otherwise hold against another.
        ids = np.stack([np.pad(row.ids, (start, 0), "edge") for row, start in zip(rows, starts, strict=True)])
        self._ids_RT = torch.from_numpy(ids.astype(np.int64)).to(model.device)

    @property
    def open_rows(self) -> list[Row]:
        """Those whose answers have not ended."""
        return [written.row for written in self._open]

    def advance(self, is_stopped: Callable[[], bool]) -> list[Written]:
        """Writes on until one or more answers end, which leave the batch; none where none is left.

        Raises StoppedError between two steps once the call is to stop, NumericalError where a logit is NaN.
        """
        while self._open:
            if is_stopped():
                raise StoppedError("the call was stopped between two tokens")
            ended = self._write(self._next_logits())
            if any(ended):
                done = [written for written, is_end in zip(self._open, ended, strict=True) if is_end]
                self._keep([row for row, is_end in enumerate(ended) if not is_end])
                return done
        return []

    def _next_logits(self) -> Tensor:
        """Logits of the next token, float32 [R, V]."""
        if self._cache.get_seq_length():
            return self._forward(self._ids_RT, self._starts_R, only_last=True)
        requests = [written.row.request for written in self._open]
        firsts = [row for row, request in enumerate(requests) if row == 0 or requests[row - 1] != request]
        logits_PV = self._forward(self._ids_RT[firsts], self._starts_R[firsts], only_last=False)
        if len(firsts) == len(requests):
            return logits_PV
        prompts = np.cumsum(np.isin(np.arange(len(requests)), firsts)) - 1
        prompts_R = torch.from_numpy(prompts).to(self._ids_RT.device)
        self._cache.batch_select_indices(prompts_R)
        return logits_PV[prompts_R]

    def _forward(self, ids_RT: Tensor, starts_R: Tensor, *, only_last: bool) -> Tensor:
        """Reads prompts, or the last token of each row -> logits behind it, float32 [R, V]."""
        places_T = torch.arange(ids_RT.shape[1], device=ids_RT.device)
        positions_RT = places_T - starts_R[:, None]
        new = slice(-1, None) if only_last else slice(None)
        logits = self._model(
            input_ids=ids_RT[:, new],
            attention_mask=(positions_RT >= 0).long(),
            position_ids=positions_RT[:, new].clamp(min=0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1].float()  # type: ignore[no-any-return]

    def _write(self, logits_RV: Tensor) -> list[bool]:
        """Draws a token for each row -> which of them have ended."""
        if torch.isnan(logits_RV).any():
            raise NumericalError("the model's logits are NaN while it writes an answer: expected numbers")
        # Before the processors: they may write into what they are given.
        logprobs_RV = logits_RV.log_softmax(-1) if self._top else None
        scores_RV = self._processors(self._ids_RT, logits_RV)
        tokens_R = scores_RV.argmax(-1) if self._draws is None else self._draws.draw(scores_RV)
        self._ids_RT = torch.cat([self._ids_RT, tokens_R[:, None]], 1)
        if logprobs_RV is not None:
            for written, likely in zip(self._open, self._most_likely(logprobs_RV, tokens_R), strict=True):
                written.likely.append(likely)
        for written, token in zip(self._open, tokens_R.tolist(), strict=True):
            written.ids.append(token)
        return [written.ids[-1] in self._ends or len(written.ids) == written.row.limit for written in self._open]

    def _most_likely(self, logprobs_RV: Tensor, tokens_R: Tensor) -> list[dict[int, float]]:
        """For each row log probabilities by id, of the most likely tokens and of the one that was drawn."""
        values_RK, ids_RK = logprobs_RV.topk(self._top)
        drawn_R1 = tokens_R[:, None]
        values = torch.cat([values_RK, logprobs_RV.gather(1, drawn_R1)], 1).tolist()
        ids = torch.cat([ids_RK, drawn_R1], 1).tolist()
        return [dict(zip(row, of_row, strict=True)) for row, of_row in zip(ids, values, strict=True)]

    def _keep(self, rows: Sequence[int]) -> None:
        """Drops all other rows, whose answers have ended."""
        self._open = [self._open[row] for row in rows]
        if not rows:
            return
        rows_R = torch.tensor(rows, device=self._ids_RT.device)
        self._ids_RT, self._starts_R = self._ids_RT[rows_R], self._starts_R[rows_R]
        self._cache.batch_select_indices(rows_R)
        if self._draws is not None:
            self._draws.keep(rows)
