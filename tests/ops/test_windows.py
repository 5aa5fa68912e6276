"""Windows, sinks and soft caps of tree and leaf attention: every backend is as exact as plain attention."""

import pytest
import torch
from helpers.attention import (
    FOREST,
    FOREST_SLOTS,
    FOREST_TOKENS,
    Inputs,
    Rounds,
    Softmax,
    Tables,
    assert_as_exact_as_plain,
    passes_of,
    plain_attention,
    random_inputs,
    rounds,
    span_tables,
    tables_of_lengths,
)
from helpers.ops import CPU, on_each_device, on_each_dtype, skip_what_cannot_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.masking_utils import chunked_overlay, sliding_window_overlay

from gram_fast import ops
from gram_fast.kernels.leaf_attention import leaf_attention_reference, leaf_mask
from gram_fast.kernels.tree_attention import lowest_read, tree_attention_reference, tree_mask

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Of the interpreter: infinity is what is meant.
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]

SCALE = 0.25
RUN = [(op, backend) for op in ("tree_attention", "leaf_attention") for backend in ops.BACKENDS[op]]
on_each_backend = pytest.mark.parametrize(("op", "backend"), RUN)


def unread(tables: Tables, rows: Tensor | None, num_tokens: int, num_slots: int, softmax: Softmax) -> Tensor:
    """Slots that no token reads, or that none of these rows reads, [S]."""
    size, is_chunked = softmax.window or (None, False)
    if rows is None:
        return ~tree_mask(*tables, num_tokens, num_slots, size, is_chunked).any(dim=0)
    return ~leaf_mask(*tables, rows, num_slots, size, is_chunked).any(dim=0)


def check(op: str, backend: str, inputs: Inputs, tables: Tables, softmax: Softmax, device: str = "cpu") -> None:
    """As exact as plain attention, and NaN where nobody reads reaches nothing (Triton's whole blocks take numbers)."""
    q_THE, *states = inputs
    # A dozen leaves, or every other token of a small pass: the interpreter takes a second for a hundred.
    rows = torch.arange(len(q_THE) - 1, -1, -max(2, len(q_THE) // 12)) if op == "leaf_attention" else None
    is_unread_S = unread(tables, rows, len(q_THE), len(states[0]), softmax)
    poison = 1e4 if (op, backend) == ("tree_attention", "triton") else float("nan")
    k_SKE, v_SKE = (x.masked_fill(is_unread_S[:, None, None], poison).to(device) for x in states)
    sinks_H = None if softmax.sinks_H is None else softmax.sinks_H.to(device)
    options = softmax._replace(sinks_H=sinks_H).arguments
    if rows is None:
        actual = ops.tree_attention(q_THE.to(device), k_SKE, v_SKE, *tables, SCALE, backend, **options)
    else:
        leaves_LHE = q_THE[rows].to(device)
        out_LHE = ops.leaf_attention(leaves_LHE, k_SKE, v_SKE, *tables, rows, SCALE, backend, **options)
        # The other rows are right by definition.
        actual = plain_attention(inputs, tables, SCALE, torch.float64, softmax=softmax).to(q_THE.dtype)
        actual[rows] = out_LHE.cpu()
    assert_as_exact_as_plain(actual, inputs, tables, SCALE, softmax)


def sinks(num_heads: int, size: float, seed: int = 0) -> Tensor:
    return size * torch.randn(num_heads, generator=torch.Generator().manual_seed(seed))


SOFTMAXES = {
    "window": Softmax(ops.Window(3)),
    "chunks": Softmax(ops.Window(3, is_chunked=True)),
    "sinks": Softmax(sinks_H=sinks(4, 2.0)),
    "soft cap": Softmax(softcap=0.7),
    "all": Softmax(ops.Window(4), sinks(4, 2.0), 3.0),
}
on_each_softmax = pytest.mark.parametrize("softmax", SOFTMAXES.values(), ids=SOFTMAXES)


@st.composite
def softmaxes(draw: st.DrawFn, num_heads: int) -> Softmax:
    """Windows of a token, smaller than a node, equal to one, larger than every path; sinks of any size; soft caps."""
    size = draw(st.sampled_from([1, 2, 3, 4, 5, 7, 9, 12, 19, 1000]))
    window = draw(st.sampled_from([None, ops.Window(size), ops.Window(size, is_chunked=True)]))
    sink = draw(st.sampled_from([None, 0.0, 1.0, 90.0, 1e30]))
    softcap = draw(st.sampled_from([None, 0.01, 1.0, 50.0]))
    return Softmax(window, None if sink is None else sinks(num_heads, sink, draw(st.integers(0, 3))), softcap)


@on_each_backend
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds(), softmaxes(2))
def test_passes_of_random_trees(op: str, backend: str, made: Rounds, softmax: Softmax) -> None:
    if backend == "cascade":
        softmax = softmax._replace(softcap=None)
    for tree_pass, num_slots in passes_of(made):
        inputs = random_inputs(tree_pass.num_tokens, num_slots, (2, 1), 8, seed=tree_pass.num_tokens)
        check(op, backend, inputs, span_tables(tree_pass), softmax)


@on_each_device
@on_each_backend
@on_each_dtype
@on_each_softmax
@pytest.mark.parametrize("width", [24, 64])
def test_widths_and_dtypes(
    width: int, softmax: Softmax, dtype: torch.dtype, op: str, backend: str, device: str
) -> None:
    skip_what_cannot_run(op, backend, device, dtype, **softmax.needs)
    check(op, backend, random_inputs(FOREST_TOKENS, FOREST_SLOTS, (4, 2), width, dtype), FOREST, softmax, device)


# A root of several tiles and blocks of keys, a long child that reads kept slots in two pieces, last first, and short
# spans that share tiles.
LONG = tables_of_lengths(
    [150, 3, 1, 40, *[5] * 9], [[], *[[(0, 71)]] * 2, [(290, 330), (240, 287)], *[[(0, 150), (293, 321)]] * 9]
)


@on_each_device
@on_each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 2, 31, 40, 64, 100, 150, 178, 179, 1000])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_windows_of_several_blocks(
    is_chunked: bool, size: int, dtype: torch.dtype, op: str, backend: str, device: str
) -> None:
    skip_what_cannot_run(op, backend, device, dtype, is_windowed=True)
    if backend == "triton" and device == "cpu" and size not in (1, 40, 100, 179):
        pytest.skip("Triton's interpreter takes a second for each")
    inputs = random_inputs(239, 330, (4, 2), 16, dtype)
    check(op, backend, inputs, LONG, Softmax(ops.Window(size, is_chunked)), device)


@on_each_device
@on_each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("sink", [3e38, 1000.0, 80.0, 30.0, 0.0, -30.0, -1000.0, -3e38])
def test_sinks_of_any_size(sink: float, dtype: torch.dtype, op: str, backend: str, device: str) -> None:
    skip_what_cannot_run(op, backend, device, dtype)
    sinks_H = torch.full((4,), sink)
    inputs = random_inputs(FOREST_TOKENS, FOREST_SLOTS, dtype=dtype)
    if dtype == torch.float16:  # plain attention rounds the sink
        sinks_H = sinks_H.clamp(-6e4, 6e4).half()
    check(op, backend, inputs, FOREST, Softmax(sinks_H=sinks_H), device)


@on_each_device
@on_each_backend
@pytest.mark.parametrize("softcap", [1e-3, 1.0, 1e4])
def test_soft_caps_of_large_and_small_scores(softcap: float, op: str, backend: str, device: str) -> None:
    skip_what_cannot_run(op, backend, device, is_capped=True)
    q_THE, k_SKE, v_SKE = random_inputs(FOREST_TOKENS, FOREST_SLOTS)
    for size in (1e-3, 1.0, 1e3):
        check(op, backend, (q_THE * size, k_SKE, v_SKE), FOREST, Softmax(softcap=softcap), device)


@on_each_backend
def test_a_window_as_long_as_every_path_changes_no_bit(op: str, backend: str) -> None:
    q_THE, k_SKE, v_SKE = random_inputs(239, 330)
    rows = [torch.arange(0, 239, 19)] if op == "leaf_attention" else []
    inputs = (q_THE[rows[0]] if rows else q_THE, k_SKE, v_SKE)
    function = getattr(ops, op)
    whole = function(*inputs, *LONG, *rows, SCALE, backend)
    for is_chunked in (False, True):
        found = function(*inputs, *LONG, *rows, SCALE, backend, window=1000, is_chunked=is_chunked)
        if backend != "cascade":  # which cuts windows into other calls
            assert torch.equal(found, whole)


@on_each_backend
@on_each_softmax
def test_bound_functions_take_tables_that_are_filled_up(softmax: Softmax, op: str, backend: str) -> None:
    skip_what_cannot_run(op, backend, "cpu", **softmax.needs)
    q_THE, k_SKE, v_SKE = random_inputs(FOREST_TOKENS, FOREST_SLOTS)
    spans, rows = ops.Spans(*FOREST), torch.arange(FOREST_TOKENS)
    tables = (
        ops.TreeTables.of(spans, backend, 2, CPU, (23, 31), softmax.window)
        if op == "tree_attention"
        else ops.LeafTables.of(spans, rows, backend, CPU, (90, 31), softmax.window)
    )
    found = ops.bind(op, backend)(q_THE, k_SKE, v_SKE, tables, SCALE, softmax.sinks_H, softmax.softcap)
    assert_as_exact_as_plain(found, (q_THE, k_SKE, v_SKE), FOREST, SCALE, softmax)


@on_each_softmax
def test_references_keep_float64(softmax: Softmax) -> None:
    inputs = tuple(tensor.double() for tensor in random_inputs(FOREST_TOKENS, FOREST_SLOTS))
    expected = plain_attention(inputs, FOREST, SCALE, torch.float64, softmax=softmax)
    actual = tree_attention_reference(*inputs, *FOREST, SCALE, **softmax.arguments)
    torch.testing.assert_close(actual, expected, atol=1e-14, rtol=0)
    actual = leaf_attention_reference(*inputs, *FOREST, torch.arange(FOREST_TOKENS), SCALE, **softmax.arguments)
    torch.testing.assert_close(actual, expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 5, 17, 40])
def test_windows_are_those_of_transformers(size: int) -> None:
    positions = torch.arange(40)
    sliding, chunked = sliding_window_overlay(size), chunked_overlay(size, torch.zeros(1, dtype=torch.int64))
    for is_chunked, overlay in ((False, sliding), (True, chunked)):
        low = lowest_read(positions, size, is_chunked)
        read = [[bool(overlay(0, 0, q, k)) for k in range(q + 1)] for q in range(40)]
        assert [row.index(True) for row in read] == low.tolist()
        assert all(all(row[at:]) for row, at in zip(read, low.tolist(), strict=True))


@on_each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype, op: str, backend: str) -> None:
    options = {"window": 3, "is_chunked": True, "sinks_H": torch.zeros(4, dtype=dtype), "softcap": 20.0}
    if backend == "cascade":
        del options["softcap"]
    skip_what_cannot_run(op, backend, "cpu", dtype)
    inputs = random_inputs(FOREST_TOKENS, FOREST_SLOTS, dtype=dtype)
    rows = [torch.arange(FOREST_TOKENS)] if op == "leaf_attention" else []
    torch.library.opcheck(getattr(ops, op), (*inputs, *FOREST, *rows, SCALE, backend), options)


WRONG = {
    "window 0": ("window: expected at least 1 token, got 0", {"window": 0}),
    "chunks of what": ("window: expected a number of tokens for chunks, got None", {"is_chunked": True}),
    "softcap 0": ("softcap: expected a positive, finite number, got 0.0", {"softcap": 0.0}),
    "softcap negative": ("softcap: expected a positive", {"softcap": -1.0}),
    "softcap infinite": ("softcap: expected a positive", {"softcap": float("inf")}),
    "softcap NaN": ("softcap: expected a positive", {"softcap": float("nan")}),
    "sinks_H dtype": ("sinks_H: expected torch.float32, got torch.float16", {"sinks_H": torch.zeros(4).half()}),
    "sinks_H heads": (r"sinks_H: expected shape \(4,\), got \(2,\)", {"sinks_H": torch.zeros(2)}),
    "sinks_H dimensions": ("sinks_H: expected 1 dimension, got 2", {"sinks_H": torch.zeros(4, 1)}),
}


@on_each_backend
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_named(wrong: str, op: str, backend: str) -> None:
    message, options = WRONG[wrong]
    rows = [torch.arange(FOREST_TOKENS)] if op == "leaf_attention" else []
    inputs = random_inputs(FOREST_TOKENS, FOREST_SLOTS)
    with pytest.raises(ValueError, match=f"^{message}"):
        getattr(ops, op)(*inputs, *FOREST, *rows, SCALE, backend, **options)


@on_each_backend
def test_tables_refuse_a_window_of_no_tokens(op: str, backend: str) -> None:
    makers = {"tree_attention": (ops.TreeTables, 2), "leaf_attention": (ops.LeafTables, torch.tensor([3]))}
    tables, argument = makers[op]
    arguments = [argument, backend] if op == "leaf_attention" else [backend, argument]
    with pytest.raises(ValueError, match=r"^window: expected at least 1 token, got 0$"):
        tables.of(ops.Spans(*FOREST), *arguments, CPU, window=ops.Window(0))
