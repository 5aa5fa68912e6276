"""Scores sequences of one request: plans passes over the token tree, runs them, keeps what the next round needs."""

import logging
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from gram_fast.results import Stats
from gram_fast.scoring.key_values import KeyValueStore
from gram_fast.scoring.processes import Processes
from gram_fast.scoring.tree import TokenTree, TreePass, plan_round
from gram_fast.text.tokens import Ids

logger = logging.getLogger(__name__)

CPU_BUDGET = 1024
"""Tokens of a pass on a CPU."""
# Fewer tokens a pass than this, and out of memory is not a matter of the budget any more.
_SMALLEST_BUDGET = 16


class Runner(Protocol):
    """Runs one packed pass through a model."""

    device: torch.device

    @property
    def processes(self) -> Processes:
        """Among which the model is divided."""

    @property
    def bytes_per_slot(self) -> int:
        """Memory of one token's keys and values."""

    @property
    def bytes_per_token(self) -> int:
        """Memory of one token's activations, at the most, while a pass runs."""

    def forward(self, tree_pass: TreePass, store: KeyValueStore) -> Tensor:
        """Label logits float32 [L, 2]; the pass's keys and values are in the store afterwards."""


class Engine:
    """One model's token tree and key/value store. Serves one request at a time; callers in other threads wait."""

    def __init__(self, runner: Runner, max_batch_tokens: int | None = None) -> None:
        """`max_batch_tokens`: most tokens of one pass, or None for what suits the device."""
        self._runner = runner
        self._head_ids = np.empty(0, np.int32)
        self._tree = TokenTree(self._head_ids)
        self._store = KeyValueStore()
        self._lock = threading.Lock()
        free = runner.processes.least(_free_memory(runner.device))
        self.budget = max_batch_tokens or default_budget(runner, free)
        # Slots kept between rounds: an eighth of the free memory, at most 65,536 and at least one pass.
        self._keep_limit = max(self.budget, min(65536, free // 8 // runner.bytes_per_slot))

    @contextmanager
    def request(self, head_ids: Ids, started: float | None = None) -> "Iterator[EngineRequest]":
        """Opens a request whose sequences all start with `head_ids`; its seconds count from `started`, or from now.

        What it computed is forgotten at its end, save the head's keys and values: the next request with the same head
        starts from them.
        """
        with self._lock:
            if not np.array_equal(head_ids, self._head_ids):
                self._head_ids, self._tree = head_ids, TokenTree(head_ids)
            try:
                yield EngineRequest(self, time.perf_counter() if started is None else started)
            except BaseException:
                # Passes may have written over what is kept, and the store may not have grown to its end.
                self._tree.forget_slots()
                self._store.release()
                raise
            finally:
                self._tree.clear()

    @torch.inference_mode()
    def _score(self, leaves: NDArray[np.int32], more_rounds: bool) -> tuple[NDArray[np.float32], int, int]:
        """Logits [P, 2] of the leaves, tokens computed, passes."""
        logits = np.full((len(leaves), 2), np.nan, np.float32)
        pending = np.arange(len(leaves))
        tokens = passes = 0
        while len(pending):
            done: list[tuple[NDArray[np.int64], Tensor]] = []
            ran_out_of_memory = False
            try:
                plan = plan_round(
                    self._tree,
                    leaves[pending],
                    budget=self.budget,
                    keep_limit=self._keep_limit,
                    more_rounds=more_rounds,
                )
                self._store.reserve(plan.num_slots)
                # The bar shows on a terminal, when the request takes longer than two seconds.
                with tqdm(
                    total=plan.num_tokens, unit="tok", unit_scale=True, delay=2, leave=False, disable=None
                ) as bar:
                    for tree_pass in plan.passes:
                        done.append((tree_pass.leaf_index, self._runner.forward(tree_pass, self._store)))
                        self._store.keep(tree_pass.keep)
                        tokens, passes = tokens + tree_pass.num_tokens, passes + 1
                        bar.update(tree_pass.num_tokens)
                self._tree.keep(plan.kept)
            except (RuntimeError, MemoryError) as error:
                # Of several processes the others wait in the middle of this pass: there is no going on from there.
                is_alone = self._runner.processes.count == 1
                if not (is_alone and _is_out_of_memory(error)) or self.budget // 2 < _SMALLEST_BUDGET:
                    raise
                ran_out_of_memory = True
            # Behind the handler: the exception holds the failed forward's activations.
            if ran_out_of_memory:
                self._halve_budget()
            # Read back once a round, so that a GPU need not wait for the host between passes.
            index = np.concatenate([leaf_index for leaf_index, _ in done]) if done else np.empty(0, np.int64)
            if len(index):
                logits[pending[index]] = torch.cat([pass_logits for _, pass_logits in done]).cpu().numpy()
            pending = np.delete(pending, index)
        return logits, tokens, passes

    def _halve_budget(self) -> None:
        warnings.warn(
            f"out of memory: passes of {self.budget} tokens are halved to {self.budget // 2}; pass "
            f"max_batch_tokens={self.budget // 2} to start there",
            stacklevel=2,
        )
        self.budget //= 2
        self._keep_limit //= 2
        self._tree.forget_slots()
        self._store.release()
        if self._runner.device.type == "cuda":
            torch.cuda.empty_cache()


class EngineRequest:
    """Rounds of one request over one growing token tree."""

    def __init__(self, engine: Engine, started: float) -> None:
        self._engine = engine
        self._tree = engine._tree
        self._started = started
        self._num_segments = 0
        self._comparisons = self._tokens_unshared = self._tokens_computed = self._passes = 0

    def add(self, segments: Sequence[Ids], sequences: NDArray[np.int32], reusable: int) -> NDArray[np.int32]:
        """Puts sequences [P, k] of numbers of `segments` into the tree -> leaves [P].

        `segments` is the request's growing list: what earlier calls saw must still stand at its start. Rounds to come
        branch off behind the first `reusable` segments of a sequence.
        """
        for ids in segments[self._num_segments :]:
            self._tree.add_segment(ids)
        self._num_segments = len(segments)
        return self._tree.add_sequences(sequences, reusable)

    def lengths(self, leaves: NDArray[np.int32]) -> NDArray[np.int64]:
        """[P] tokens of the whole sequences, head included."""
        return self._tree.leaf_lengths(leaves)

    def score(self, leaves: NDArray[np.int32], more_rounds: bool) -> NDArray[np.float32]:
        """Label logits [P, 2] of the leaves. With `more_rounds`, keys and values of reusable segments stay."""
        logits, tokens, passes = self._engine._score(leaves, more_rounds)
        self._comparisons += len(leaves)
        self._tokens_unshared += int(self.lengths(leaves).sum())
        self._tokens_computed += tokens
        self._passes += passes
        return logits

    @property
    def stats(self) -> Stats:
        """What the request has cost so far."""
        return Stats(
            comparisons=self._comparisons,
            tokens_unshared=self._tokens_unshared,
            tokens_tree=self._tree.num_tokens,
            tokens_computed=self._tokens_computed,
            passes=self._passes,
            seconds=time.perf_counter() - self._started,
        )


def default_budget(runner: Runner, free: int) -> int:
    """Tokens a pass. On a CPU small enough that activations stay near the caches.

    On a GPU large enough to fill it, 16,384, or what half of the `free` bytes hold: activations while a pass runs, and
    its keys and values.
    """
    if runner.device.type != "cuda":
        return CPU_BUDGET
    return max(_SMALLEST_BUDGET, min(16384, free // 2 // (runner.bytes_per_token + runner.bytes_per_slot)))


def _free_memory(device: torch.device) -> int:
    """Bytes."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _is_out_of_memory(error: Exception) -> bool:
    words = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)
