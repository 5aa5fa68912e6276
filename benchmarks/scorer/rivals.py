"""Other ways to compute the judge's two label logits, on the same model: the rivals of benchmarks/scorer/run.py.

Every rival starts from text, as the judge does, and ends with logits on the host. `size` is its one setting: rows of a
batch, or tokens of a pass.

Shape letters: P presentations, B rows of a batch, T tokens, L leaves, V vocabulary, D model width.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from benchmarks.parts import comparer_of
from gram_fast import PairwiseJudge
from gram_fast.comparing.orders import Orders, shown
from gram_fast.models.transformers_runner import TransformersRunner
from gram_fast.ops import Spans
from gram_fast.scoring.key_values import KeyValueStore
from gram_fast.scoring.tree import TreePass
from gram_fast.text.tokens import Ids, PairTokenizer

TextPair = tuple[str, str, str]
"""A prompt and two of its responses, i and j, that are to be compared."""
TextPresentations = Sequence[tuple[str, str, str]]
"""(prompt, response in slot A, response in slot B): what each forward reads. A pair has one for each order."""

BATCH_SIZES = {"cpu": (1, 4, 8), "cuda": (8, 32)}
"""Rows of a batch that `padded` and `prefix` are tried with, by kind of device."""


def in_orders(pairs: Sequence[TextPair], orders: Orders) -> TextPresentations:
    """Lists the presentations of pairs, those of one pair next to each other."""
    return [(texts[0], texts[1 + a], texts[1 + b]) for texts in pairs for a, b in shown(0, 1, orders)]


@dataclass(frozen=True)
class Scored:
    """Label logits of P presentations from a rival, and what they cost it."""

    logits_P2: Tensor
    """float32, on the CPU."""
    tokens: int
    """Tokens that went through the model, padding included."""


def batch_sizes(device: torch.device, num_presentations: int) -> list[int]:
    """Lists the batch sizes to try: of those that hold all presentations, the smallest alone."""
    sizes = BATCH_SIZES[device.type]
    return [size for k, size in enumerate(sizes) if k == 0 or sizes[k - 1] < num_presentations]


def batches(order: Sequence[int], size: int) -> Iterator[list[int]]:
    """Cuts `order` into lists of `size`; the last one may be shorter."""
    for first in range(0, len(order), size):
        yield list(order[first : first + size])


def padded_tokens(rows: Sequence[Ids]) -> int:
    """Counts the tokens of a batch whose rows are all padded to the longest."""
    return len(rows) * max(map(len, rows))


def common_length(rows: Sequence[Ids]) -> int:
    """Counts the tokens with which all rows begin, at most all but the last of the shortest row."""
    length = min(map(len, rows)) - 1
    is_same = np.logical_and.reduce([row[:length] == rows[0][:length] for row in rows])
    return length if is_same.all() else int(is_same.argmin())


def packed_pass(sequences: Sequence[Ids]) -> TreePass:
    """Packs L sequences into one pass that shares nothing: a span each, none of which reads another."""
    lengths = np.array([len(ids) for ids in sequences])
    ends, count = lengths.cumsum(), len(sequences)
    starts = ends - lengths
    return replace(
        TreePass.of_sequence(torch.from_numpy(np.concatenate(sequences)).long()),
        position_ids=torch.from_numpy(np.arange(ends[-1]) - starts.repeat(lengths)),
        spans=Spans(
            torch.from_numpy(np.stack([starts, ends], axis=1)),
            torch.zeros(count + 1, dtype=torch.int64),
            torch.empty((0, 2), dtype=torch.int64),
        ),
        leaf_rows=torch.from_numpy(ends - 1),
        leaf_index=np.arange(count),
    )


def packed_passes(sequences: Sequence[Ids], budget: int) -> list[TreePass]:
    """Packs sequences in their order, as many a pass as fit in `budget` tokens, at least one."""
    passes: list[list[Ids]] = [[]]
    for ids in sequences:
        if passes[-1] and sum(map(len, passes[-1])) + len(ids) > budget:
            passes.append([])
        passes[-1].append(ids)
    return [packed_pass(group) for group in passes]


@dataclass(frozen=True)
class Rivals:
    """The rivals that run a transformers model."""

    runner: TransformersRunner
    tokenizer: PairTokenizer

    def loop(self, presentations: TextPresentations, size: int) -> Scored:
        """Scores like GRAM's evaluation script: with `size` 2, the two orders of a pair as one left-padded batch.

        Every batch computes the logits of all positions over the whole vocabulary and is read back before the next.
        """
        logits, tokens = [], 0
        for batch in batches(range(len(presentations)), size):
            rows = self.tokenizer.whole_ids([presentations[k] for k in batch])
            logits.append(self._forward(rows).cpu())
            tokens += padded_tokens(rows)
        return Scored(torch.cat(logits), tokens)

    def padded(self, presentations: TextPresentations, size: int) -> Scored:
        """Scores in left-padded batches of `size` rows, sorted by length, with the logits of the last token alone."""
        rows = self.tokenizer.whole_ids(presentations)
        logits_P2, tokens = self._padded(rows, size)
        return Scored(logits_P2.cpu(), tokens)

    @torch.inference_mode()
    def packed(self, presentations: TextPresentations, size: int) -> Scored:
        """Scores without padding and without sharing: whole sequences back to back, passes of up to `size` tokens.

        It is our own transformers runner on forests whose sequences share nothing: variable-length attention keeps them
        apart, and the two label rows are read as ours reads them. Only sharing sets the judge on that runner apart.
        """
        passes = packed_passes(self.tokenizer.whole_ids(presentations), size)
        tokens = [tree_pass.num_tokens for tree_pass in passes]
        store = KeyValueStore()
        store.reserve(max(tokens))
        logits_P2 = torch.cat([self.runner.forward(tree_pass, store) for tree_pass in passes])
        return Scored(logits_P2.cpu(), sum(tokens))

    @torch.inference_mode()
    def prefix(self, presentations: TextPresentations, size: int) -> Scored:
        """Scores with transformers' own cache, which shares prefixes and nothing else.

        For presentations of one prompt with one response in slot A, all up to slot B is run once; their tails follow in
        batches of `size` rows over copies of its cache. A presentation that shares with no other is scored as in
        `padded`. All presentations are known at once, also those of a tournament's later rounds.
        """
        rows = self.tokenizer.whole_ids(presentations)
        by_prefix: dict[tuple[str, str], list[int]] = defaultdict(list)
        for k, (prompt, a, _) in enumerate(presentations):
            by_prefix[prompt, a].append(k)
        alone = [members[0] for members in by_prefix.values() if len(members) == 1]
        logits_P2 = torch.empty(len(presentations), 2, device=self.runner.device)
        tokens = 0
        if alone:
            logits_P2[alone], tokens = self._padded([rows[k] for k in alone], size)
        for members in by_prefix.values():
            if len(members) > 1:
                logits_P2[members], of_members = self._behind_one_prefix([rows[k] for k in members], size)
                tokens += of_members
        return Scored(logits_P2.cpu(), tokens)

    def _padded(self, rows: Sequence[Ids], size: int) -> tuple[Tensor, int]:
        """Runs sequences in padded batches -> label logits [P, 2] on the model's device, tokens run."""
        logits_P2, tokens = torch.empty(len(rows), 2, device=self.runner.device), 0
        for batch in batches(sorted(range(len(rows)), key=lambda k: len(rows[k])), size):
            of_batch = [rows[k] for k in batch]
            logits_P2[batch] = self._forward(of_batch, logits_to_keep=1)
            tokens += padded_tokens(of_batch)
        return logits_P2, tokens

    @torch.inference_mode()
    def _forward(self, rows: Sequence[Ids], **options: Any) -> Tensor:
        """Runs one left-padded batch -> label logits [B, 2] on the model's device."""
        length, device = max(map(len, rows)), self.runner.device
        padded_BT = torch.from_numpy(np.stack([np.pad(ids, (length - len(ids), 0)) for ids in rows])).long()
        lengths_B = torch.tensor([len(ids) for ids in rows])
        is_token_BT = torch.arange(length) >= length - lengths_B[:, None]
        # Without padding no mask: the faster causal path, as any rival would take.
        mask = None if bool(is_token_BT.all()) else is_token_BT.long().to(device)
        logits_BTV = self.runner.model(
            input_ids=padded_BT.to(device), attention_mask=mask, use_cache=False, **options
        ).logits
        return torch.as_tensor(logits_BTV[:, -1, list(self.tokenizer.label_ids)].float())

    def _behind_one_prefix(self, rows: Sequence[Ids], size: int) -> tuple[Tensor, int]:
        """Runs sequences that begin alike, two or more -> label logits [P, 2], tokens run."""
        base, device = self.runner.model.base_model, self.runner.device
        shared = common_length(rows)
        cache = DynamicCache(config=self.runner.model.config)
        prefix_1T = torch.from_numpy(rows[0][:shared]).long()[None].to(device)
        base(input_ids=prefix_1T, past_key_values=cache, use_cache=True)
        logits_P2, tokens = torch.empty(len(rows), 2, device=device), shared
        for batch in batches(sorted(range(len(rows)), key=lambda k: len(rows[k])), size):
            tails = [rows[k][shared:] for k in batch]
            of_batch = copy.deepcopy(cache)
            of_batch.batch_repeat_interleave(len(batch))
            logits_P2[batch] = self._tails(tails, of_batch)
            tokens += padded_tokens(tails)
        return logits_P2, tokens

    def _tails(self, tails: Sequence[Ids], cache: DynamicCache) -> Tensor:
        """Runs one batch of tails behind the cached prefix -> label logits [B, 2].

        They are padded on the right, where no real token sees the padding: no mask and no positions are needed.
        """
        model, device = self.runner.model, self.runner.device
        lengths = [len(ids) for ids in tails]
        padded_BT = torch.from_numpy(np.stack([np.pad(ids, (0, max(lengths) - len(ids))) for ids in tails])).long()
        hidden_BTD = model.base_model(
            input_ids=padded_BT.to(device), past_key_values=cache, use_cache=True
        ).last_hidden_state
        last_BD = hidden_BTD[torch.arange(len(tails)), torch.tensor(lengths) - 1]
        logits_BV = model.get_output_embeddings()(last_BD)
        return torch.as_tensor(logits_BV[:, list(self.tokenizer.label_ids)].float())


def rivals_of(judge: PairwiseJudge) -> Rivals:
    """Makes the rivals that run the judge's model, without a reference to the judge and to the memory that it keeps."""
    comparer = comparer_of(judge)
    assert isinstance(comparer.runner, TransformersRunner)
    return Rivals(comparer.runner, comparer.tokenizer)
