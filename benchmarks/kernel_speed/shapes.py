"""Forests of packed tokens for benchmarks/kernel_speed/run.py, and the arithmetic and bytes that attention needs.

Nothing here needs a GPU.

Shape letters: T packed tokens, H query heads, K key/value heads, E head width, L leaves.
"""

from collections.abc import Callable, Sequence
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
from benchmarks.random_judge import SHAPES
from gram_fast.scoring.tree import TokenTree, TreePass, tree_pass_of
from gram_fast.text.encoded import EncodedTexts
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokens import PairTokenizer

SlotPairs = list[tuple[int, int]]
"""Responses by number, as slots A and B show them."""


@dataclass(frozen=True)
class Heads:
    """The attention heads of a model."""

    model: str
    num_heads: int
    num_kv_heads: int
    width: int

    @property
    def group(self) -> int:
        """Query heads of a key/value head."""
        return self.num_heads // self.num_kv_heads


def heads_of(model: str) -> Heads:
    """Gives the heads of a model of benchmarks/random_judge.py."""
    sizes = SHAPES[model]
    return Heads(model, sizes.heads, sizes.kv_heads, sizes.head_width)


@dataclass(frozen=True)
class Forest:
    """A token tree packed into one pass."""

    name: str
    tree_pass: TreePass
    nodes: NDArray[np.int64]
    """[N, NODE_COLUMNS], as the planner writes them."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.tree_pass.num_tokens

    @property
    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Spans, range offsets and ranges, as the ops take them."""
        return self.tree_pass.spans

    @cached_property
    def num_scores(self) -> int:
        """Scores that attention needs: one for every query and key that it sees."""
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
        """The packed tokens of every leaf's whole sequence, from the root on."""
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


def attention_flops(num_scores: int, heads: Heads) -> int:
    """Counts the FLOP of both products of attention for so many scores a head."""
    return 4 * heads.width * heads.num_heads * num_scores


def leaf_bytes(forest: Forest, heads: Heads, itemsize: int = 2) -> int:
    """Counts the fewest bytes that attention of the last tokens moves: q, out, every key and value they see once."""
    is_read = np.zeros(forest.num_tokens, bool)
    for path in forest.paths:
        is_read[path] = True
    keys, queries = int(is_read.sum()), len(forest.paths)
    return itemsize * heads.width * (2 * heads.num_kv_heads * keys + 2 * heads.num_heads * queries)


def key_blocks(subtree_ends: NDArray[np.int64], size: int = 128) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Finds the blocks of queries and keys of which some but not all see each other, and those of which all do.

    Both are masks [blocks of queries, blocks of keys]. In depth-first order the queries that see a key stand right
    behind it, up to the end of its subtree.
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
    """Makes the forest of sequences that are each `head` and the segments of one row."""
    tree = TokenTree(head)
    for ids in segments:
        tree.add_segment(ids)
    leaves = tree.add_sequences(rows, 0)
    (table,), _, _, _ = tree.plan(leaves, budget=tree.num_tokens, keep_limit=0, more_rounds=False)
    return Forest(name, tree_pass_of(table, tree.num_tokens), table["nodes"])


def both_orders(pairs: Sequence[tuple[int, int]]) -> SlotPairs:
    """Lists every pair (i, j) as (i, j) and as (j, i)."""
    return [order for i, j in pairs for order in ((i, j), (j, i))]


def of_slot_pairs(name: str, shown: SlotPairs, prompt: int, lengths: Sequence[int]) -> Forest:
    """Makes the forest of one prompt and responses of these lengths. All tokens differ: only whole texts are shared."""
    ids = np.arange(prompt + sum(lengths), dtype=np.int32)
    segments = np.split(ids[prompt:], np.cumsum(lengths)[:-1])
    name = f"{name}, n = {len(lengths)}, P = {prompt}, R = {span_of(lengths)}"
    return make_forest(name, ids[:prompt], segments, np.array(shown, np.int32))


def span_of(lengths: Sequence[int]) -> str:
    """Describes lengths by the smallest and the largest."""
    low, high = min(lengths), max(lengths)
    return str(low) if low == high else f"{low} to {high}"


def one_against_all(prompt: int, lengths: Sequence[int]) -> Forest:
    """Makes the forest of a first response against all others, in both orders."""
    shown = both_orders([(0, i) for i in range(1, len(lengths))])
    return of_slot_pairs("one against all", shown, prompt, lengths)


def round_robin(prompt: int, lengths: Sequence[int]) -> Forest:
    """Makes the forest of all pairs of responses, in both orders."""
    shown = both_orders([(i, j) for j in range(len(lengths)) for i in range(j)])
    return of_slot_pairs("round robin", shown, prompt, lengths)


def root_and_leaves(root: int, lengths: Sequence[int]) -> Forest:
    """Makes the forest of one root with leaves of these lengths right below it."""
    ids = np.arange(root + sum(lengths), dtype=np.int32)
    name = f"root of {root}, {len(lengths)} leaves of {span_of(lengths)}"
    segments = np.split(ids[root:], np.cumsum(lengths)[:-1])
    return make_forest(name, ids[:root], segments, np.arange(len(lengths), dtype=np.int32)[:, None])


def real_round_robin(data: Path, count: int) -> Forest:
    """Makes the forest of all pairs of real responses, in the prompt and tokens of the package's small judge."""
    tokenizer = PairTokenizer(AutoTokenizer.from_pretrained(gram_fast.SMALL_JUDGE), PairTemplate.load("gram"))
    groups = read_groups(data)
    responses = [response for _, texts in groups for response in texts][:count]
    encoded = EncodedTexts.of(tokenizer, [groups[0][0]], [responses])
    shown = both_orders([(i, j) for j in range(count) for i in range(j)])
    first_round = encoded.round([(0, a, b) for a, b in shown], known=0)
    name = f"round robin, n = {count}, responses of {data.name}"
    return make_forest(name, encoded.head_ids, first_round.segments, first_round.sequences)


def random_lengths(low: int, high: int, count: int) -> list[int]:
    """Draws lengths, the same in every run."""
    drawn: list[int] = np.random.default_rng(0).integers(low, high + 1, count).tolist()
    return drawn


FORESTS: dict[str, Callable[[], Forest]] = {
    "one-against-all": lambda: one_against_all(512, [512] * 64),
    "mixed-lengths": lambda: one_against_all(512, random_lengths(200, 800, 64)),
    "round-robin": lambda: round_robin(512, [512] * 16),
    "few-tokens": lambda: root_and_leaves(512, random_lengths(1, 20, 2000)),
    "long-root": lambda: root_and_leaves(16384, [128] * 8),
    "tiny": lambda: one_against_all(4, [5, 6, 3]),
}
"""What is measured, by name; "real" besides, which needs a data file: `real_round_robin` of 16."""


def padded_rows(forest: Forest) -> Tensor:
    """Lists the packed tokens of every leaf's sequence -> [L, longest], -1 where a sequence has ended."""
    longest = max(map(len, forest.paths))
    rows = [np.pad(path, (0, longest - len(path)), constant_values=-1) for path in forest.paths]
    return torch.from_numpy(np.stack(rows))
