"""Other ways to compute attention over a forest, which benchmarks/kernel_speed/run.py times beside ours.

Every rival is a function that prepares a problem: tables, masks and layouts are made outside the timed part. A rival
that cannot run raises, and its message is printed.

Shape letters: T packed tokens, S key/value slots (all of them T here), H query heads, K key/value heads, E head width,
L leaves, M tokens of the longest sequence, X queries of a packed batch.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from benchmarks.kernel_speed.shapes import Forest, Heads, key_blocks, padded_rows
from gram_fast import ops
from gram_fast.extension import _C
from gram_fast.kernels.compilation import LaunchShape


@dataclass(frozen=True)
class Problem:
    """A forest with queries, keys and values for all of its tokens."""

    forest: Forest
    heads: Heads
    q: Tensor
    """[T, H, E]"""
    k: Tensor
    """[T, K, E]"""
    v: Tensor
    """[T, K, E]"""

    @property
    def scale(self) -> float:
        """Factor on the scores."""
        return float(self.heads.width**-0.5)

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.q.device


def random_problem(forest: Forest, heads: Heads, device: torch.device, dtype: torch.dtype) -> Problem:
    """Makes a problem with normally distributed queries, keys and values."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(count: int) -> Tensor:
        return torch.randn((forest.num_tokens, count, heads.width), generator=generator, device=device, dtype=dtype)

    return Problem(forest, heads, normal(heads.num_heads), normal(heads.num_kv_heads), normal(heads.num_kv_heads))


@dataclass(frozen=True)
class Prepared:
    """One way to compute a problem, ready to be timed."""

    launch: Callable[[], Any]
    """The timed part."""
    flatten: Callable[[Any], Tensor]
    """From what `launch` returns to rows [X, H, E]."""
    rows: Tensor | None = None
    """[X]: the packed token of each row, -1 for padding; None where the rows are all T tokens in order."""


def needs_memory(problem: Problem, count: int) -> None:
    """Raises RuntimeError unless `count` bytes and a little more are free."""
    free = torch.cuda.mem_get_info(problem.device)[0] if problem.device.type == "cuda" else 2**40
    if count > 0.9 * free:
        raise RuntimeError(f"needs {count / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free")


def in_order(out_THE: Tensor) -> Tensor:
    """Returns rows that are in order already."""
    return out_THE


def tree_attention(problem: Problem) -> Prepared:
    """Prepares our own kernel: Triton's, and the extension's on a CPU."""
    name = "triton" if problem.device.type == "cuda" else "extension"
    backend = ops.resolve_backend("tree_attention", name, problem.device, problem.q.dtype)
    tables = ops.TreeTables.of(ops.Spans(*problem.forest.tables), backend, problem.heads.group, problem.device)
    attend = ops.bind("tree_attention", backend)
    return Prepared(lambda: attend(problem.q, problem.k, problem.v, tables, problem.scale), in_order)


def tree_attention_in(problem: Problem, shape: LaunchShape) -> Prepared:
    """Prepares our Triton kernel in a launch shape that it would not choose by itself."""
    from gram_fast.kernels.tree_attention_triton import tree_attention_triton

    backend = ops.resolve_backend("tree_attention", "triton", problem.device, problem.q.dtype)
    tables = ops.TreeTables.of(ops.Spans(*problem.forest.tables), backend, problem.heads.group, problem.device)
    q_THE, k_TKE, v_TKE, tiles = problem.q, problem.k, problem.v, tables.tiles
    assert tiles is not None
    return Prepared(lambda: tree_attention_triton(q_THE, k_TKE, v_TKE, tiles, problem.scale, shape), in_order)


Varlen = Callable[[Tensor, Tensor, Tensor, "Lengths", "Lengths", float, bool], tuple[Tensor, Tensor]]
"""(q [X, H, E], k, v, lengths of queries, of keys, scale, causal) -> out [X, H, E], lse [X, H] float32."""


@dataclass(frozen=True)
class Lengths:
    """The lengths of packed attention problems, as variable-length kernels take them."""

    offsets: Tensor
    """int32 [N + 1]."""
    longest: int


@dataclass(frozen=True)
class Level:
    """Blocks of unmasked attention that share no query: one variable-length call."""

    queries: slice | Tensor
    keys: slice | Tensor
    query_lengths: Lengths
    key_lengths: Lengths


def lengths_of(ranges: list[list[int]], device: torch.device) -> Lengths:
    """Measures ranges [start, end) that are packed one behind the other."""
    lengths = torch.tensor([end - start for start, end in ranges])
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32)
    return Lengths(offsets, int(lengths.max()))


def slots_of(ranges: list[list[int]], device: torch.device) -> slice | Tensor:
    """Selects the slots of ranges [start, end): a slice where they touch, else indices."""
    if all(before[1] == after[0] for before, after in itertools.pairwise(ranges)):
        return slice(ranges[0][0], ranges[-1][1])
    return torch.cat([torch.arange(start, end) for start, end in ranges]).to(device)


def cascade_levels(forest: Forest, device: torch.device) -> list[Level]:
    """Sorts the ranges that spans read into levels: the first range of every span, the second, and so on."""
    blocks = _C.attention_blocks(*(table.numpy() for table in forest.tables)).tolist()
    levels = []
    for rank in range(blocks[-1][0] + 1 if blocks else 0):
        queries = [block[1:3] for block in blocks if block[0] == rank]
        keys = [block[3:5] for block in blocks if block[0] == rank]
        of_queries, of_keys = lengths_of(queries, device), lengths_of(keys, device)
        levels.append(Level(slots_of(queries, device), slots_of(keys, device), of_queries, of_keys))
    return levels


def cascade(problem: Problem, varlen: Varlen) -> Prepared:
    """Prepares one call for all spans and one for each level of ranges, merged."""
    spans = lengths_of(problem.forest.tables[0].tolist(), problem.device)
    levels = cascade_levels(problem.forest, problem.device)
    q_THE, k_TKE, v_TKE = problem.q, problem.k, problem.v
    backend = ops.resolve_backend("merge_states", "auto", problem.device, q_THE.dtype)

    def launch() -> Tensor:
        first_THE, lse_TH = varlen(q_THE, k_TKE, v_TKE, spans, spans, problem.scale, True)
        out_THE, lse_TH = first_THE.float(), lse_TH.contiguous()
        for level in levels:
            rows = level.queries
            part_XHE, part_XH = varlen(
                q_THE[rows], k_TKE[level.keys], v_TKE[level.keys],
                level.query_lengths, level.key_lengths, problem.scale, False,
            )  # fmt: skip
            # Views of a slice, copies of rows that are scattered: those go back.
            out_XHE, lse_XH = out_THE[rows], lse_TH[rows]
            ops.merge_states(out_XHE, lse_XH, part_XHE, part_XH, backend=backend)
            if isinstance(rows, Tensor):
                out_THE[rows], lse_TH[rows] = out_XHE, lse_XH
        return out_THE.to(q_THE.dtype)

    return Prepared(launch, in_order)


def torch_varlen(
    q_XHE: Tensor, k_XKE: Tensor, v_XKE: Tensor, queries: Lengths, keys: Lengths, scale: float, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """Calls the kernel below torch's varlen_attn, which takes grouped heads in new versions only."""
    out_XHE, lse_HX, *_ = torch.ops.aten._flash_attention_forward(
        q_XHE, k_XKE, v_XKE, queries.offsets, keys.offsets, queries.longest, keys.longest, 0.0, is_causal,
        return_debug_mask=False, scale=scale,
    )  # fmt: skip
    return out_XHE, lse_HX.transpose(0, 1)


def flash_attn_varlen(
    q_XHE: Tensor, k_XKE: Tensor, v_XKE: Tensor, queries: Lengths, keys: Lengths, scale: float, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """Calls flash-attn's variable-length kernel."""
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found,unused-ignore]

    out_XHE, lse_HX, _ = flash_attn_varlen_func(
        q_XHE, k_XKE, v_XKE, queries.offsets, keys.offsets, queries.longest, keys.longest,
        softmax_scale=scale, causal=is_causal, return_attn_probs=True,
    )  # fmt: skip
    return out_XHE, lse_HX.transpose(0, 1)


def torch_cascade(problem: Problem) -> Prepared:
    """Prepares the cascade over torch's kernel."""
    return cascade(problem, torch_varlen)


def flash_attn_cascade(problem: Problem) -> Prepared:
    """Prepares the cascade over flash-attn's kernel."""
    return cascade(problem, flash_attn_varlen)


def flex_mask(forest: Forest, device: torch.device) -> BlockMask:
    """Makes the forest's block mask for FlexAttention from the tree, without a dense mask."""
    ends_T = torch.from_numpy(forest.subtree_ends).to(device, torch.int32)

    def is_visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query < ends_T[key])

    def listed(is_listed: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
        """Counts the key blocks of each query block, and lists them: these first, in order."""
        table = torch.from_numpy(is_listed).to(device, torch.int32)[None, None]
        return table.sum(-1).int(), table.argsort(dim=-1, descending=True, stable=True).int()

    partial, full = key_blocks(forest.subtree_ends)
    lengths = (forest.num_tokens, forest.num_tokens)
    return BlockMask.from_kv_blocks(*listed(partial), *listed(full), mask_mod=is_visible, seq_lengths=lengths)


def compiled_flex(problem: Problem) -> Prepared:
    """Prepares FlexAttention, compiled for this shape."""
    torch._dynamo.reset()
    mask = flex_mask(problem.forest, problem.device)
    q_1HTE, k_1KTE, v_1KTE = (x.transpose(0, 1)[None] for x in (problem.q, problem.k, problem.v))
    attend = torch.compile(flex_attention, dynamic=False)
    return Prepared(
        lambda: attend(q_1HTE, k_1KTE, v_1KTE, block_mask=mask, scale=problem.scale, enable_gqa=True),
        lambda out_1HTE: out_1HTE[0].transpose(0, 1),
    )


def gathered(problem: Problem, rows_X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Copies the queries, keys and values of packed tokens."""
    of_row = problem.heads.num_heads + problem.heads.num_kv_heads
    needs_memory(problem, 2 * of_row * len(rows_X) * problem.heads.width * problem.q.element_size())
    return problem.q[rows_X], problem.k[rows_X], problem.v[rows_X]


def unshared(problem: Problem, varlen: Varlen) -> Prepared:
    """Prepares one variable-length call over every leaf's whole sequence."""
    paths = problem.forest.paths
    rows_X = torch.from_numpy(np.concatenate(paths)).to(problem.device)
    ends = np.cumsum([len(path) for path in paths]).tolist()
    lengths = lengths_of([list(pair) for pair in itertools.pairwise([0, *ends])], problem.device)
    q_XHE, k_XKE, v_XKE = gathered(problem, rows_X)
    return Prepared(
        lambda: varlen(q_XHE, k_XKE, v_XKE, lengths, lengths, problem.scale, True),
        lambda out: out[0],
        rows_X,
    )


def torch_unshared(problem: Problem) -> Prepared:
    """Prepares whole sequences over torch's kernel."""
    return unshared(problem, torch_varlen)


def flash_attn_unshared(problem: Problem) -> Prepared:
    """Prepares whole sequences over flash-attn's kernel."""
    return unshared(problem, flash_attn_varlen)


def padded_sdpa(problem: Problem, backend: SDPBackend) -> Prepared:
    """Prepares sequences padded to the longest. Key/value heads are repeated where the kernel takes no groups."""
    rows_LM = padded_rows(problem.forest).to(problem.device)
    packed = gathered(problem, rows_LM.clamp(min=0).flatten())
    q_LHME, k_LKME, v_LKME = (x.view(*rows_LM.shape, *x.shape[1:]).transpose(1, 2) for x in packed)

    def launch() -> Tensor:
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(
                q_LHME,
                k_LKME,
                v_LKME,
                is_causal=True,
                scale=problem.scale,
                enable_gqa=k_LKME.shape[1] != q_LHME.shape[1],
            )

    try:
        launch()
    except RuntimeError:
        needs_memory(problem, 2 * q_LHME.numel() * q_LHME.element_size())
        k_LKME, v_LKME = (x.repeat_interleave(problem.heads.group, dim=1) for x in (k_LKME, v_LKME))
    return Prepared(launch, lambda out_LHME: out_LHME.transpose(1, 2).flatten(0, 1), rows_LM.flatten())


def padded_flash(problem: Problem) -> Prepared:
    """Prepares padded sequences over SDPA's flash kernel."""
    return padded_sdpa(problem, SDPBackend.FLASH_ATTENTION)


def padded_cudnn(problem: Problem) -> Prepared:
    """Prepares padded sequences over cuDNN's kernel."""
    return padded_sdpa(problem, SDPBackend.CUDNN_ATTENTION)


# On the CPU the flash kernel takes masks; on CUDA it does not, and is passed over.
_WITH_A_MASK = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION]


def masked_sdpa(problem: Problem) -> Prepared:
    """Prepares one call over all tokens with a dense mask, for forests whose mask fits into memory."""
    length, dtype = problem.forest.num_tokens, problem.q.dtype
    if length > 32768:
        raise RuntimeError(f"a dense mask of {length:,} by {length:,} tokens is not worth its memory")
    token = torch.arange(length, device=problem.device)
    ends_T = torch.from_numpy(problem.forest.subtree_ends).to(problem.device)
    is_visible = (token[:, None] >= token) & (token[:, None] < ends_T)
    # The kernel reads biases whose rows are aligned.
    bias = torch.zeros(length, math.ceil(length / 16) * 16, dtype=dtype, device=problem.device)[:, :length]
    bias.masked_fill_(~is_visible, float("-inf"))
    q_1HTE = problem.q.transpose(0, 1)[None]
    k_1HTE, v_1HTE = (
        x.repeat_interleave(problem.heads.group, dim=1).transpose(0, 1)[None] for x in (problem.k, problem.v)
    )

    def launch() -> Tensor:
        with sdpa_kernel(_WITH_A_MASK):
            return torch.nn.functional.scaled_dot_product_attention(
                q_1HTE, k_1HTE, v_1HTE, attn_mask=bias[None, None], scale=problem.scale
            )

    return Prepared(launch, lambda out_1HTE: out_1HTE[0].transpose(0, 1))


def flashinfer_cascade(problem: Problem) -> Prepared:
    """Prepares FlashInfer's multi-level cascade for leaves right below one root, and its prefill for the root."""
    import flashinfer  # type: ignore[import-not-found,unused-ignore]

    if not problem.forest.is_two_level:
        raise RuntimeError("takes trees whose leaves have all levels alike: run on one root with leaves")
    heads, device, length = problem.heads, problem.device, problem.forest.num_tokens
    starts = torch.from_numpy(problem.forest.nodes[:, 0])
    root = int(starts[1])
    leaves = torch.cat([starts[1:], torch.tensor([length])]) - root

    def on_device(values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=torch.int32).to(device)

    workspace = torch.empty(256 * 2**20, dtype=torch.uint8, device=device)
    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(2, workspace, "NHD")
    queries = [on_device([0, length - root]), on_device(leaves)]
    # Pages of one token: nodes start anywhere.
    pages = [on_device(torch.arange(root)), on_device(torch.arange(root, length))]
    last = [on_device([1]), on_device(torch.ones(len(leaves) - 1))]
    wrapper.plan(
        queries, [on_device([0, root]), on_device(leaves)], pages, last,
        heads.num_heads, heads.num_kv_heads, heads.width, 1,
        causal=True, sm_scale=problem.scale, q_data_type=problem.q.dtype, kv_data_type=problem.q.dtype,
    )  # fmt: skip
    paged = torch.stack([problem.k, problem.v], dim=1)[:, :, None].contiguous()
    q_THE, k_TKE, v_TKE = problem.q, problem.k, problem.v
    return Prepared(
        lambda: (
            flashinfer.single_prefill_with_kv_cache(
                q_THE[:root], k_TKE[:root], v_TKE[:root], causal=True, sm_scale=problem.scale
            ),
            wrapper.run(q_THE[root:], paged),
        ),
        torch.cat,
    )


RIVALS: dict[str, Callable[[Problem], Prepared]] = {
    "cascade, torch varlen": torch_cascade,
    "cascade, flash-attn": flash_attn_cascade,
    "FlashInfer cascade": flashinfer_cascade,
    "no sharing, torch varlen": torch_unshared,
    "no sharing, flash-attn": flash_attn_unshared,
    "no sharing, SDPA flash, padded": padded_flash,
    "no sharing, SDPA cuDNN, padded": padded_cudnn,
    "SDPA, dense mask": masked_sdpa,
    "FlexAttention": compiled_flex,
}
SLOW_TO_START = ("FlexAttention",)
"""Measured after everything else: these are compiled for the forest, which takes most of a minute."""
