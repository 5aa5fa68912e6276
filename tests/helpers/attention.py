"""What the tests of attention over trees share: tables of spans, inputs, plain attention, passes of random trees.

Tensor letters: T tokens, H heads, K key/value heads, E columns a head, S slots, N spans, R ranges.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from gram_fast import ops
from gram_fast.scoring.tree import TokenTree, TreePass, plan_round
from helpers.exactness import Order, assert_no_further, orders_of_summation

BACKENDS_HERE = [
    "reference",
    "cascade",
    "extension",
    pytest.param("triton", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="needs the interpreter")),
]
"""Backends of tree attention that run on a CPU, as parameters of a test."""
Tables = tuple[Tensor, Tensor, Tensor]  # spans [N, 2], range_offsets [N + 1], ranges [R, 2]
Inputs = tuple[Tensor, Tensor, Tensor]  # q [T, H, E], k [S, K, E], v [S, K, E]
Ranges = Sequence[tuple[int, int]]


class Softmax(NamedTuple):
    """What the scores of a token go through: by default, a plain softmax over its whole path."""

    window: ops.Window | None = None
    sinks_H: Tensor | None = None
    softcap: float | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Of the ops and of their references."""
        size, is_chunked = self.window or (None, False)
        return {"window": size, "is_chunked": is_chunked, "sinks_H": self.sinks_H, "softcap": self.softcap}

    @property
    def needs(self) -> dict[str, bool]:
        """What a backend must have: arguments of `backend_problem`."""
        return {"is_windowed": self.window is not None, "is_capped": self.softcap is not None}

    def is_hidden(self, keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """Whether the token at a position does not read that at another."""
        if self.window is None:
            is_outside = np.zeros((), bool)
        elif self.window.is_chunked:
            is_outside = keys // self.window.size < queries // self.window.size
        else:
            is_outside = keys <= queries - self.window.size
        return is_outside | (keys > queries)

    def weights(self, scores_TS: Tensor, is_hidden_TS: Tensor, head: int) -> Tensor:
        """Weights of the keys in one head, everything rounded to the dtype of the scores."""
        if self.softcap is not None:
            scores_TS = (scores_TS / self.softcap).tanh() * self.softcap
        scores_TS = scores_TS.masked_fill(is_hidden_TS, float("-inf"))
        if self.sinks_H is None:
            return scores_TS.softmax(dim=-1)
        sink = self.sinks_H[head].to(scores_TS.dtype).expand(len(scores_TS), 1)
        return torch.cat([scores_TS, sink], dim=-1).softmax(dim=-1)[:, :-1]


PLAIN = Softmax()


def make_tables(spans: Ranges, reads: Sequence[Ranges]) -> Tables:
    """Spans, and the ranges that each reads."""
    rows = [row for read in reads for row in read]
    offsets = np.cumsum([0, *map(len, reads)])
    return torch.tensor(spans), torch.from_numpy(offsets), torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)


def tables_of_lengths(lengths: Sequence[int], reads: Sequence[Ranges]) -> Tables:
    """Spans of these lengths side by side."""
    ends = np.cumsum(lengths).tolist()
    return make_tables([(end - length, end) for end, length in zip(ends, lengths, strict=True)], reads)


# Two trees in one pass: spans read nothing, a part of an earlier span, kept slots, and several of these.
FOREST = tables_of_lengths(
    [5, 3, 1, 7, 2],
    [[], [(0, 4)], [(30, 37), (0, 2)], [(21, 22)], [(21, 22), (9, 13), (25, 28)]],
)
FOREST_TOKENS, FOREST_SLOTS = 18, 41
# 196 tokens that read no others.
TREE = tables_of_lengths([150, 3, 1, 40, 2], [[], [(0, 71)], [(0, 71)], [(0, 150), (151, 153)], [(3, 77)]])
on_each_forest = pytest.mark.parametrize(
    "tables", [FOREST, tables_of_lengths([FOREST_TOKENS], [[]])], ids=["forest", "one span"]
)


def random_inputs(
    num_queries: int,
    num_slots: int,
    heads: tuple[int, int] = (4, 2),
    width: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Inputs:
    """`heads`: of queries, of keys."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    num_heads, num_kv_heads = heads
    return (
        normal(num_queries, num_heads, width),
        normal(num_slots, num_kv_heads, width),
        normal(num_slots, num_kv_heads, width),
    )


def plain_attention(
    inputs: Inputs,
    tables: Tables,
    scale: float,
    dtype: torch.dtype,
    order: Order = np.asarray,
    softmax: Softmax = PLAIN,
) -> Tensor:
    """Span by span: the keys that it reads side by side, one softmax, everything rounded to `dtype`.

    `order` is that of the terms of all sums: over the columns of a head and over the keys.
    """
    q_THE, k_SKE, v_SKE = (tensor.to(dtype) for tensor in inputs)
    columns = order(np.arange(q_THE.shape[-1]))
    q_THE, k_SKE = q_THE[..., columns], k_SKE[..., columns]
    num_heads, num_kv_heads = q_THE.shape[1], k_SKE.shape[1]
    offsets, ranges = tables[1].tolist(), tables[2].tolist()
    out_THE = torch.empty(q_THE.shape, dtype=dtype, device=q_THE.device)
    for index, (start, end) in enumerate(tables[0].tolist()):
        read = [slot for low, high in ranges[offsets[index] : offsets[index + 1]] for slot in range(low, high)]
        places = order(np.arange(len(read) + end - start))
        slots = np.array([*read, *range(start, end)])[places]
        # By default, query t sees all of `read` and its span up to itself.
        queries = len(read) + np.arange(end - start)[:, None]
        is_hidden = torch.from_numpy(softmax.is_hidden(places, queries)).to(q_THE.device)
        for head in range(num_heads):
            kv_head = head * num_kv_heads // num_heads
            scores = q_THE[start:end, head] @ k_SKE[slots, kv_head].T * scale
            weights = softmax.weights(scores, is_hidden, head)
            out_THE[start:end, head] = weights @ v_SKE[slots, kv_head]
    return out_THE


# Times the error of plain attention in the same dtype. In float32 the exponential of torch's CPU flash kernel is good
# to 20 units in the last place where the plain one is good to 1: single tokens reach 2.3 times the plain error.
FACTOR = {torch.float32: 4.0, torch.float16: 1.5, torch.bfloat16: 1.5}


def assert_as_exact_as_plain(
    actual: Tensor, inputs: Inputs, tables: Tables, scale: float, softmax: Softmax = PLAIN
) -> None:
    dtype = inputs[0].dtype
    exact = plain_attention(inputs, tables, scale, torch.float64, softmax=softmax).cpu()
    orders = orders_of_summation(actual.numel())
    plain = torch.stack([plain_attention(inputs, tables, scale, dtype, order, softmax) for order in orders]).cpu()
    assert actual.is_contiguous()
    assert_no_further(actual, exact, plain, FACTOR[dtype])


def assert_as_exact_as_plain_gradients(
    actual: Sequence[Tensor], inputs: Inputs, grad_THE: Tensor, tables: Tables, scale: float
) -> None:
    """Of gradients of queries, keys and values, given that of the result."""
    dtype = inputs[0].dtype
    exact = _plain_gradients(inputs, grad_THE, tables, scale, torch.float64)
    orders = orders_of_summation(actual[1].numel())
    plain = zip(*(_plain_gradients(inputs, grad_THE, tables, scale, dtype, order) for order in orders), strict=True)
    for ours, expected, others in zip(actual, exact, plain, strict=True):
        assert ours.is_contiguous()
        assert_no_further(ours, expected, torch.stack(others), FACTOR[dtype])


def _plain_gradients(
    inputs: Inputs, grad_THE: Tensor, tables: Tables, scale: float, dtype: torch.dtype, order: Order = np.asarray
) -> list[Tensor]:
    q_THE, k_SKE, v_SKE = (x.to(dtype).requires_grad_() for x in inputs)
    plain_attention((q_THE, k_SKE, v_SKE), tables, scale, dtype, order).backward(grad_THE.to(dtype))
    return [x.grad for x in (q_THE, k_SKE, v_SKE) if x.grad is not None]


def poisoned(tensor: Tensor, tables: Tables, num_tokens: int, poison: float = float("nan")) -> Tensor:
    """`poison` in every slot that nobody reads."""
    is_read = torch.zeros(len(tensor), dtype=torch.bool, device=tensor.device)
    is_read[:num_tokens] = True
    for low, high in tables[2].tolist():
        is_read[low:high] = True
    return torch.where(is_read[:, None, None], tensor, poison)


def check_tree_attention(inputs: Inputs, tables: Tables, backend: str, device: str = "cpu") -> None:
    """As exact as plain attention, and no slot counts that nobody should read."""
    scale = inputs[0].shape[-1] ** -0.5
    q_THE, k_SKE, v_SKE = inputs
    # Triton's loads of whole blocks bring such slots, whatever finite number they hold, and weigh them with zero.
    poison = min(1e30, torch.finfo(q_THE.dtype).max) if backend == "triton" else float("nan")
    k_SKE, v_SKE = (poisoned(tensor, tables, len(q_THE), poison) for tensor in (k_SKE, v_SKE))
    out_THE = ops.tree_attention(*(x.to(device) for x in (q_THE, k_SKE, v_SKE)), *tables, scale, backend)
    assert_as_exact_as_plain(out_THE, inputs, tables, scale)


def plain_varlen(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    lengths_q: Sequence[int],
    lengths_k: Sequence[int],
    scale: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor]:
    """What kernels for packed problems of several lengths compute, one after the other -> out [T, H, E], lse [T, H]."""
    group = q_THE.shape[1] // k_SKE.shape[1]
    outs, lses = [], []
    lengths_q, lengths_k = list(lengths_q), list(lengths_k)
    for q, k, v in zip(q_THE.split(lengths_q), k_SKE.split(lengths_k), v_SKE.split(lengths_k), strict=True):
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        scores_HTS = torch.einsum("the,she->hts", q.float(), k.float()) * scale
        if is_causal:
            assert len(q) == len(k)
            above = torch.ones(scores_HTS.shape[1:], dtype=torch.bool, device=q.device).triu(1)
            scores_HTS = scores_HTS.masked_fill(above, float("-inf"))
        outs.append(torch.einsum("hts,she->the", scores_HTS.softmax(dim=-1), v.float()).to(q.dtype))
        lses.append(scores_HTS.logsumexp(dim=-1))
    # Like the real ones, which give [H, T] from their kernels.
    return torch.cat(outs), torch.cat(lses, dim=1).transpose(0, 1)


Rounds = tuple[list[list[int]], list[list[tuple[int, int, int]]], int, int]


@st.composite
def rounds(draw: st.DrawFn) -> Rounds:
    """Segments, rows of them for one or two rounds, a budget and how much may be kept."""
    segments = draw(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=2, max_size=5))
    row = st.tuples(*[st.integers(0, len(segments) - 1)] * 3)
    tables = draw(st.lists(st.lists(row, min_size=1, max_size=6), min_size=1, max_size=2))
    return segments, tables, draw(st.sampled_from([3, 7, 16, 64])), draw(st.sampled_from([0, 8, 1000]))


def passes_of(made: Rounds) -> Iterator[tuple[TreePass, int]]:
    """All passes of all rounds, each with the number of slots."""
    segments, sequences, budget, keep_limit = made
    tree = TokenTree([1, 0, 1])
    for ids in segments:
        tree.add_segment(ids)
    for rows in sequences:
        plan = plan_round(tree, tree.add_sequences(rows, 1), budget=budget, keep_limit=keep_limit, more_rounds=True)
        yield from ((tree_pass, plan.num_slots) for tree_pass in plan.passes)
        tree.keep(plan.kept)


def tournament_passes(
    num_prompts: int, num_responses: int, longest: int, budget: int
) -> Iterator[tuple[TreePass, int]]:
    """Passes of two rounds over texts of odd lengths up to `longest`, each with the number of slots.

    First all pairs in both orders, then some again behind other last tokens: with keys and values that were kept.
    """
    rng = np.random.default_rng(0)
    tree = TokenTree(rng.integers(0, 5000, 37))

    def segments(count: int, limit: int) -> list[int]:
        return [tree.add_segment(rng.integers(0, 5000, 2 * n + 1)) for n in rng.integers(0, (limit + 1) // 2, count)]

    prompts, ends = segments(num_prompts, 2 * longest), segments(2, 9)
    shown = [segments(num_responses, longest) for _ in prompts]
    pairs = list(itertools.permutations(range(num_responses), 2))
    for end, asked in zip(ends, (pairs, pairs[:: num_responses + 1]), strict=True):
        rows = [[prompt, of[i], of[j], end] for prompt, of in zip(prompts, shown, strict=True) for i, j in asked]
        plan = plan_round(tree, tree.add_sequences(rows, 2), budget=budget, keep_limit=10**6, more_rounds=True)
        yield from ((tree_pass, plan.num_slots) for tree_pass in plan.passes)
        tree.keep(plan.kept)


def span_tables(tree_pass: TreePass) -> Tables:
    return tree_pass.spans
