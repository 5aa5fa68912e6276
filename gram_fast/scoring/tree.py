"""From a token tree to the packed passes of one round.

The tree and the planning are C++ (csrc/tree); here are the arrays that come out, named.

Shape letters: T packed tokens, L leaves.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gram_fast.extension import _C
from gram_fast.ops.tables import Spans, check_leaf_rows

TokenTree = _C.TokenTree
"""Radix tree of all sequences asked for; every distinct prefix is one node."""


@dataclass(frozen=True)
class TreePass:
    """One forward over T packed tokens, in depth-first order. Tensors lie on the CPU.

    Slots [0, T) of the key/value buffer are the pass itself in packed order; keys and values kept from earlier passes
    lie from the token budget on.
    """

    budget: int
    """Slots below are nobody else's."""
    input_ids: Tensor
    """int64 [T]"""
    position_ids: Tensor
    """int64 [T], counted along the path from the root, not along the packing."""
    spans: Spans
    """Which slots each token reads. A node and its chain of first children are one span."""
    leaf_rows: Tensor
    """int64 [L]: packed index of the last token of a leaf."""
    leaf_index: NDArray[np.int64]
    """[L]: position of that leaf in the list of leaves asked for."""
    keep: list[tuple[int, int, int]]
    """(packed start, slot, length) of the keys and values to copy after the pass."""

    @classmethod
    def of_sequence(cls, input_ids: Tensor) -> "TreePass":
        """One sequence [T] alone, whose last token is the only leaf."""
        length = len(input_ids)
        spans = Spans(torch.tensor([[0, length]]), torch.tensor([0, 0]), torch.empty((0, 2), dtype=torch.int64))
        return cls(
            budget=length,
            input_ids=input_ids,
            position_ids=torch.arange(length),
            spans=spans,
            leaf_rows=torch.tensor([length - 1]),
            leaf_index=np.array([0]),
            keep=[],
        )

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.input_ids)


@dataclass(frozen=True)
class TreePlan:
    """The passes of one round."""

    passes: list[TreePass]
    num_slots: int
    """Slots of the key/value buffer that the plan uses."""
    kept: _C.KeptSlots
    """For `TokenTree.keep`, once every pass has run."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the plan computes."""
        return sum(tree_pass.num_tokens for tree_pass in self.passes)


def plan_round(
    tree: TokenTree, leaves: NDArray[np.int32], *, budget: int, keep_limit: int, more_rounds: bool
) -> TreePlan:
    """Plans the passes that give the logits of `leaves`, none over `budget` tokens.

    With `more_rounds`, nodes above a reusable segment border keep their slots for the next round while fewer than
    `keep_limit` slots are in use. The tree keeps what it has until it is told with `tree.keep(plan.kept)` that the
    passes were run.
    """
    tables, num_slots, kept = tree.plan(leaves, budget=budget, keep_limit=keep_limit, more_rounds=more_rounds)
    return TreePlan([tree_pass_of(table, budget, num_slots) for table in tables], num_slots, kept)


def tree_pass_of(table: dict[str, NDArray[np.int64]], budget: int, num_slots: int) -> TreePass:
    """A pass of the planner, by the names of csrc/tree/tree_plan.h. Its spans and leaf rows are checked here, once."""

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(table[name])

    spans, leaf_rows = Spans(tensor("spans"), tensor("range_offsets"), tensor("ranges")), tensor("leaf_rows")
    num_tokens = len(table["input_ids"])
    check_leaf_rows(leaf_rows, num_tokens)
    return TreePass(
        budget=budget,
        input_ids=tensor("input_ids"),
        position_ids=tensor("position_ids"),
        spans=spans.check(num_slots, num_tokens),
        leaf_rows=leaf_rows,
        leaf_index=table["leaf_index"],
        keep=[(int(start), int(slot), int(length)) for start, slot, length in table["keep"]],
    )
