"""The rivals of benchmarks/scorer/run.py: what else gives the two label logits of the same pairs, on the same model.

Every rival starts from text, as the judge does, and ends with logits on the host. `size` is its one setting: rows of a
batch, or tokens of a pass. Shape letters: P pairs, B rows of a batch, T tokens, L leaves, V vocabulary, D model width.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from gram_fast.models.transformers_runner import TransformersRunner
from gram_fast.ops import Spans
from gram_fast.scoring.key_values import KeyValueStore
from gram_fast.scoring.tree import TreePass
from gram_fast.text.tokens import Ids, PairTokenizer

Pairs = Sequence[tuple[str, str, str]]
"""(prompt, response in slot A, response in slot B) of every forward."""

BATCH_SIZES = {"cpu": (1, 4, 8), "cuda": (8, 32)}
"""Rows of a batch that `padded` and `prefix` are tried with, by kind of device."""


@dataclass(frozen=True)
class Scored:
    """What a rival gave for P pairs."""

    logits_P2: Tensor
    """float32, on the CPU."""
    tokens: int
    """Tokens that it ran through the model, padding included."""


def batch_sizes(device: torch.device, num_pairs: int) -> list[int]:
    """The sizes to try; of those that hold all pairs, the first alone."""
    sizes = BATCH_SIZES[device.type]
    return [size for k, size in enumerate(sizes) if k == 0 or sizes[k - 1] < num_pairs]


def batches(order: Sequence[int], size: int) -> Iterator[list[int]]:
    """`order` cut into lists of `size`, the last one shorter."""
    for first in range(0, len(order), size):
        yield list(order[first : first + size])


def padded_tokens(rows: Sequence[Ids]) -> int:
    """Tokens of a batch, every row as long as the longest."""
    return len(rows) * max(map(len, rows))


def common_length(rows: Sequence[Ids]) -> int:
    """Tokens with which all rows begin; less than the shortest row has, so that every row keeps one of its own."""
    length = min(map(len, rows)) - 1
    is_same = np.logical_and.reduce([row[:length] == rows[0][:length] for row in rows])
    return length if is_same.all() else int(is_same.argmin())


def packed_pass(sequences: Sequence[Ids]) -> TreePass:
    """One pass of whole sequences, L of them, that share nothing: a span each, none of which reads another."""
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
    """All sequences in their order, as many a pass as fit in `budget` tokens, one at least."""
    passes: list[list[Ids]] = [[]]
    for ids in sequences:
        if passes[-1] and sum(map(len, passes[-1])) + len(ids) > budget:
            passes.append([])
        passes[-1].append(ids)
    return [packed_pass(group) for group in passes]


@dataclass(frozen=True)
class Rivals:
    """Rivals that run a transformers model."""

    runner: TransformersRunner
    tokenizer: PairTokenizer

    def loop(self, pairs: Pairs, size: int) -> Scored:
        """The loop of GRAM's evaluation script: with `size` 2 the two orders of a pair as one left-padded batch.

        Logits of every position over the whole vocabulary, read back after each batch.
        """
        logits, tokens = [], 0
        for batch in batches(range(len(pairs)), size):
            rows = self.tokenizer.whole_ids([pairs[k] for k in batch])
            logits.append(self._forward(rows).cpu())
            tokens += padded_tokens(rows)
        return Scored(torch.cat(logits), tokens)

    def padded(self, pairs: Pairs, size: int) -> Scored:
        """Batches of `size` rows, sorted by length and left-padded, logits of the last token alone."""
        rows = self.tokenizer.whole_ids(pairs)
        logits_P2, tokens = self._padded(rows, size)
        return Scored(logits_P2.cpu(), tokens)

    @torch.inference_mode()
    def packed(self, pairs: Pairs, size: int) -> Scored:
        """A padding-free engine without sharing: whole pairs back to back, passes of up to `size` tokens.

        It is our own transformers runner on forests whose sequences share nothing, so that it has variable-length
        attention, which keeps the pairs apart, and reads the two label rows as ours does. What is left between it and
        the judge on the same runner is sharing.
        """
        passes = packed_passes(self.tokenizer.whole_ids(pairs), size)
        tokens = [tree_pass.num_tokens for tree_pass in passes]
        store = KeyValueStore()
        store.reserve(max(tokens))
        logits_P2 = torch.cat([self.runner.forward(tree_pass, store) for tree_pass in passes])
        return Scored(logits_P2.cpu(), sum(tokens))

    @torch.inference_mode()
    def prefix(self, pairs: Pairs, size: int) -> Scored:
        """Sharing of prefixes alone, by transformers' own cache.

        For pairs with one prompt and one response in slot A, all up to slot B is run once; their tails follow in
        batches of `size` rows over copies of its cache. Pairs that have none to share with go as in `padded`. All pairs
        are known at once, also those of a tournament's later rounds.
        """
        rows = self.tokenizer.whole_ids(pairs)
        by_prefix: dict[tuple[str, str], list[int]] = defaultdict(list)
        for k, (prompt, a, _) in enumerate(pairs):
            by_prefix[prompt, a].append(k)
        alone = [members[0] for members in by_prefix.values() if len(members) == 1]
        logits_P2 = torch.empty(len(pairs), 2, device=self.runner.device)
        tokens = 0
        if alone:
            logits_P2[alone], tokens = self._padded([rows[k] for k in alone], size)
        for members in by_prefix.values():
            if len(members) > 1:
                logits_P2[members], of_members = self._behind_one_prefix([rows[k] for k in members], size)
                tokens += of_members
        return Scored(logits_P2.cpu(), tokens)

    def _padded(self, rows: Sequence[Ids], size: int) -> tuple[Tensor, int]:
        """Label logits [P, 2] of sequences, on the model's device, and tokens run."""
        logits_P2, tokens = torch.empty(len(rows), 2, device=self.runner.device), 0
        for batch in batches(sorted(range(len(rows)), key=lambda k: len(rows[k])), size):
            of_batch = [rows[k] for k in batch]
            logits_P2[batch] = self._forward(of_batch, logits_to_keep=1)
            tokens += padded_tokens(of_batch)
        return logits_P2, tokens

    @torch.inference_mode()
    def _forward(self, rows: Sequence[Ids], **options: Any) -> Tensor:
        """Label logits [B, 2] of left-padded sequences, on the model's device."""
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
        """Label logits [P, 2] of two or more sequences that begin alike, and tokens run."""
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
        """Label logits [B, 2] of tails behind the cached prefix.

        Padded on the right, where no real token sees the padding: neither mask nor positions are wanted.
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


class VllmRival:
    """vLLM with its prefix cache, which is emptied before each run; one token is asked for, of the two labels."""

    def __init__(self, folder: Path, tokenizer: PairTokenizer, dtype: torch.dtype) -> None:
        """Loads the checkpoint. vLLM takes most of the GPU's memory: nothing else may be on it."""
        from vllm import LLM, SamplingParams  # type: ignore[import-not-found,unused-ignore]

        self._tokenizer = tokenizer
        # Processed: after all but the labels are ruled out, so that the two best are the labels.
        self._llm = LLM(
            model=str(folder),
            dtype=str(dtype).removeprefix("torch."),
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
        )
        self._asked = SamplingParams(
            max_tokens=1, temperature=0.0, logprobs=2, allowed_token_ids=list(tokenizer.label_ids)
        )

    def score(self, pairs: Pairs, size: int) -> Scored:
        """Log-probabilities of the two labels, which differ as their logits do. `size` is not looked at."""
        self._llm.reset_prefix_cache()
        prompts = [{"prompt_token_ids": ids.tolist()} for ids in self._tokenizer.whole_ids(pairs)]
        outputs = self._llm.generate(prompts, self._asked, use_tqdm=False)
        of_labels = [
            [output.outputs[0].logprobs[0][label].logprob for label in self._tokenizer.label_ids] for output in outputs
        ]
        tokens = sum(len(output.prompt_token_ids) - (output.num_cached_tokens or 0) for output in outputs)
        return Scored(torch.tensor(of_labels), tokens)
