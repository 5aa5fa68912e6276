"""Runs scoring requests: plans passes over the token tree, runs them, keeps keys and values for the next round."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from gram_fast.devices import finish, give_memory_back
from gram_fast.errors import InputError
from gram_fast.results import ForwardStats
from gram_fast.scoring.forks import check_forked_child, in_forked_children
from gram_fast.scoring.key_values import KeyValueStore
from gram_fast.scoring.runner import Runner
from gram_fast.scoring.stops import check_stop
from gram_fast.scoring.tree import TokenTree, TreePlan, plan_round
from gram_fast.text.encoded import EncodedRound
from gram_fast.text.tokens import Ids

CPU_BUDGET = 1024
"""Most tokens of a pass on a CPU, by default: activations stay near the caches."""
# Memory of a pass on a GPU.
_PASS_BYTES = 4 * 2**30
# Fewer tokens per pass would not help against running out of memory.
_SMALLEST_BUDGET = 16
_NO_LOGITS = np.empty((0, 2), np.float32)


@dataclass(frozen=True)
class Run:
    """Result of running a plan, up to its end or until memory ran out."""

    leaf_index: NDArray[np.int64]
    """Positions, int64 [L], of the leaves with logits in the plan's list of leaves."""
    logits: NDArray[np.float32]
    """Label logits, float32 [L, 2]."""
    num_tokens: int
    """Tokens computed."""
    num_passes: int
    is_complete: bool


class Engine:
    """Scores requests with one model, one at a time (other threads wait); holds its key/value store and budget."""

    def __init__(self, runner: Runner, max_batch_tokens: int | None = None) -> None:
        """`max_batch_tokens`: most tokens of one pass; None chooses by device."""
        self._runner = runner
        self._head_ids = np.empty(0, np.int32)
        self._tree = TokenTree(self._head_ids)
        self._store = KeyValueStore()
        self._is_whole = True
        """Whether the tree and the store are what the last request left at its end, and of the same nodes."""
        self._lock = threading.Lock()
        self._holder: int | None = None
        """Thread of the request that has the lock."""
        self._is_forked = False
        in_forked_children(self._after_fork)
        free = runner.processes.least(_free_memory(runner.device))
        self.budget = max_batch_tokens or default_budget(runner, free)
        """Most tokens of one pass."""
        # An eighth of the free memory, at most 65,536 and at least one pass.
        self.keep_limit = max(self.budget, min(65536, free // 8 // runner.bytes_per_slot))
        """Most slots in use up to which nodes are kept between the rounds of a request."""

    @property
    def num_slots(self) -> int:
        """Current number of slots of the key/value store."""
        return self._store.num_slots

    @contextmanager
    def request(self, head_ids: Ids) -> "Iterator[ScoringRequest]":
        """Opens a request whose sequences all start with `head_ids`.

        Its keys and values are dropped at its end except the head's, which the next request with the same head reuses
        unless the model may have changed by then. Whatever ends a request early, the next one starts over. Raises
        InputError in a forked child where the model cannot run, and inside another request of the same thread, which
        would wait for itself.
        """
        if self._is_forked:
            check_forked_child(self._runner.device, self._runner.processes.count)
        if self._holder == threading.get_ident():
            raise InputError(
                "the judge is in the middle of a call of this thread: expected its end before the next call, which a "
                "hook of the model or a handler of a signal has made"
            )
        with self._lock:
            try:
                self._holder = threading.get_ident()
                self._begin(head_ids)
                yield ScoringRequest(self, self._tree)
                self._tree.clear()
                if self._runner.may_change:
                    self._tree.forget_slots()
                self._is_whole = True
            finally:
                self._holder = None
                if not self._is_whole:
                    self._release()

    def _begin(self, head_ids: Ids) -> None:
        """Prepares the tree and the store for a request, which alone can say that they are whole again."""
        was_whole, self._is_whole = self._is_whole, False
        if not was_whole:
            # A plan may be half run, the store half grown: not even `_release` need have come to its end.
            self._release()
        if not (was_whole and np.array_equal(head_ids, self._head_ids)):
            self._head_ids, self._tree = head_ids, TokenTree(head_ids)

    def run(self, plan: TreePlan) -> Run:
        """Runs the passes of a plan, in the request that made it.

        Running out of memory ends it early; it is raised, like every other error, where passes cannot get smaller.
        Raises StoppedError before a pass once the call is to stop.
        """
        # Inference mode saves a few hundredths of what the host takes of a pass. Its tensors cannot be trained with: a
        # model of somebody else's may keep some of those that it makes, such as cosines.
        with torch.no_grad() if self._runner.may_change else torch.inference_mode():
            return self._run(plan)

    def _run(self, plan: TreePlan) -> Run:
        """`run`, in its mode."""
        done: list[tuple[NDArray[np.int64], Tensor]] = []
        num_tokens, is_complete = 0, True
        # With several processes, the others take part in every pass, and cannot be told to leave one out.
        is_alone = self._runner.processes.count == 1
        try:
            self._store.reserve(plan.num_slots)
            # The bar shows on a terminal, when the request takes longer than two seconds.
            with tqdm(total=plan.num_tokens, unit="tok", unit_scale=True, delay=2, leave=False, disable=None) as bar:
                for tree_pass in plan.passes:
                    if is_alone:
                        check_stop()
                    done.append((tree_pass.leaf_index, self._runner.forward(tree_pass, self._store)))
                    num_tokens += tree_pass.num_tokens
                    self._store.copy(tree_pass.copies)
                    bar.update(tree_pass.num_tokens)
        except (RuntimeError, MemoryError) as error:
            if not (is_alone and _is_out_of_memory(error)) or self.budget // 2 < _SMALLEST_BUDGET:
                raise
            is_complete = False
        leaf_index = np.concatenate([np.empty(0, np.int64), *(index for index, _ in done)])
        parts = [logits_L2 for _, logits_L2 in done]
        # Read back once per plan, so that a GPU need not wait for the host between passes; one that is full has no room
        # to join them.
        parts = parts if is_complete else [part.cpu() for part in parts]
        logits = torch.cat(parts).cpu().numpy() if parts else _NO_LOGITS
        return Run(leaf_index, logits, num_tokens, len(done), is_complete)

    def halve_budget(self) -> None:
        """Halves the size of passes, frees all keys and values, and warns."""
        before = self.budget
        self.budget //= 2
        self.keep_limit //= 2
        self._tree.forget_slots()
        self._release()
        give_memory_back(self._runner.device)
        # At last: where warnings are errors, the next call starts with the smaller budget.
        warnings.warn(
            f"out of memory: passes of {before} tokens are halved to {self.budget}; pass "
            f"max_batch_tokens={self.budget} to start there",
            stacklevel=2,
        )

    def _release(self) -> None:
        """Frees all keys and values, once nothing that was launched can write to their memory."""
        finish(self._runner.device)
        self._store.release()

    def _after_fork(self) -> None:
        """Starts over in a forked child: a request of another thread, half run, does not end there."""
        self._is_forked, self._is_whole, self._holder, self._lock = True, False, None, threading.Lock()
        tqdm.set_lock(threading.RLock())


class ScoringRequest:
    """One call's rounds over a growing token tree, and their cost."""

    def __init__(self, engine: Engine, tree: TokenTree) -> None:
        """`tree`: holds only the head."""
        self._engine, self._tree = engine, tree
        self.num_segments = 0
        """Number of segments that the tree holds."""
        self._comparisons = self._tokens_unshared = self._tokens_computed = self._passes = 0

    def add(self, encoded: EncodedRound) -> NDArray[np.int32]:
        """Adds the sequences of a round to the tree -> leaf numbers, int32 [P]."""
        for ids in encoded.segments:
            self._tree.add_segment(ids)
        self.num_segments += len(encoded.segments)
        return self._tree.add_sequences(encoded.sequences, encoded.reusable)

    def lengths(self, leaves: NDArray[np.int32]) -> NDArray[np.int64]:
        """Tokens of the whole sequences, head included -> int64 [P]."""
        return self._tree.leaf_lengths(leaves)

    def score(self, leaves: NDArray[np.int32], more_rounds: bool) -> NDArray[np.float32]:
        """Computes the label logits of the leaves -> float32 [P, 2]; `more_rounds` keeps reusable keys and values."""
        logits = np.full((len(leaves), 2), np.nan, np.float32)
        pending = np.arange(len(leaves))
        while len(pending):
            plan = plan_round(
                self._tree,
                leaves[pending],
                budget=self._engine.budget,
                keep_limit=self._engine.keep_limit,
                more_rounds=more_rounds,
            )
            run = self._engine.run(plan)
            logits[pending[run.leaf_index]] = run.logits
            pending = np.delete(pending, run.leaf_index)
            self._tokens_computed += run.num_tokens
            self._passes += run.num_passes
            if run.is_complete:
                self._tree.keep(plan.kept)
            else:
                # After `run` has returned: its exception held the failed forward's activations.
                self._engine.halve_budget()
        self._comparisons += len(leaves)
        self._tokens_unshared += int(self.lengths(leaves).sum())
        return logits

    def stats(self, seconds: float) -> ForwardStats:
        """Cost of the request so far; `seconds`: wall time, which the caller measures."""
        return ForwardStats(
            comparisons=self._comparisons,
            seconds=seconds,
            tokens_unshared=self._tokens_unshared,
            tokens_tree=self._tree.num_tokens,
            tokens_computed=self._tokens_computed,
            passes=self._passes,
        )


def default_budget(runner: Runner, free: int) -> int:
    """Chooses the most tokens of a pass: CPU_BUDGET on a CPU.

    On a GPU those whose activations, keys and values take 4 GiB, or half of the `free` bytes where that is less, and
    65,536 at most: 16,900 for the shape of Qwen3-8B, more for smaller models, whose tokens fill a GPU less.
    """
    if runner.device.type != "cuda":
        return CPU_BUDGET
    bytes_per_token = runner.bytes_per_token + runner.bytes_per_slot
    return max(_SMALLEST_BUDGET, min(65536, min(_PASS_BYTES, free // 2) // bytes_per_token))


def _free_memory(device: torch.device) -> int:
    """Free memory of the device in bytes."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _is_out_of_memory(error: Exception) -> bool:
    # Of the driver, which loads kernels and makes graphs, "CUDA error: out of memory", which is no OutOfMemoryError.
    words = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)
