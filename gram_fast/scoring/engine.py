"""Runs scoring requests: plans passes over the token tree, runs them, keeps keys and values for the next round.

Calls that wait for the engine at the same time have it together (turns.py): what they ask is packed into the same
passes.
"""

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from gram_fast.devices import finish, free_memory, give_memory_back, is_out_of_memory
from gram_fast.scoring.calls import Calls
from gram_fast.scoring.forks import check_forked_child, in_forked_children
from gram_fast.scoring.key_values import KeyValueStore
from gram_fast.scoring.request import ScoringRequest, shares
from gram_fast.scoring.runner import Runner
from gram_fast.scoring.stops import StoppedError
from gram_fast.scoring.tree import TokenTree, TreePass, TreePlan, plan_round
from gram_fast.scoring.turns import RunApartError, Turns
from gram_fast.scoring.worker import Worker
from gram_fast.text.tokens import Ids

CPU_BUDGET = 1024
"""Most tokens of a pass on a CPU, by default: activations stay near the caches."""
# Memory of a pass on a GPU.
_PASS_BYTES = 4 * 2**30
# More tokens than any plan has.
_ANY = 2**62
# Fewer tokens per pass would not help against running out of memory.
_SMALLEST_BUDGET = 16


@dataclass(frozen=True)
class Run:
    """Result of running a plan, up to its end or until memory ran out."""

    leaf_index: NDArray[np.int64]
    """Positions, int64 [L], of the leaves with logits in the plan's list of leaves."""
    logits: NDArray[np.float32]
    """Label logits, float32 [L, 2], or log probabilities of the request's tokens, [L, K]."""
    num_tokens: int
    """Tokens computed."""
    num_passes: int
    is_complete: bool


class Engine:
    """Scores requests with one model; holds its key/value store and budget.

    Requests of several threads take turns. Those that wait at the same time have one together, as many as fill a pass:
    more would not be cheaper, and each would wait for all.
    """

    def __init__(self, runner: Runner, max_batch_tokens: int | None = None) -> None:
        """`max_batch_tokens`: most tokens of one pass; None chooses by device."""
        self._runner = runner
        self._root_ids = np.empty(0, np.int32)
        self._tree = TokenTree(self._root_ids)
        self._store = KeyValueStore()
        self._planting = 0  # changes whenever the tree has lost its segments
        self._is_whole = True
        """Whether the store holds what the tree says."""
        self._worker: Worker | None = None
        self._calls, self._turns = Calls(), self._new_turns()
        self._is_forked = False
        in_forked_children(self._after_fork)
        free = runner.processes.least(free_memory(runner.device))
        self.budget = max_batch_tokens or default_budget(runner, free)
        """Most tokens of one pass."""
        # Memory of a state in slots, rounded up.
        self._state_cost = -(-runner.bytes_per_state // runner.bytes_per_slot)
        # An eighth of the free memory, at most 65,536 and at least one pass. The states of 64 candidates come on top.
        most = 65536 + 64 * self._state_cost
        self.keep_limit = max(self.budget, min(most, free // 8 // runner.bytes_per_slot))
        """Most slots in use up to which nodes are kept between the rounds of a request; a state counts as several."""
        self.cache_limit = 0
        """Most slots in use up to which nodes are kept for requests to come, those that were read last.

        Above 0, a request with much to ask also gives way to others after each pass, and all passes run in one thread;
        with 0 it has the engine from its first pass to its end, and runs it in its own thread.
        """

    @property
    def num_slots(self) -> int:
        """Current number of slots of the key/value store."""
        return self._store.num_slots

    @contextmanager
    def request(
        self, head_ids: Ids, token_ids: tuple[int, ...] | None = None, *, is_factored: bool = False
    ) -> Iterator[ScoringRequest]:
        """Opens a request whose sequences all start with `head_ids`; it waits for the engine when it first scores.

        `token_ids`: tokens whose log probabilities behind each sequence are wanted in place of label logits.
        `is_factored`: its sequences are verdicts behind two paths.

        Its keys and values are dropped at the end of its turn except the head's and, up to `cache_limit`, the most
        recent; later requests reuse them unless the model may have changed by then. Raises InputError in a
        forked child where the model cannot run, and from within another request (`Calls`).
        """
        if self._is_forked:
            check_forked_child(self._runner.device, self._runner.processes.count)
        # A cache is of all heads: a request without the judge's instruction would drop what was read behind it.
        request = ScoringRequest(head_ids, token_ids, head_is_segment=self.cache_limit > 0, is_factored=is_factored)
        with self._calls.open(), self._turns.place(request) as request.ask:
            yield request

    def _new_turns(self) -> Turns[ScoringRequest]:
        return Turns(self._run_turn, self._end_turn, self._fit, self._is_stopped, self._gives_way)

    def _gives_way(self) -> bool:
        """Whether a turn may end before its requests do: where what they share stays for them.

        Nothing stays of a model that may change.
        """
        return self.cache_limit > 0 and not self._runner.may_change

    def _fit(self, requests: Sequence[ScoringRequest]) -> bool:
        """Whether requests may have a turn together. Never with several processes, which must all do the same."""
        return (
            self._runner.processes.count == 1
            and sum(request.tokens_distinct for request in requests) <= self.budget
            and requests[0].token_ids == requests[-1].token_ids
            and requests[0].is_factored == requests[-1].is_factored
            and np.array_equal(requests[0].root_ids, requests[-1].root_ids)
        )

    def _run_turn(self, requests: Sequence[ScoringRequest]) -> Sequence[ScoringRequest]:
        if not self.cache_limit:
            return self._score(requests)
        if self._worker is None:
            self._worker = Worker(self._runner.device)
        return self._worker.run(lambda: self._score(requests))

    def _score(self, requests: Sequence[ScoringRequest]) -> Sequence[ScoringRequest]:
        """Answers what requests of one turn ask, packed together -> those that are not done, having given way.

        Each counts its share of the cost, by its tokens. What was answered before an interruption is not asked any
        more, nor what a stopped call asks.
        """
        requests = [request for request in requests if request.num_asked and not self._is_stopped(request)]
        if not requests:
            return ()
        was_whole, self._is_whole = self._is_whole, False
        if not was_whole:
            # A plan may be half run, the store half grown: not even `_forget` need have come to its end.
            self._forget()
        if not np.array_equal(requests[0].root_ids, self._root_ids):
            self._root_ids, self._tree = requests[0].root_ids, TokenTree(requests[0].root_ids)
            self._planting += 1
        try:
            of_requests = [request.add_to(self._tree, self._planting) for request in requests]
            self._count_tree(requests, of_requests)
            leaves = np.concatenate(of_requests)
            more_rounds = any(request.more_rounds for request in requests)
            logits, is_done, tokens_computed, passes = self._logits(requests, leaves, more_rounds)
            # Attention weighs what a token must not see by 0, which leaves a NaN a NaN, also in what is kept.
            self._is_whole = bool(np.isfinite(logits[is_done]).all())
        finally:
            if not self._is_whole:
                self._forget()
        if not self._is_whole and len(requests) > 1:
            raise RunApartError("one of several calls has logits that are not finite")
        of_request = np.cumsum([request.num_asked for request in requests])[:-1]
        parts, done = np.split(logits, of_request), np.split(is_done, of_request)
        tokens_done = [request.lengths_asked[its].sum() for request, its in zip(requests, done, strict=True)]
        if not is_done.any():  # all were stopped
            return ()
        computed = shares(tokens_computed, np.array(tokens_done))
        for k, request in enumerate(requests):
            request.answer(parts[k], done[k], computed[k], passes)
        return [request for request in requests if request.num_asked and not self._is_stopped(request)]

    def _count_tree(self, requests: Sequence[ScoringRequest], leaves: Sequence[NDArray[np.int32]]) -> None:
        """Shares out the tokens on the paths to leaves, each once a turn; of requests that run again none."""
        new = [(request, its) for request, its in zip(requests, leaves, strict=True) if not request.is_counted]
        if not new:
            return
        tokens = self._tree.count_tokens(np.concatenate([its for _, its in new]))
        weights = np.array([request.lengths_asked.sum() for request, _ in new])
        for (request, _), share in zip(new, shares(tokens, weights), strict=True):
            request.tokens_tree += share
            request.is_counted = True

    def _logits(
        self, requests: Sequence[ScoringRequest], leaves: NDArray[np.int32], more_rounds: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], int, int]:
        """Computes the label logits of the requests' leaves, pass by pass until they give way.

        -> float32 [P, width], which of them are done, bool [P], tokens computed, passes.
        """
        logits = np.full((len(leaves), requests[0].width), np.nan, np.float32)
        is_done = np.zeros(len(leaves), np.bool_)
        is_factored, least_budget = requests[0].is_factored, max(request.least_budget for request in requests)
        tokens_computed = passes = 0
        while not is_done.all() and not (is_done.any() and self._turns.is_to_give_way):
            if self.cache_limit and self._are_stopped(requests):
                break  # between two plans, where what is kept is known
            pending = np.flatnonzero(~is_done)
            pending = pending[self._leaves_of_plan(leaves[pending], is_factored)]
            plan = plan_round(
                self._tree,
                leaves[pending],
                budget=max(self.budget, least_budget),
                keep_limit=self.keep_limit,
                more_rounds=more_rounds,
                # What verdicts read is kept from plan to plan: the next one reads most of it again.
                cache_limit=self.cache_limit or (self.keep_limit if is_factored else 0),
                state_cost=self._state_cost,
            )
            # Inference mode saves a few hundredths of what the host takes of a pass. Its tensors cannot be trained
            # with: a model of somebody else's may keep some of those that it makes, such as cosines.
            with torch.no_grad() if self._runner.may_change else torch.inference_mode():
                run = self._run(plan, requests)
            logits[pending[run.leaf_index]] = run.logits
            is_done[pending[run.leaf_index]] = True
            tokens_computed += run.num_tokens
            passes += run.num_passes
            if run.is_complete:
                self._tree.keep(plan.kept)
            else:
                # After `_run` has returned: its exception held the failed forward's activations.
                self.halve_budget()
        return logits, is_done, tokens_computed, passes

    def _leaves_of_plan(self, leaves: NDArray[np.int32], is_factored: bool) -> slice | NDArray[np.int64]:
        """Which of the leaves that wait are planned next: of verdicts those whose paths have room beside each other.

        Of calls that advance together, one pass of them.
        """
        if is_factored:
            slots, tokens = (self.cache_limit, self.budget) if self.cache_limit else (self.keep_limit, _ANY)
            return self._tree.verdicts_of_plan(leaves, slots=slots, tokens=tokens)
        return self._tree.leaves_of_pass(leaves, budget=self.budget) if self.cache_limit else slice(None)

    def _end_turn(self) -> None:
        was_whole, self._is_whole = self._is_whole, False
        self._planting += 1
        self._tree.clear(cache_limit=self.cache_limit)
        if self._runner.may_change:
            self._tree.forget_slots()
        self._is_whole = was_whole

    def _is_stopped(self, request: ScoringRequest) -> bool:
        """Whether its call waits no more.

        Never with several processes: the others take part in every pass, and cannot be told to leave one out.
        """
        return self._runner.processes.count == 1 and request.is_stopped()

    def _are_stopped(self, requests: Sequence[ScoringRequest]) -> bool:
        """Whether the run of these requests is to end: no call waits for them, or who waits was interrupted."""
        is_interrupted = self._worker is not None and self._worker.is_interrupted.is_set()
        return is_interrupted or all(self._is_stopped(request) for request in requests)

    def _run(self, plan: TreePlan, requests: Sequence[ScoringRequest]) -> Run:
        """Runs the passes of a plan of these requests.

        Running out of memory ends it early; it is raised, like every other error, where passes cannot get smaller.
        Raises StoppedError before a pass once all calls are to stop.
        """
        done: list[tuple[NDArray[np.int64], Tensor]] = []
        num_tokens, is_complete, token_ids = 0, True, requests[0].token_ids
        try:
            self._store.reserve(self._slots_for(plan))
            self._store.states.reserve(self._states_for(plan))
            # The bar shows on a terminal, when the request takes longer than two seconds.
            with tqdm(total=plan.num_tokens, unit="tok", unit_scale=True, delay=2, leave=False, disable=None) as bar:
                for tree_pass in plan.passes:
                    if self._are_stopped(requests):
                        raise StoppedError("the call was stopped between two passes")
                    done.append((tree_pass.leaf_index, self._forward(tree_pass, token_ids)))
                    num_tokens += tree_pass.num_tokens
                    self._store.copy(tree_pass.copies)
                    bar.update(tree_pass.num_tokens)
        except (RuntimeError, MemoryError) as error:
            # With several processes, the others wait in the middle of this pass and cannot be told to start over.
            is_alone = self._runner.processes.count == 1
            if not (is_alone and is_out_of_memory(error)) or self.budget // 2 < _SMALLEST_BUDGET:
                raise
            is_complete = False
        leaf_index = np.concatenate([np.empty(0, np.int64), *(index for index, _ in done)])
        parts = [logits_L2 for _, logits_L2 in done]
        # Read back once per plan, so that a GPU need not wait for the host between passes; one that is full has no room
        # to join them.
        parts = parts if is_complete else [part.cpu() for part in parts]
        logits = torch.cat(parts).cpu().numpy() if parts else np.empty((0, requests[0].width), np.float32)
        return Run(leaf_index, logits, num_tokens, len(done), is_complete)

    def _forward(self, tree_pass: TreePass, token_ids: tuple[int, ...] | None) -> Tensor:
        """Runs one pass -> label logits [L, 2], or the log probabilities of tokens [L, K]."""
        if token_ids is None:
            return self._runner.forward(tree_pass, self._store)
        return self._runner.token_logprobs(tree_pass, self._store, token_ids)

    def _slots_for(self, plan: TreePlan) -> int:
        """Slots that the store is to have for a plan: some more where a cache fills, as growing copies all of it."""
        has_room = plan.num_slots <= self._store.num_slots
        if not self.cache_limit or has_room:
            return plan.num_slots
        return max(plan.num_slots, min(self._store.num_slots * 5 // 4, self.budget + self.cache_limit))

    def _states_for(self, plan: TreePlan) -> int:
        """Slots of states that the store is to have for a plan, likewise."""
        have = self._store.states.num_states
        if not self.cache_limit or plan.num_states <= have:
            return plan.num_states
        return max(plan.num_states, min(have * 5 // 4, self.cache_limit // self._state_cost))

    def halve_budget(self) -> None:
        """Halves the size of passes, frees all keys and values, and warns."""
        before = self.budget
        self.budget //= 2
        self.keep_limit //= 2
        self.cache_limit = (self.cache_limit + 1) // 2  # not 0, which means something else
        self._forget()
        give_memory_back(self._runner.device)
        # At last: where warnings are errors, the next call starts with the smaller budget.
        warnings.warn(
            f"out of memory: passes of {before} tokens are halved to {self.budget}; pass "
            f"max_batch_tokens={self.budget} to start there",
            stacklevel=2,
        )

    def _forget(self) -> None:
        """Frees all keys and values, once nothing that was launched can write to their memory."""
        self._tree.forget_slots()
        finish(self._runner.device)
        self._store.release()

    def _after_fork(self) -> None:
        """Starts over in a forked child: a request of another thread, half run, does not end there."""
        self._is_forked, self._is_whole, self._planting, self._worker = True, False, self._planting + 1, None
        self._calls, self._turns, self._tree = Calls(), self._new_turns(), TokenTree(self._root_ids)
        tqdm.set_lock(threading.RLock())


def default_budget(runner: Runner, free: int) -> int:
    """Chooses the most tokens of a pass: CPU_BUDGET on a CPU.

    On a GPU those whose activations, keys and values take 4 GiB, or half of the `free` bytes where that is less, and
    65,536 at most: 16,900 for the shape of Qwen3-8B, more for smaller models, whose tokens fill a GPU less.
    """
    if runner.device.type != "cuda":
        return CPU_BUDGET
    bytes_per_token = runner.bytes_per_token + runner.bytes_per_slot
    return max(_SMALLEST_BUDGET, min(65536, min(_PASS_BYTES, free // 2) // bytes_per_token))
