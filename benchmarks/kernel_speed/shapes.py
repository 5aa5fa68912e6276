"""The forests that benchmarks/kernel_speed/run.py measures, and the arithmetic and bytes they need. Needs no GPU.

Shape letters: T packed tokens, H query heads, K key/value heads, E head width, L leaves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer

import gram_fast
from benchmarks.groups import read_groups
from gram_fast.scoring.tree import TokenTree, TreePass, tree_pass_of
from gram_fast.text.encoded import EncodedTexts
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokens import PairTokenizer

Pairs = list[tuple[int, int]]


@dataclass(frozen=True)
class Heads:
    """Attention heads of a model."""

    model: str
    num_heads: int
    num_kv_heads: int
    width: int

    @property
    def group(self) -> int:
        return self.num_heads // self.num_kv_heads


QWEN3_8B = Heads("Qwen3-8B", 32, 8, 128)
QWEN3_1_7B = Heads("Qwen3-1.7B", 16, 8, 128)


@dataclass(frozen=True)
class Forest:
    """One pass that holds all tokens of a tree."""

    name: str
    tree_pass: TreePass
    nodes: NDArray[np.int64]
    """[N, NODE_COLUMNS], as the planner writes them."""

    @property
    def num_tokens(self) -> int:
        return self.tree_pass.num_tokens

    @property
    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Spans, range offsets and ranges, as the ops take them."""
        return self.tree_pass.spans

    @cached_property
    def visible_pairs(self) -> int:
        """Pairs of a query and a key that it sees."""
        spans, offsets, ranges = (table.numpy() for table in self.tables)
        lengths = spans[:, 1] - spans[:, 0]
        above = np.concatenate([[0], np.cumsum(ranges[:, 1] - ranges[:, 0])])
        read = above[offsets[1:]] - above[offsets[:-1]]
        return int((lengths * (lengths + 1) // 2 + lengths * read).sum())

    @cached_property
    def subtree_ends(self) -> NDArray[np.int64]:
        """[T]: the queries that see key t are [t, subtree_ends[t])."""
        nodes = self.nodes
        return np.repeat(nodes[:, 2], nodes[:, 1] - nodes[:, 0])

    @cached_property
    def paths(self) -> list[NDArray[np.int64]]:
        """Packed tokens of every leaf's whole sequence, from the root on."""
        nodes = self.nodes
        found = []
        for row in self.tree_pass.leaf_rows.tolist():
            node, end, parts = int(np.searchsorted(nodes[:, 0], row, side="right")) - 1, row + 1, []
            while node >= 0:
                parts.append(np.arange(nodes[node, 0], end))
                node = int(nodes[node, 3])
                end = int(nodes[node, 1])
            found.append(np.concatenate(parts[::-1]))
        return found

    @property
    def is_two_level(self) -> bool:
        """Whether it is one root with leaves right below."""
        parents = self.nodes[:, 3]
        return len(parents) > 1 and parents[0] == -1 and bool((parents[1:] == 0).all())


def attention_flops(pairs: int, heads: Heads) -> int:
    """Of both products of attention over so many visible pairs."""
    return 4 * heads.width * heads.num_heads * pairs


def leaf_bytes(forest: Forest, heads: Heads, itemsize: int = 2) -> int:
    """The fewest that attention of the last tokens moves: every key and value that one of them sees once, q and out."""
    is_read = np.zeros(forest.num_tokens, bool)
    for path in forest.paths:
        is_read[path] = True
    keys, queries = int(is_read.sum()), len(forest.paths)
    return itemsize * heads.width * (2 * heads.num_kv_heads * keys + 2 * heads.num_heads * queries)


def key_blocks(subtree_ends: NDArray[np.int64], size: int = 128) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """[blocks of queries, blocks of keys]: where some pair is visible and not all are; where all are.

    In depth-first order the queries that see a key stand right behind it, up to the end of its subtree.
    """
    num_tokens = len(subtree_ends)
    num_blocks = -(-num_tokens // size)
    first = np.arange(num_blocks) * size
    last = np.minimum(first + size, num_tokens) - 1
    blocks = [subtree_ends[low : high + 1] for low, high in zip(first, last, strict=True)]
    nearest, furthest = (np.array([pick(block) for block in blocks]) for pick in (np.min, np.max))
    is_whole = first + size <= num_tokens
    is_full = (last <= first[:, None]) & (nearest > last[:, None]) & is_whole & is_whole[:, None]
    is_any = np.eye(num_blocks, dtype=bool) | ((last < first[:, None]) & (furthest > first[:, None]))
    return is_any & ~is_full, is_full


def make_forest(
    name: str, head: NDArray[np.int32], segments: Sequence[NDArray[np.int32]], rows: NDArray[np.int32]
) -> Forest:
    """The tree of sequences `head` + the segments of a row, as one pass."""
    tree = TokenTree(head)
    for ids in segments:
        tree.add_segment(ids)
    leaves = tree.add_sequences(rows, 0)
    (table,), num_slots, _ = tree.plan(leaves, budget=tree.num_tokens, keep_limit=0, more_rounds=False)
    return Forest(name, tree_pass_of(table, tree.num_tokens, num_slots), table["nodes"])


def both_orders(pairs: Pairs) -> Pairs:
    return [order for i, j in pairs for order in ((i, j), (j, i))]


def of_pairs(name: str, pairs: Pairs, prompt: int, response: int) -> Forest:
    """Pairs of responses of one length to one prompt. All tokens differ: what is shared is shared by the tree."""
    count = 1 + max(max(pair) for pair in pairs)
    ids = np.arange(prompt + count * response, dtype=np.int32)
    return make_forest(name, ids[:prompt], np.split(ids[prompt:], count), np.array(pairs, np.int32))


def one_against_all(count: int, prompt: int, response: int) -> Forest:
    """The cost model's first schedule, both orders."""
    pairs = both_orders([(0, i) for i in range(1, count)])
    return of_pairs(f"one against all, n = {count}, P = {prompt}, R = {response}", pairs, prompt, response)


def round_robin(count: int, prompt: int, response: int) -> Forest:
    pairs = both_orders([(i, j) for j in range(count) for i in range(j)])
    return of_pairs(f"round robin, n = {count}, P = {prompt}, R = {response}", pairs, prompt, response)


def root_and_leaves(root: int, lengths: Sequence[int]) -> Forest:
    """One root and leaves of these lengths right below."""
    ids = np.arange(root + sum(lengths), dtype=np.int32)
    low, high = min(lengths), max(lengths)
    name = f"root of {root}, {len(lengths)} leaves of {low if low == high else f'{low} to {high}'}"
    segments = np.split(ids[root:], np.cumsum(lengths)[:-1])
    return make_forest(name, ids[:root], segments, np.arange(len(lengths), dtype=np.int32)[:, None])


def real_round_robin(data: Path, count: int) -> Forest:
    """Responses of a data file in the judge's whole text, in tokens of the small judge that comes with the package."""
    tokenizer = PairTokenizer(AutoTokenizer.from_pretrained(gram_fast.SMALL_JUDGE), PairTemplate.load("gram"))
    groups = read_groups(data)
    responses = [response for _, texts in groups for response in texts][:count]
    encoded = EncodedTexts.of(tokenizer, [groups[0][0]], [responses])
    pairs = both_orders([(i, j) for j in range(count) for i in range(j)])
    first_round = encoded.round([(0, i, j) for i, j in pairs], known=0)
    name = f"round robin, n = {count}, responses of {data.name}"
    return make_forest(name, encoded.head_ids, first_round.segments, first_round.sequences)


def forests(data: Path | None) -> list[Forest]:
    """What is measured, for both models' heads."""
    few_tokens = np.random.default_rng(0).integers(1, 21, 2000).tolist()
    found = [
        one_against_all(64, 512, 512),
        round_robin(16, 512, 512),
        root_and_leaves(512, few_tokens),
        root_and_leaves(16384, [128] * 8),
    ]
    return [*found, real_round_robin(data, 16)] if data else found


def padded_rows(forest: Forest) -> Tensor:
    """[L, longest]: packed tokens of every leaf's sequence, then -1."""
    longest = max(map(len, forest.paths))
    rows = [np.pad(path, (0, longest - len(path)), constant_values=-1) for path in forest.paths]
    return torch.from_numpy(np.stack(rows))
