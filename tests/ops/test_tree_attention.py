import functools
import logging
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from helpers.attention import (
    assert_no_further,
    every_other,
    offset_in_a_wider_buffer,
    on_each_device,
    strided_last,
    transposed,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gram_fast import cascade, ops
from gram_fast.errors import BackendError
from gram_fast.extension import _C
from gram_fast.kernels.tree_attention import tree_attention_reference, tree_mask
from gram_fast.scoring.tree import TokenTree, plan_round

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
on_each_backend = pytest.mark.parametrize("backend", ["reference", "cascade", "triton"])

MERGE = functools.partial(ops.merge_states, backend="extension")

Tables = tuple[Tensor, Tensor, Tensor]  # spans [N, 2], range_offsets [N + 1], ranges [R, 2]
Inputs = tuple[Tensor, Tensor, Tensor]  # q [T, H, E], k [S, K, E], v [S, K, E]


def make_tables(spans: Sequence[tuple[int, int]], reads: Sequence[Sequence[tuple[int, int]]]) -> Tables:
    rows = [row for read in reads for row in read]
    offsets = np.cumsum([0, *map(len, reads)])
    return torch.tensor(spans), torch.from_numpy(offsets), torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)


def tables_of_lengths(lengths: Sequence[int], reads: Sequence[Sequence[tuple[int, int]]]) -> Tables:
    ends = np.cumsum(lengths).tolist()
    return make_tables([(end - length, end) for end, length in zip(ends, lengths, strict=True)], reads)


def random_inputs(
    num_tokens: int,
    num_slots: int,
    heads: tuple[int, int] = (4, 2),
    width: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    num_heads, num_kv_heads = heads
    return (
        normal(num_tokens, num_heads, width),
        normal(num_slots, num_kv_heads, width),
        normal(num_slots, num_kv_heads, width),
    )


def plain_attention(inputs: Inputs, tables: Tables, scale: float, dtype: torch.dtype) -> Tensor:
    """Span by span: the keys that it reads side by side, one softmax, everything rounded to `dtype`."""
    q_THE, k_SKE, v_SKE = (tensor.to(dtype) for tensor in inputs)
    num_heads, num_kv_heads = q_THE.shape[1], k_SKE.shape[1]
    offsets, ranges = tables[1].tolist(), tables[2].tolist()
    out_THE = torch.empty_like(q_THE)
    for index, (start, end) in enumerate(tables[0].tolist()):
        read = [slot for low, high in ranges[offsets[index] : offsets[index + 1]] for slot in range(low, high)]
        slots = np.array([*read, *range(start, end)])
        # Query t sees all of `read` and its span up to itself.
        is_hidden = torch.from_numpy(np.arange(len(slots)) > len(read) + np.arange(end - start)[:, None])
        for head in range(num_heads):
            kv_head = head * num_kv_heads // num_heads
            scores = q_THE[start:end, head] @ k_SKE[slots, kv_head].T * scale
            weights = scores.masked_fill(is_hidden, float("-inf")).softmax(dim=-1)
            out_THE[start:end, head] = weights @ v_SKE[slots, kv_head]
    return out_THE


# Times the error of plain attention in the same dtype. In float32 the exponential of torch's CPU flash kernel is good
# to 20 units in the last place where the plain one is good to 1: single tokens reach 2.3 times the plain error.
FACTOR = {torch.float32: 4.0, torch.float16: 1.5, torch.bfloat16: 1.5}


def assert_as_exact_as_plain(actual: Tensor, inputs: Inputs, tables: Tables, scale: float) -> None:
    dtype = inputs[0].dtype
    exact, plain = (plain_attention(inputs, tables, scale, computed) for computed in (torch.float64, dtype))
    assert_no_further(actual, exact, plain, FACTOR[dtype])


def poisoned(tensor: Tensor, tables: Tables, num_tokens: int) -> Tensor:
    """NaN in every slot that nobody reads."""
    is_read = torch.zeros(len(tensor), dtype=torch.bool)
    is_read[:num_tokens] = True
    for low, high in tables[2].tolist():
        is_read[low:high] = True
    return torch.where(is_read[:, None, None], tensor, float("nan"))


def check(inputs: Inputs, tables: Tables, backend: str, device: str = "cpu") -> None:
    scale = inputs[0].shape[-1] ** -0.5
    q_THE, k_SKE, v_SKE = inputs
    k_SKE, v_SKE = (poisoned(tensor, tables, len(q_THE)) for tensor in (k_SKE, v_SKE))
    out_THE = ops.tree_attention(*(x.to(device) for x in (q_THE, k_SKE, v_SKE)), *tables, scale, backend)
    assert_as_exact_as_plain(out_THE, inputs, tables, scale)


def skip_what_cannot_run(backend: str, device: str, dtype: torch.dtype) -> None:
    if problem := ops.backend_problem("tree_attention", backend, torch.device(device), dtype):
        pytest.skip(problem)


# Two trees in one pass: spans read nothing, a part of an earlier span, kept slots, and several of these.
FOREST = tables_of_lengths(
    [5, 3, 1, 7, 2],
    [[], [(0, 4)], [(30, 37), (0, 2)], [(21, 22)], [(21, 22), (9, 13), (25, 28)]],
)
FOREST_TOKENS, FOREST_SLOTS = 18, 41


@on_each_device
@on_each_backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [24, 64, 80, 96, 128])
@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (4, 1)])
def test_widths_heads_and_dtypes(
    heads: tuple[int, int], width: int, dtype: torch.dtype, backend: str, device: str
) -> None:
    skip_what_cannot_run(backend, device, dtype)
    check(random_inputs(FOREST_TOKENS, FOREST_SLOTS, heads, width, dtype), FOREST, backend, device)


# Around the lengths at which the CPU cascade turns to chunks of 192 queries and back to one call.
@on_each_device
@on_each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [191, 192, 193, 384, 577, 767, 768, 769, 997])
def test_long_spans(length: int, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run(backend, device, dtype)
    tables = tables_of_lengths([2, length, 3], [[], [(0, 1), (length + 9, length + 12)], [(2, 2 + length)]])
    check(random_inputs(length + 5, length + 13, (2, 1), 24, dtype), tables, backend, device)


@on_each_device
@on_each_backend
@pytest.mark.parametrize("length", [1, 2, 13, 211, 783])
def test_one_span_alone(length: int, backend: str, device: str) -> None:
    skip_what_cannot_run(backend, device, torch.bfloat16)
    check(random_inputs(length, length + 3, dtype=torch.bfloat16), tables_of_lengths([length], [[]]), backend, device)


@on_each_device
@on_each_backend
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_token_on_a_long_range(dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run(backend, device, dtype)
    check(random_inputs(1, 1021, dtype=dtype), make_tables([(0, 1)], [[(2, 1019)]]), backend, device)


def test_two_threads() -> None:
    torch.set_num_threads(2)
    tables = tables_of_lengths([300, 500], [[], [(0, 250)]])
    check(random_inputs(800, 800), tables, "cascade")


@on_each_backend
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_do_not_overflow(dtype: torch.dtype, backend: str) -> None:
    skip_what_cannot_run(backend, "cpu", dtype)
    q_THE, k_SKE, v_SKE = random_inputs(FOREST_TOKENS, FOREST_SLOTS, dtype=dtype)
    check((q_THE * 30, k_SKE * 30, v_SKE), FOREST, backend)


@on_each_backend
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_the_scale_is_the_callers(scale: float, backend: str) -> None:
    inputs = random_inputs(FOREST_TOKENS, FOREST_SLOTS)
    assert_as_exact_as_plain(ops.tree_attention(*inputs, *FOREST, scale, backend), inputs, FOREST, scale)


@on_each_backend
def test_no_tokens(backend: str) -> None:
    q_THE, k_SKE, v_SKE = random_inputs(0, 3)
    tables = make_tables([], [])
    out_THE = ops.tree_attention(q_THE, k_SKE, v_SKE, tables[0].long().reshape(0, 2), *tables[1:], 1.0, backend)
    assert out_THE.shape == q_THE.shape


@on_each_device
@on_each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [transposed, offset_in_a_wider_buffer, every_other])
@pytest.mark.parametrize("tables", [FOREST, tables_of_lengths([FOREST_TOKENS], [[]])], ids=["forest", "one span"])
def test_strided_inputs(tables: Tables, layout, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run(backend, device, dtype)
    inputs = random_inputs(FOREST_TOKENS, FOREST_SLOTS, dtype=dtype)
    scale = 0.25
    out_THE = ops.tree_attention(*(layout(x.to(device)) for x in inputs), *tables, scale, backend)
    assert_as_exact_as_plain(out_THE, inputs, tables, scale)


@st.composite
def rounds(draw: st.DrawFn) -> tuple[list[list[int]], list[list[tuple[int, int, int]]], int, int]:
    segments = draw(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=2, max_size=5))
    row = st.tuples(*[st.integers(0, len(segments) - 1)] * 3)
    tables = draw(st.lists(st.lists(row, min_size=1, max_size=6), min_size=1, max_size=2))
    return segments, tables, draw(st.sampled_from([3, 7, 16, 64])), draw(st.sampled_from([0, 8, 1000]))


@on_each_backend
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds())
def test_passes_of_random_trees(backend: str, made: tuple) -> None:
    segments, sequences, budget, keep_limit = made
    tree = TokenTree([1, 0, 1])
    for ids in segments:
        tree.add_segment(ids)
    for rows in sequences:
        leaves = tree.add_sequences(rows, 1)
        plan = plan_round(tree, leaves, budget=budget, keep_limit=keep_limit, more_rounds=True)
        for p in plan.passes:
            inputs = random_inputs(p.num_tokens, plan.num_slots, seed=p.num_tokens)
            check(inputs, (p.spans, p.range_offsets, p.ranges), backend)
        tree.keep(plan.kept)


def plain_varlen(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    queries: list[list[int]],
    keys: list[list[int]],
    scale: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor]:
    """gram_fast.cascade.varlen_attention, one problem after the other."""
    lengths_q, lengths_k = ([end - start for start, end in ranges] for ranges in (queries, keys))
    group = q_THE.shape[1] // k_SKE.shape[1]
    outs, lses = [], []
    for q, k, v in zip(q_THE.split(lengths_q), k_SKE.split(lengths_k), v_SKE.split(lengths_k), strict=True):
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        scores_HTS = torch.einsum("the,she->hts", q.float(), k.float()) * scale
        if is_causal:
            assert len(q) == len(k)
            above = torch.ones(scores_HTS.shape[1:], dtype=torch.bool, device=q.device).triu(1)
            scores_HTS = scores_HTS.masked_fill(above, float("-inf"))
        outs.append(torch.einsum("hts,she->the", scores_HTS.softmax(dim=-1), v.float()).to(q.dtype))
        lses.append(scores_HTS.logsumexp(dim=-1))
    # Like the real one, which gives [H, T] from its kernel.
    return torch.cat(outs), torch.cat(lses, dim=1).transpose(0, 1)


def attend_like_cuda(inputs: Inputs, tables: Tables, scale: float) -> Tensor:
    blocks = _C.attention_blocks(*(table.numpy() for table in tables)).tolist()
    return cascade._attend_cuda(*inputs, tables[0].tolist(), blocks, scale, MERGE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (4, 1)])
@pytest.mark.parametrize("tables", [FOREST, tables_of_lengths([FOREST_TOKENS], [[]])], ids=["forest", "one span"])
def test_levels_of_the_cuda_cascade_without_cuda(
    monkeypatch: pytest.MonkeyPatch, tables: Tables, heads: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(cascade, "varlen_attention", plain_varlen)
    q_THE, k_SKE, v_SKE = inputs = random_inputs(FOREST_TOKENS, FOREST_SLOTS, heads, 24, dtype)
    k_SKE, v_SKE = (poisoned(tensor, tables, len(q_THE)) for tensor in (k_SKE, v_SKE))
    out_THE = attend_like_cuda((q_THE, k_SKE, v_SKE), tables, 0.25)
    assert_as_exact_as_plain(out_THE, inputs, tables, 0.25)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds())
def test_levels_of_the_cuda_cascade_on_random_trees(made: tuple) -> None:
    segments, sequences, budget, keep_limit = made
    tree = TokenTree([1, 0, 1])
    for ids in segments:
        tree.add_segment(ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade, "varlen_attention", plain_varlen)
        for rows in sequences:
            leaves = tree.add_sequences(rows, 1)
            plan = plan_round(tree, leaves, budget=budget, keep_limit=keep_limit, more_rounds=True)
            for p in plan.passes:
                inputs, tables = random_inputs(p.num_tokens, plan.num_slots), (p.spans, p.range_offsets, p.ranges)
                assert_as_exact_as_plain(attend_like_cuda(inputs, tables, 0.25), inputs, tables, 0.25)
            tree.keep(plan.kept)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("heads", [(2, 2), (6, 2)])
@pytest.mark.parametrize("is_causal", [True, False])
def test_varlen_attention_is_what_the_plain_one_stands_for(
    is_causal: bool, heads: tuple[int, int], dtype: torch.dtype
) -> None:
    queries = [[0, 5], [5, 6], [6, 19]]
    keys = queries if is_causal else [[0, 3], [0, 11], [30, 31]]
    q_THE, _, _ = random_inputs(19, 1, heads, 64, dtype)
    _, k_SKE, v_SKE = random_inputs(1, sum(end - start for start, end in keys), heads, 64, dtype)
    out, lse = cascade.varlen_attention(q_THE.cuda(), k_SKE.cuda(), v_SKE.cuda(), queries, keys, 0.125, is_causal)
    exact, exact_lse = plain_varlen(q_THE.float(), k_SKE.float(), v_SKE.float(), queries, keys, 0.125, is_causal)
    assert lse.dtype == torch.float32
    # Weights are rounded to the dtype before they meet the values, and the sum once more.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.float().cpu(), exact, atol=2 * eps * float(v_SKE.float().abs().max()), rtol=0)
    torch.testing.assert_close(lse.cpu(), exact_lse, atol=1e-4, rtol=0)


def test_cascade_on_cuda_needs_a_half_type_and_the_cuda_part(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert "float32" in ops.backend_problem("tree_attention", "cascade", cuda, torch.float32)
    monkeypatch.setattr(ops.backends._C, "has_cuda", False)
    assert "nvcc" in ops.backend_problem("tree_attention", "cascade", cuda, torch.bfloat16)
    with pytest.raises(BackendError, match="nvcc"):
        ops.resolve_backend("tree_attention", "cascade", cuda, torch.bfloat16)
    assert ops.resolve_backend("tree_attention", "auto", cuda, torch.bfloat16) == "triton"


def test_triton_on_a_cpu_is_for_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(BackendError, match="needs a CUDA device"):
        ops.tree_attention(*random_inputs(2, 2), *tables_of_lengths([2], [[]]), 1.0, "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendError, match="computes bfloat16 wrongly"):
        ops.resolve_backend("tree_attention", "triton", CPU, torch.bfloat16)


def test_auto_is_the_cascade_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="gram_fast"):
        assert ops.resolve_backend("tree_attention", "auto", CPU, torch.float32) == "cascade"
    assert "cascade" in caplog.text


@on_each_backend
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_named_backend_is_itself(backend: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    skip_what_cannot_run(backend, "cpu", dtype)
    with caplog.at_level(logging.INFO, logger="gram_fast"):
        assert ops.resolve_backend("tree_attention", backend, CPU, dtype) == backend
    assert not caplog.text


def test_unknown_backend() -> None:
    with pytest.raises(BackendError, match=r"'flash'.*reference, cascade, triton"):
        ops.resolve_backend("tree_attention", "flash", CPU, torch.float32)
    with pytest.raises(BackendError, match="'auto'"):  # resolved once, by the caller, not by the op
        ops.tree_attention(*random_inputs(2, 2), *tables_of_lengths([2], [[]]), 1.0, "auto")


@on_each_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tables", [FOREST, tables_of_lengths([FOREST_TOKENS], [[]])], ids=["forest", "one span"])
@pytest.mark.parametrize("layout", [Tensor.contiguous, transposed, offset_in_a_wider_buffer])
@pytest.mark.parametrize("backend", ops.BACKENDS["tree_attention"])
def test_opcheck(backend: str, layout, tables: Tables, dtype: torch.dtype, device: str) -> None:
    skip_what_cannot_run(backend, device, dtype)
    inputs = (layout(x.to(device)) for x in random_inputs(FOREST_TOKENS, FOREST_SLOTS, dtype=dtype))
    torch.library.opcheck(ops.tree_attention, (*inputs, *tables, 0.25, backend))


def good_arguments() -> dict[str, object]:
    spans, range_offsets, ranges = make_tables([(0, 3), (3, 5)], [[(7, 9)], [(0, 2), (6, 7)]])
    q_THE, k_SKE, v_SKE = random_inputs(5, 9)
    return {
        "q_THE": q_THE,
        "k_SKE": k_SKE,
        "v_SKE": v_SKE,
        "spans_N2": spans,
        "range_offsets": range_offsets,
        "ranges_R2": ranges,
        "scale": 0.25,
        "backend": "cascade",
    }


WRONG = {
    "q_THE 2 dimensions": ("q_THE", lambda x: x[0]),
    "q_THE float64": ("q_THE", lambda x: x.double()),
    "q_THE stride": ("q_THE", strided_last),
    "q_THE heads": ("q_THE", lambda x: x[:, :3]),
    "k_SKE 4 dimensions": ("k_SKE", lambda x: x[None]),
    "k_SKE dtype": ("k_SKE", lambda x: x.bfloat16()),
    "k_SKE width": ("k_SKE", lambda x: x[..., :8]),
    "k_SKE stride": ("k_SKE", strided_last),
    "k_SKE fewer slots than tokens": ("k_SKE", lambda x: x[:4], "v_SKE"),
    "v_SKE slots": ("v_SKE", lambda x: x[:-1]),
    "v_SKE heads": ("v_SKE", lambda x: x[:, :1]),
    "v_SKE dtype": ("v_SKE", lambda x: x.half()),
    "v_SKE stride": ("v_SKE", strided_last),
    "spans_N2 1 dimension": ("spans_N2", lambda x: x[0]),
    "spans_N2 columns": ("spans_N2", lambda x: torch.cat([x, x], dim=1)),
    "spans_N2 dtype": ("spans_N2", lambda x: x.int()),
    "spans_N2 stride": ("spans_N2", strided_last),
    "spans_N2 order": ("spans_N2", lambda x: x.flip(0)),
    "spans_N2 short": ("spans_N2", lambda x: torch.tensor([[0, 3], [3, 4]])),
    "spans_N2 late": ("spans_N2", lambda x: torch.tensor([[1, 3], [3, 5]])),
    "spans_N2 gap": ("spans_N2", lambda x: torch.tensor([[0, 2], [3, 5]])),
    "spans_N2 overlap": ("spans_N2", lambda x: torch.tensor([[0, 4], [3, 5]])),
    "spans_N2 empty span": ("spans_N2", lambda x: torch.tensor([[0, 5], [5, 5]])),
    "spans_N2 backwards": ("spans_N2", lambda x: torch.tensor([[0, 7], [7, 5]])),
    "range_offsets 2 dimensions": ("range_offsets", lambda x: x[None]),
    "range_offsets length": ("range_offsets", lambda x: x[1:]),
    "range_offsets dtype": ("range_offsets", lambda x: x.int()),
    "range_offsets stride": ("range_offsets", strided_last),
    "range_offsets start": ("range_offsets", lambda x: torch.tensor([1, 1, 3])),
    "range_offsets end": ("range_offsets", lambda x: torch.tensor([0, 1, 2])),
    "range_offsets falls": ("range_offsets", lambda x: torch.tensor([0, 4, 3])),
    "ranges_R2 1 dimension": ("ranges_R2", lambda x: x[0]),
    "ranges_R2 columns": ("ranges_R2", lambda x: x[:, :1].contiguous()),
    "ranges_R2 dtype": ("ranges_R2", lambda x: x.int()),
    "ranges_R2 stride": ("ranges_R2", strided_last),
    "ranges_R2 negative": ("ranges_R2", lambda x: torch.tensor([[7, 9], [-1, 2], [6, 7]])),
    "ranges_R2 beyond": ("ranges_R2", lambda x: torch.tensor([[7, 10], [0, 2], [6, 7]])),
    "ranges_R2 empty": ("ranges_R2", lambda x: torch.tensor([[7, 7], [0, 2], [6, 7]])),
    "ranges_R2 backwards": ("ranges_R2", lambda x: torch.tensor([[9, 7], [0, 2], [6, 7]])),
}


@on_each_backend
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_named(wrong: str, backend: str) -> None:
    name, change, *also = WRONG[wrong]
    arguments = good_arguments() | {"backend": backend}
    ops.tree_attention(**arguments)
    for changed in (name, *also):
        arguments[changed] = change(arguments[changed])
    with pytest.raises(ValueError, match=rf"^{name}: expected "):
        ops.tree_attention(**arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", ["k_SKE", "v_SKE", "spans_N2", "range_offsets", "ranges_R2"])
def test_wrong_devices_are_named(name: str) -> None:
    arguments = good_arguments()
    if name in ("k_SKE", "v_SKE"):
        arguments["q_THE"] = arguments["q_THE"].cuda()
        arguments["k_SKE"] = arguments["k_SKE"].cuda() if name == "v_SKE" else arguments["k_SKE"]
    else:
        arguments[name] = arguments[name].cuda()
    with pytest.raises(ValueError, match=rf"^{name}: expected device"):
        ops.tree_attention(**arguments)


def test_the_reference_keeps_float64() -> None:
    inputs = tuple(tensor.double() for tensor in random_inputs(FOREST_TOKENS, FOREST_SLOTS))
    actual = tree_attention_reference(*inputs, *FOREST, 0.25)
    torch.testing.assert_close(actual, plain_attention(inputs, FOREST, 0.25, torch.float64), atol=1e-14, rtol=0)


def tiles_of(tables: Tables, tile_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tiles [X, 5], ranges [R, 2] and span starts [T] of the flat table."""
    table = torch.from_numpy(_C.attention_tiles(*(table.numpy() for table in tables), tile_tokens)).long()
    sizes = 5 * len(table), int(tables[0][-1, 1]), 2 * len(tables[2])
    tiles, span_starts, ranges, fill = table.flatten().split([*sizes, table.numel() - sum(sizes)])
    assert len(fill) < len(table)
    assert not fill.any()
    return tiles.reshape(-1, 5), ranges.reshape(-1, 2), span_starts


def mask_of_tiles(tables: Tables, tile_tokens: int, num_slots: int) -> Tensor:
    """How often every query reads every slot, [T, S], when the kernel's walk is followed by hand."""
    tiles, ranges, span_starts = tiles_of(tables, tile_tokens)
    reads_TS = torch.zeros(len(span_starts), num_slots, dtype=torch.int64)
    for first, end, own_start, range_begin, range_end in tiles.tolist():
        for start, stop in [*ranges[range_begin:range_end].tolist(), (own_start, first)]:
            reads_TS[first:end, start:stop] += 1
        for token in range(first, end):
            reads_TS[token, max(first, int(span_starts[token])) : token + 1] += 1
    return reads_TS


@settings(deadline=None, max_examples=60)
@given(rounds(), st.sampled_from([1, 3, 18, 32]))
def test_tiles_read_every_visible_slot_once(made: tuple, tile_tokens: int) -> None:
    segments, sequences, budget, keep_limit = made
    tree = TokenTree([1, 0, 1])
    for ids in segments:
        tree.add_segment(ids)
    for rows in sequences:
        plan = plan_round(tree, tree.add_sequences(rows, 1), budget=budget, keep_limit=keep_limit, more_rounds=True)
        for p in plan.passes:
            tables = (p.spans, p.range_offsets, p.ranges)
            expected_TS = tree_mask(*tables, p.num_tokens, plan.num_slots)
            assert torch.equal(mask_of_tiles(tables, tile_tokens, plan.num_slots), expected_TS.long())
            tiles, _, _ = tiles_of(tables, tile_tokens)
            assert (tiles[:, 1] - tiles[:, 0] <= tile_tokens).all()
        tree.keep(plan.kept)


def test_short_spans_share_tiles_and_the_longest_walk_comes_first() -> None:
    # A root of 64 and a thousand children of 3: ten to a tile of 32. Then one that reads something else.
    tables = tables_of_lengths([64, *[3] * 1000, 2], [[], *[[(0, 64)]] * 1000, [(0, 63)]])
    tiles, _, _ = tiles_of(tables, 32)
    assert len(tiles) == 2 + 100 + 1
    sizes = tiles[:, 1] - tiles[:, 0]
    keys = sizes + torch.where(tiles[:, 3] < tiles[:, 4], 64, 0) + tiles[:, 0] - tiles[:, 2]
    assert keys[0] == 64 + 30
    # Of a span's tiles each counts the whole span before it, the diagonal included.
    assert (keys[:-1] >= keys[1:]).all()


def test_tiles_are_checked() -> None:
    arguments = good_arguments() | {"backend": "triton"}
    tables = [arguments[name] for name in ("spans_N2", "range_offsets", "ranges_R2")]
    tiles = ops.attention_tiles(*tables, 2, CPU)
    plain = ops.tree_attention(**arguments)
    assert torch.equal(ops.tree_attention(**arguments, tiles=tiles), plain)
    assert torch.equal(ops.tree_attention(**arguments, tiles=ops.attention_tiles(*tables, 2, CPU, (9, 99))), plain)
    for wrong in (tiles[:, :5], tiles.long(), tiles[0], tiles[:0]):
        with pytest.raises(ValueError, match=r"^tiles: expected "):
            ops.tree_attention(**arguments, tiles=wrong)
    with pytest.raises(ValueError, match=r"^group: expected 1 to 128"):
        ops.attention_tiles(*tables, 129, CPU)
    wide = random_inputs(5, 9, width=264)
    with pytest.raises(BackendError, match="heads of up to 256 columns, got 264"):
        ops.tree_attention(*wide, *tables, 1.0, "triton")


@on_each_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("heads", [(2, 2), (7, 1), (12, 4), (71, 1), (20, 4)])
def test_triton_takes_any_group_of_heads(heads: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    """Groups that do not divide a tile, and tiles of many spans."""
    skip_what_cannot_run("triton", device, dtype)
    lengths = [17, *[1, 5, 2, 1, 1, 37, 2, 4] * 2]
    tables = tables_of_lengths(lengths, [[], *[[(0, 17)]] * 10, *[[(0, 12), (125, 129)]] * 6])
    num_tokens = sum(lengths)
    check(random_inputs(num_tokens, num_tokens + 7, heads, 16, dtype), tables, "triton", device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_triton_on_a_cache_of_more_than_2_to_the_31_elements() -> None:
    """Slots behind element 2^31 are read where they lie: 4.5 GiB of keys and values."""
    num_slots, heads, width = 2**20 + 2**18, (32, 16), 128
    q_THE = torch.randn(5, heads[0], width, device="cuda", dtype=torch.bfloat16)
    k_SKE = torch.randn(num_slots, heads[1], width, device="cuda", dtype=torch.bfloat16)
    v_SKE = torch.randn_like(k_SKE)
    tables = make_tables([(0, 5)], [[(num_slots - 100, num_slots)]])
    far = ops.tree_attention(q_THE, k_SKE, v_SKE, *tables, width**-0.5, "triton")
    k_near, v_near = (torch.cat([x[:5], x[-100:]]) for x in (k_SKE, v_SKE))
    near = ops.tree_attention(q_THE, k_near, v_near, *make_tables([(0, 5)], [[(5, 105)]]), width**-0.5, "triton")
    assert torch.equal(far, near)


def tables_of_tree(sequences: Sequence[Sequence[int]]) -> tuple[Tables, int]:
    """The tables of one pass over all tokens of these sequences, and how many there are."""
    tree = TokenTree([])
    for ids in sequences:
        tree.add_segment(ids)
    leaves = tree.add_sequences(np.arange(len(sequences))[:, None], 0)
    (tree_pass,) = plan_round(tree, leaves, budget=10**6, keep_limit=0, more_rounds=False).passes
    return (tree_pass.spans, tree_pass.range_offsets, tree_pass.ranges), tree_pass.num_tokens


@on_each_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["cascade", "triton"])
def test_a_leaf_at_every_depth(backend: str, dtype: torch.dtype, device: str) -> None:
    skip_what_cannot_run(backend, device, dtype)
    comb = [[*range(3 * depth), 1000 + depth, 2000 + depth] for depth in range(1, 14)]
    tables, num_tokens = tables_of_tree(comb)
    check(random_inputs(num_tokens, num_tokens, (4, 2), 16, dtype), tables, backend, device)


@on_each_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_triton_packs_thousands_of_tiny_nodes(dtype: torch.dtype, device: str) -> None:
    """2,000 leaves of one to three tokens below one root: 32 tokens a tile, not one node."""
    skip_what_cannot_run("triton", device, dtype)
    tables, num_tokens = tables_of_tree([[*range(37), 1000 + leaf, *range(leaf % 3)] for leaf in range(2000)])
    check(random_inputs(num_tokens, num_tokens, (4, 1), 16, dtype), tables, "triton", device)
    assert len(tiles_of(tables, 32)[0]) < 1.1 * num_tokens / 32
