"""Plans the packed passes of one round over a token tree.

The tree and the planner are C++ (csrc/tree); this module names the planner's arrays.

Shape letters: T packed tokens, L leaves, C copies, P pieces.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gram_fast.extension import _C
from gram_fast.kernels.tables import PIECE_COLUMNS
from gram_fast.ops.tables import Spans

TokenTree = _C.TokenTree
"""Radix tree of a request's sequences; a node is a run of tokens that the same sequences share."""


@dataclass(frozen=True)
class TreePass:
    """One forward over T packed tokens, in depth-first order. Tensors lie on the CPU.

    Slots [0, T) of the key/value buffer are the pass itself in packed order; keys and values kept from earlier passes
    lie from the token budget on.
    """

    budget: int
    """Slots reserved for the pass: [0, budget)."""
    input_ids: Tensor
    """Token ids, int64 [T]."""
    position_ids: Tensor
    """Positions along the path from the root, not along the packing, int64 [T]."""
    spans: Spans
    """Slots that each token reads. A node and its chain of first children are one span."""
    leaf_rows: Tensor
    """Packed index of the last token of each leaf, int64 [L]."""
    leaf_index: NDArray[np.int64]
    """Position of each leaf in the list of leaves that was planned, int64 [L]."""
    copies: NDArray[np.int64]
    """Keys and values to copy after the pass: rows of packed start, slot, length, int64 [C, 3]."""
    pieces: NDArray[np.int64]
    """Runs of tokens whose states follow each other, for a model with states: rows of packed start, end, level, the
    piece of the pass that it starts from or -1, the slot of the state that it starts from or -1, the slot that the
    state at its end goes to or -1, int64 [P, 6]. A piece's level is one above that of the piece it starts from."""

    @classmethod
    def of_sequence(cls, input_ids: Tensor) -> "TreePass":
        """Makes the pass of a single sequence of ids [T], whose last token is the only leaf."""
        length = len(input_ids)
        spans = Spans(torch.tensor([[0, length]]), torch.tensor([0, 0]), torch.empty((0, 2), dtype=torch.int64))
        return cls(
            budget=length,
            input_ids=input_ids,
            position_ids=torch.arange(length),
            spans=spans,
            leaf_rows=torch.tensor([length - 1]),
            leaf_index=np.array([0]),
            copies=np.empty((0, 3), np.int64),
            pieces=np.empty((0, PIECE_COLUMNS), np.int64),
        )

    @property
    def num_tokens(self) -> int:
        """Number of packed tokens, T."""
        return len(self.input_ids)


@dataclass(frozen=True)
class TreePlan:
    """Passes of one round."""

    passes: list[TreePass]
    num_slots: int
    """Slots of the key/value buffer that the plan uses."""
    num_states: int
    """Slots of the buffer of states that it uses."""
    kept: _C.KeptSlots
    """Argument for `TokenTree.keep`, once every pass has run."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the plan computes."""
        return sum(tree_pass.num_tokens for tree_pass in self.passes)


def plan_round(
    tree: TokenTree,
    leaves: NDArray[np.int32],
    *,
    budget: int,
    keep_limit: int,
    more_rounds: bool,
    cache_limit: int = 0,
    state_cost: int = 0,
) -> TreePlan:
    """Plans the passes that give the logits of `leaves`, none over `budget` tokens.

    With `more_rounds`, nodes above a reusable segment border keep their slots for the next round while at most
    `keep_limit` slots are in use; with a `cache_limit` above 0, for any round to come while at most so many are, and
    those that were read longest ago make room. The tree records these slots when `tree.keep(plan.kept)` is called,
    after the passes were run.

    `state_cost`: memory of one state in slots, which both limits count; 0 for a model without states.
    """
    tables, num_slots, num_states, kept = tree.plan(
        leaves,
        budget=budget,
        keep_limit=keep_limit,
        more_rounds=more_rounds,
        cache_limit=cache_limit,
        state_cost=state_cost,
    )
    return TreePlan([tree_pass_of(table, budget) for table in tables], num_slots, num_states, kept)


def tree_pass_of(table: dict[str, NDArray[np.int64]], budget: int) -> TreePass:
    """Makes a TreePass from the planner's arrays (csrc/tree/tree_plan.h). It checked the spans and leaf rows."""

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(table[name])

    return TreePass(
        budget=budget,
        input_ids=tensor("input_ids"),
        position_ids=tensor("position_ids"),
        spans=Spans(tensor("spans"), tensor("range_offsets"), tensor("ranges")),
        leaf_rows=tensor("leaf_rows"),
        leaf_index=table["leaf_index"],
        copies=table["keep"],
        pieces=table["pieces"],
    )
