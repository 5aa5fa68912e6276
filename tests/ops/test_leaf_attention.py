"""Leaf attention: as exact as plain attention, and plans that read every key once for sixteen leaves."""

import logging

import numpy as np
import pytest
import torch
from helpers.attention import (
    FOREST,
    FOREST_SLOTS,
    Inputs,
    Rounds,
    random_inputs,
    rounds,
)
from helpers.exactness import Order, assert_no_further, orders_of_summation
from helpers.layouts import columns_of_wider_rows, every_other, offset_in_a_wider_buffer, strided_last, transposed
from helpers.leaves import SHAPE_SLOTS, SHAPES, LeafTables, leaf_tables_of, make_leaf_tables, num_tokens, under_a_root
from helpers.ops import CPU, on_each_device, on_each_dtype, skip_what_cannot_run
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from gram_fast import ops
from gram_fast.errors import BackendError
from gram_fast.kernels.leaf_attention import leaf_attention_reference
from gram_fast.kernels.tree_attention import tree_attention_reference

pytestmark = pytest.mark.usefixtures("one_thread")

on_each_backend = pytest.mark.parametrize("backend", ops.BACKENDS["leaf_attention"])


def inputs_for(
    tables: LeafTables,
    num_slots: int | None = None,
    heads: tuple[int, int] = (4, 2),
    width: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Inputs:
    """A query for every leaf."""
    num_slots = num_tokens(tables) if num_slots is None else num_slots
    return random_inputs(len(tables[3]), num_slots, heads, width, dtype, seed)


def slots_of(tables: LeafTables) -> list[np.ndarray]:
    """The slots that each leaf reads, in no order."""
    spans, offsets, ranges, rows = (table.tolist() for table in tables)
    found = []
    for row in rows:
        span = next(n for n, (start, end) in enumerate(spans) if start <= row < end)
        pieces = [*ranges[offsets[span] : offsets[span + 1]], (spans[span][0], row + 1)]
        found.append(np.concatenate([np.arange(start, end) for start, end in pieces]))
    return found


def plain_attention(
    inputs: Inputs, tables: LeafTables, scale: float, dtype: torch.dtype, order: Order = np.asarray
) -> Tensor:
    """Leaf by leaf: the keys that it reads side by side, one softmax, everything rounded to `dtype`.

    `order` is that of the terms of all sums: over the columns of a head and over the keys.
    """
    q_LHE, k_SKE, v_SKE = (tensor.to(dtype) for tensor in inputs)
    columns = order(np.arange(q_LHE.shape[-1]))
    q_LHE, k_SKE = q_LHE[..., columns], k_SKE[..., columns]
    group = q_LHE.shape[1] // k_SKE.shape[1]
    out_LHE = torch.empty(q_LHE.shape, dtype=dtype)
    for leaf, slots in enumerate(map(order, slots_of(tables))):
        k_HES = k_SKE[slots].permute(1, 2, 0).repeat_interleave(group, dim=0)
        v_HSE = v_SKE[slots].permute(1, 0, 2).repeat_interleave(group, dim=0)
        weights_H1S = (q_LHE[leaf, :, None] @ k_HES * scale).softmax(dim=-1)
        out_LHE[leaf] = (weights_H1S @ v_HSE)[:, 0]
    return out_LHE


# Times the error of plain attention in the same dtype.
FACTOR = {torch.float32: 2.0, torch.float16: 1.5, torch.bfloat16: 1.5}


def assert_as_exact_as_plain(actual: Tensor, inputs: Inputs, tables: LeafTables, scale: float) -> None:
    dtype = inputs[0].dtype
    exact = plain_attention(inputs, tables, scale, torch.float64)
    orders = orders_of_summation(actual.numel())
    plain = torch.stack([plain_attention(inputs, tables, scale, dtype, order) for order in orders])
    assert actual.is_contiguous()
    assert_no_further(actual, exact, plain, FACTOR[dtype])


def poisoned(tensor: Tensor, tables: LeafTables) -> Tensor:
    """NaN in every slot that no leaf reads."""
    is_read = torch.zeros(len(tensor), dtype=torch.bool)
    is_read[np.concatenate(slots_of(tables))] = True
    return torch.where(is_read[:, None, None], tensor, float("nan"))


def check(inputs: Inputs, tables: LeafTables, backend: str, device: str = "cpu") -> None:
    scale = inputs[0].shape[-1] ** -0.5
    q_LHE, k_SKE, v_SKE = inputs
    k_SKE, v_SKE = (poisoned(tensor, tables) for tensor in (k_SKE, v_SKE))
    out_LHE = ops.leaf_attention(*(x.to(device) for x in (q_LHE, k_SKE, v_SKE)), *tables, scale, backend)
    assert_as_exact_as_plain(out_LHE, inputs, tables, scale)


# Leaves end inside a span and at its end, and one of them twice.
LEAVES = (*FOREST, torch.tensor([17, 3, 4, 8, 11, 15, 15]))


@on_each_device
@on_each_backend
@on_each_dtype
@pytest.mark.parametrize(
    ("heads", "width"),
    [((2, 2), 24), ((8, 2), 24), ((7, 1), 97), *[((3, 1), width) for width in (1, 64, 80, 96, 128, 256)]],
)
def test_widths_heads_and_dtypes(
    heads: tuple[int, int], width: int, dtype: torch.dtype, backend: str, device: str
) -> None:
    skip_what_cannot_run("leaf_attention", backend, device, dtype)
    check(inputs_for(LEAVES, FOREST_SLOTS, heads, width, dtype), LEAVES, backend, device)


@on_each_device
@on_each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("leaf_attention", backend, device, dtype)
    check(inputs_for(SHAPES[shape], SHAPE_SLOTS, (2, 1), 24, dtype), SHAPES[shape], backend, device)


# The triton interpreter would take minutes.
@on_each_device
@on_each_dtype
def test_thousands_of_leaves(dtype: torch.dtype, device: str) -> None:
    skip_what_cannot_run("leaf_attention", "extension", device, dtype)
    tables = under_a_root(97, [1 + n % 3 for n in range(2003)])
    check(inputs_for(tables, heads=(2, 1), width=8, dtype=dtype), tables, "extension", device)


@pytest.mark.gpu
@on_each_dtype
@pytest.mark.parametrize("backend", ["extension", "triton"])
def test_a_real_size(backend: str, dtype: torch.dtype) -> None:
    tables = under_a_root(1024, [512] * 63)
    check(inputs_for(tables, heads=(32, 8), width=128, dtype=dtype), tables, backend, "cuda")


def test_two_threads() -> None:
    torch.set_num_threads(2)
    tables = under_a_root(300, [200, 5, 500])
    check(inputs_for(tables), tables, "extension")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_rows_of_tree_attention(shape: str) -> None:
    tables = SHAPES[shape]
    q_THE = inputs_for((*tables[:3], torch.arange(num_tokens(tables))), SHAPE_SLOTS)[0]
    _, k_SKE, v_SKE = inputs_for(tables, SHAPE_SLOTS)
    expected = tree_attention_reference(q_THE, k_SKE, v_SKE, *tables[:3], 0.25)[tables[3]]
    actual = ops.leaf_attention(q_THE[tables[3]], k_SKE, v_SKE, *tables, 0.25, "extension")
    # Both sum up to 1021 weighted values below 5 in float32.
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)


@on_each_backend
@on_each_dtype
def test_large_scores_do_not_overflow(dtype: torch.dtype, backend: str) -> None:
    skip_what_cannot_run("leaf_attention", backend, "cpu", dtype)
    tables = under_a_root(270, [3, 5])
    q_LHE, k_SKE, v_SKE = inputs_for(tables, dtype=dtype)
    check((q_LHE * 30, k_SKE * 30, v_SKE), tables, backend)


@pytest.mark.parametrize("wrong", ["scale", "key", "half"])
def test_large_scores_show_what_is_wrong(wrong: str) -> None:
    tables = under_a_root(270, [3, 5])
    q_LHE, k_SKE, v_SKE = inputs_for(tables)
    inputs = (q_LHE * 30, k_SKE * 30, v_SKE)
    q_LHE, k_SKE, v_SKE = inputs
    best = int((q_LHE[0, 0] @ k_SKE[slots_of(tables)[0], 0].T).argmax())
    scale, tensors = 0.25, inputs
    if wrong == "scale":
        scale *= 1.001
    elif wrong == "key":  # the one that the first head weighs most
        tensors = (q_LHE, k_SKE.index_fill(0, torch.tensor([slots_of(tables)[0][best]]), 0.0), v_SKE)
    else:
        tensors = (q_LHE.half(), k_SKE.half(), v_SKE.half())
    out_LHE = ops.leaf_attention(*tensors, *tables, scale, "extension").float()
    with pytest.raises(AssertionError):
        assert_as_exact_as_plain(out_LHE, inputs, tables, 0.25)


@on_each_backend
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_the_scale_is_the_callers(scale: float, backend: str) -> None:
    inputs = inputs_for(LEAVES, FOREST_SLOTS)
    assert_as_exact_as_plain(ops.leaf_attention(*inputs, *LEAVES, scale, backend), inputs, LEAVES, scale)


@on_each_backend
def test_no_leaves(backend: str) -> None:
    inputs = inputs_for((*FOREST, torch.tensor([], dtype=torch.int64)), FOREST_SLOTS)
    out_LHE = ops.leaf_attention(*inputs, *FOREST, torch.tensor([], dtype=torch.int64), 1.0, backend)
    assert out_LHE.shape == (0, 4, 16)


@on_each_device
@on_each_backend
@on_each_dtype
@pytest.mark.parametrize("layout", [transposed, offset_in_a_wider_buffer, every_other, columns_of_wider_rows])
def test_strided_inputs(layout, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("leaf_attention", backend, device, dtype)
    inputs = inputs_for(LEAVES, FOREST_SLOTS, dtype=dtype)
    out_LHE = ops.leaf_attention(*(layout(x.to(device)) for x in inputs), *LEAVES, 0.25, backend)
    assert_as_exact_as_plain(out_LHE, inputs, LEAVES, 0.25)


@on_each_backend
def test_slots_far_apart(backend: str) -> None:
    # Offsets over 2**31 elements, between blocks of 32 keys too; pages that nobody touches take no memory.
    tables = make_leaf_tables([34], [[]], [33])
    q_LHE, *keys_and_values = inputs_for(tables, dtype=torch.float16)
    stride = 2**26 + 16
    buffer = torch.empty(34 * stride, dtype=torch.float16)
    far = [buffer.as_strided((34, 2, 16), (stride, 16, 1), offset) for offset in (0, 32)]
    for apart, tensor in zip(far, keys_and_values, strict=True):
        apart.copy_(tensor)
    out_LHE = ops.leaf_attention(q_LHE, *far, *tables, 0.25, backend)
    assert_as_exact_as_plain(out_LHE, (q_LHE, *keys_and_values), tables, 0.25)


@on_each_backend
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds())
def test_passes_of_random_trees(backend: str, made: Rounds) -> None:
    for tables, num_slots in leaf_tables_of(made):
        check(inputs_for(tables, num_slots, heads=(2, 1), width=8, seed=num_tokens(tables)), tables, backend)


def test_a_table_may_be_larger_than_its_pass_needs() -> None:
    arguments = good_arguments()
    inputs = [arguments[name] for name in ("q_LHE", "k_SKE", "v_SKE")]
    spans = ops.Spans(*(arguments[name] for name in ("spans_N2", "range_offsets", "ranges_R2")))
    for backend in ("triton", "extension"):
        larger = ops.LeafTables.of(spans, arguments["leaf_rows_L"], backend, CPU, (40, 30))
        assert larger.items.shape == (40, 30)
        found = ops.bind("leaf_attention", backend)(*inputs, larger, 0.25)
        assert torch.equal(found, ops.leaf_attention(**arguments | {"backend": backend}))


def test_auto_is_the_extension_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="gram_fast"):
        assert ops.resolve_backend("leaf_attention", "auto", CPU, torch.float32) == "extension"
    assert "leaf_attention backend: extension" in caplog.text


def test_unknown_backend() -> None:
    with pytest.raises(BackendError, match=r"'cascade'.*reference, extension, triton"):
        ops.leaf_attention(*inputs_for(LEAVES, FOREST_SLOTS), *LEAVES, 1.0, "cascade")


@on_each_device
@on_each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [Tensor.contiguous, transposed])
def test_opcheck(layout, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("leaf_attention", backend, device, dtype)
    inputs = (layout(x.to(device)) for x in inputs_for(LEAVES, FOREST_SLOTS, (2, 1), 8, dtype))
    torch.library.opcheck(ops.leaf_attention, (*inputs, *LEAVES, 0.25, backend))


def good_arguments() -> dict[str, object]:
    tables = make_leaf_tables([3, 2], [[(7, 9)], [(0, 2), (6, 7)]], [1, 4])
    names = ("q_LHE", "k_SKE", "v_SKE", "spans_N2", "range_offsets", "ranges_R2", "leaf_rows_L")
    arguments = dict(zip(names, (*inputs_for(tables, 9), *tables), strict=True))
    return {**arguments, "scale": 0.25, "backend": "extension"}


WRONG = {
    "q_LHE 2 dimensions": ("q_LHE", lambda x: x[0]),
    "q_LHE float64": ("q_LHE", lambda x: x.double()),
    "q_LHE stride": ("q_LHE", strided_last),
    "q_LHE heads": ("q_LHE", lambda x: x[:, :3]),
    "q_LHE too wide": ("q_LHE", lambda x: x.repeat(1, 1, 17), "k_SKE", "v_SKE"),
    "k_SKE 4 dimensions": ("k_SKE", lambda x: x[None]),
    "k_SKE dtype": ("k_SKE", lambda x: x.bfloat16()),
    "k_SKE width": ("k_SKE", lambda x: x[..., :8]),
    "k_SKE stride": ("k_SKE", strided_last),
    "v_SKE slots": ("v_SKE", lambda x: x[:-1]),
    "v_SKE heads": ("v_SKE", lambda x: x[:, :1]),
    "v_SKE dtype": ("v_SKE", lambda x: x.half()),
    "v_SKE stride": ("v_SKE", strided_last),
    "spans_N2 1 dimension": ("spans_N2", lambda x: x[0]),
    "spans_N2 one column": ("spans_N2", lambda x: x[:, :1].contiguous()),
    "spans_N2 dtype": ("spans_N2", lambda x: x.int()),
    "spans_N2 gap": ("spans_N2", lambda x: torch.tensor([[0, 2], [3, 5]])),
    "range_offsets length": ("range_offsets", lambda x: x[1:]),
    "range_offsets falls": ("range_offsets", lambda x: torch.tensor([0, 4, 3])),
    "ranges_R2 columns": ("ranges_R2", lambda x: x[:, :1].contiguous()),
    "ranges_R2 beyond": ("ranges_R2", lambda x: torch.tensor([[7, 10], [0, 2], [6, 7]])),
    "leaf_rows_L 2 dimensions": ("leaf_rows_L", lambda x: x[None]),
    "leaf_rows_L dtype": ("leaf_rows_L", lambda x: x.int()),
    "leaf_rows_L stride": ("leaf_rows_L", strided_last),
    "leaf_rows_L fewer": ("leaf_rows_L", lambda x: x[:1]),
    "leaf_rows_L negative": ("leaf_rows_L", lambda x: x - 2),
    "leaf_rows_L beyond": ("leaf_rows_L", lambda x: x + 1),
    "scale": ("scale", lambda x: -x),
}


@on_each_backend
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_named(wrong: str, backend: str) -> None:
    name = wrong.split()[0]
    changed, change, *also = WRONG[wrong]
    arguments = good_arguments() | {"backend": backend}
    ops.leaf_attention(**arguments)
    for argument in (changed, *also):
        arguments[argument] = change(arguments[argument])
    with pytest.raises(ValueError, match=rf"^{name}: expected "):
        ops.leaf_attention(**arguments)


def test_fewer_slots_than_tokens() -> None:
    tables = make_leaf_tables([5], [[]], [2])
    with pytest.raises(ValueError, match=r"^k_SKE: expected at least T = 5 slots, got 4"):
        ops.leaf_attention(*inputs_for(tables, 4), *tables, 0.25, "extension")


def test_items_of_wrong_tables_are_not_made() -> None:
    spans, offsets, ranges, rows = LEAVES
    with pytest.raises(ValueError, match=r"^leaf_rows_L: expected "):
        ops.LeafTables.of(ops.Spans(spans, offsets, ranges), rows + 1, "extension", CPU)
    with pytest.raises(ValueError, match=r"^range_offsets: expected "):
        ops.LeafTables.of(ops.Spans(spans, offsets[1:], ranges), rows, "extension", CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["k_SKE", "v_SKE", "spans_N2", "range_offsets", "ranges_R2", "leaf_rows_L"])
def test_wrong_devices_are_named(name: str) -> None:
    arguments = good_arguments()
    if name in ("k_SKE", "v_SKE"):
        for moved in ("q_LHE", "k_SKE", "v_SKE"):
            arguments[moved] = arguments[moved] if moved == name else arguments[moved].cuda()
    else:
        arguments[name] = arguments[name].cuda()
    with pytest.raises(ValueError, match=rf"^{name}: expected device"):
        ops.leaf_attention(**arguments)


def test_the_reference_keeps_float64() -> None:
    inputs = tuple(tensor.double() for tensor in inputs_for(LEAVES, FOREST_SLOTS))
    actual = leaf_attention_reference(*inputs, *LEAVES, 0.25)
    torch.testing.assert_close(actual, plain_attention(inputs, LEAVES, 0.25, torch.float64), atol=1e-14, rtol=0)
