"""Attention along paths: as exact as plain attention, and the same bits whatever else is packed."""

import numpy as np
import pytest
import torch
from helpers.attention import (
    Inputs,
    Tables,
    assert_as_exact_as_plain,
    make_tables,
    poisoned,
    random_inputs,
    tables_of_lengths,
)
from helpers.layouts import every_other, offset_in_a_wider_buffer, strided_last, transposed
from helpers.ops import CPU, on_each_device, on_each_dtype, skip_what_cannot_run
from torch import Tensor

from gram_fast import ops
from gram_fast.errors import BackendError

pytestmark = pytest.mark.usefixtures("one_thread")

on_each_backend = pytest.mark.parametrize("backend", ["reference", "triton", "extension"])
# Chains, a forest of short and long spans over kept slots, one token, neighbours that share nothing.
LAYOUTS = {
    "one token": tables_of_lengths([1], [[]]),
    "one long span": tables_of_lengths([131], [[]]),
    "a prime of everything": tables_of_lengths([7, 13, 1, 29], [[(61, 97)], [(61, 97), (0, 7)], [(3, 5)], []]),
    "short leaves of one path": tables_of_lengths([37, *[3] * 11], [[], *[[(0, 37)]] * 11]),
    "deep": tables_of_lengths([5] * 9, [[(5 * i, 5 * i + 5) for i in range(depth)] for depth in range(9)]),
}


def attend(inputs: Inputs, tables: Tables, backend: str, device: str = "cpu") -> Tensor:
    q_THE, k_SKE, v_SKE = (tensor.to(device) for tensor in inputs)
    return ops.path_attention(q_THE, k_SKE, v_SKE, *tables, q_THE.shape[-1] ** -0.5, backend=backend).cpu()


def check(inputs: Inputs, tables: Tables, backend: str, device: str = "cpu") -> None:
    q_THE, k_SKE, v_SKE = inputs
    unread_is_nan = (q_THE, *(poisoned(tensor, tables, len(q_THE)) for tensor in (k_SKE, v_SKE)))
    assert_as_exact_as_plain(attend(unread_is_nan, tables, backend, device), inputs, tables, q_THE.shape[-1] ** -0.5)


@on_each_device
@on_each_backend
@pytest.mark.parametrize("layout", LAYOUTS)
@on_each_dtype
def test_as_exact_as_plain_attention(backend, layout, dtype, device):
    skip_what_cannot_run("path_attention", backend, device, dtype)
    tables = LAYOUTS[layout]
    check(random_inputs(int(tables[0][-1, 1]), 140, dtype=dtype), tables, backend, device)


@on_each_device
@on_each_backend
@pytest.mark.parametrize(("heads", "width"), [((1, 1), 1), ((7, 1), 33), ((6, 2), 20), ((8, 8), 64), ((16, 1), 128)])
def test_heads_and_widths(backend, heads, width, device):
    skip_what_cannot_run("path_attention", backend, device, torch.float32)
    check(random_inputs(50, 120, heads, width), LAYOUTS["a prime of everything"], backend, device)


@on_each_device
@on_each_backend
@pytest.mark.parametrize("layout", [transposed, offset_in_a_wider_buffer, every_other])
def test_strided_inputs(backend, layout, device):
    tables = LAYOUTS["a prime of everything"]
    inputs = random_inputs(50, 97)
    strided = tuple(layout(tensor) for tensor in inputs)
    torch.testing.assert_close(attend(strided, tables, backend, device), attend(inputs, tables, backend, device))


def unpacked(inputs: Inputs, tables: Tables, row: int) -> tuple[Inputs, Tables]:
    """The path of one packed row alone: as one span, in slots of its own, nothing else in the pass."""
    spans, offsets, ranges = (table.tolist() for table in tables)
    span = next(number for number, (_, end) in enumerate(spans) if row < end)
    parts = [*ranges[offsets[span] : offsets[span + 1]], (spans[span][0], row + 1)]
    slots = np.concatenate([np.arange(*part) for part in parts])
    q_THE = torch.randn(len(slots), *inputs[0].shape[1:]).to(inputs[0].dtype)
    q_THE[-1] = inputs[0][row]
    return (q_THE, inputs[1][slots], inputs[2][slots]), tables_of_lengths([len(slots)], [[]])


@on_each_device
@on_each_backend
@on_each_dtype
def test_a_row_has_the_bits_of_its_path_alone(backend, dtype, device):
    skip_what_cannot_run("path_attention", backend, device, dtype)
    for layout, tables in LAYOUTS.items():
        num_tokens = int(tables[0][-1, 1])
        inputs = random_inputs(num_tokens, 140, dtype=dtype, seed=3)
        packed = attend(inputs, tables, backend, device)
        rows = range(0, num_tokens, 1 if num_tokens < 50 and backend == "reference" else 11)
        for row in (*rows, num_tokens - 1):
            alone = attend(*unpacked(inputs, tables, row), backend, device)
            assert torch.equal(packed[row], alone[-1]), (layout, row)


@on_each_dtype
@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (9, 1)])
def test_a_row_has_the_same_bits_behind_many_blocks_of_keys(heads, dtype):
    tables = tables_of_lengths([150, 90, 3], [[(300, 430)], [(300, 430), (0, 150)], [(300, 430), (0, 77)]])
    inputs = random_inputs(243, 430, heads, 64, dtype, seed=4)
    packed = attend(inputs, tables, "extension")
    assert_as_exact_as_plain(packed, inputs, tables, 0.125)
    for row in (*range(0, 243, 7), 242):
        assert torch.equal(packed[row], attend(*unpacked(inputs, tables, row), "extension")[-1]), row


@on_each_backend
def test_ranges_of_a_path_may_be_cut_anywhere(backend):
    q_THE, k_SKE, v_SKE = random_inputs(20, 90, seed=5)
    whole = make_tables([(0, 20)], [[(30, 83)]])
    for cut in (31, 47, 82):
        parts = make_tables([(0, 20)], [[(30, cut), (cut, 83)]])
        inputs = (q_THE, k_SKE, v_SKE)
        assert torch.equal(attend(inputs, whole, backend), attend(inputs, parts, backend))


def test_tiles_cover_every_token_once_and_are_aligned():
    for tables in LAYOUTS.values():
        for group in (1, 3, 4, 100):
            made = ops.PathTables.of(ops.Spans(*tables), group, CPU)
            tiles_X4, slots_P = made.tiles_X4, made.slots_P
            size = 1 << (128 // group).bit_length() - 1
            rows = np.concatenate([np.arange(first, first + count) for first, count, _, _ in tiles_X4.tolist()])
            assert sorted(rows.tolist()) == list(range(int(tables[0][-1, 1])))
            for first, count, position, path in tiles_X4.tolist():
                assert position // size == (position + count - 1) // size
                assert slots_P[path + position : path + position + count].tolist() == [*range(first, first + count)]


def test_no_tokens_at_all():
    tables = (torch.empty(0, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), LAYOUTS["one token"][2])
    assert attend(random_inputs(0, 4), tables, "reference").shape == (0, 4, 16)


def test_wrong_arguments_are_named():
    q_THE, k_SKE, v_SKE = random_inputs(5, 9)
    tables = tables_of_lengths([5], [[(6, 9)]])
    good = (q_THE, k_SKE, v_SKE, *tables, 0.25)

    def refused(pattern: str, at: int, value: object, error: type[Exception] = ValueError) -> None:
        arguments = [*good[:at], value, *good[at + 1 :]]
        with pytest.raises(error, match=pattern):
            ops.path_attention(*arguments, backend="reference")

    refused("q_THE: expected 3 dimensions", 0, q_THE[0])
    refused("q_THE: expected a multiple of 2 heads", 0, q_THE[:, :3])
    with pytest.raises(ValueError, match="k_SKE: expected 5 to"):
        ops.path_attention(q_THE, k_SKE[:4], v_SKE[:4], *good[3:], backend="reference")
    refused("v_SKE: expected", 2, v_SKE.half())
    refused("q_THE: expected a contiguous last dimension", 0, strided_last(q_THE)[..., :16])
    refused("spans_N2: expected torch.int64", 3, tables[0].int())
    refused("spans_N2: expected spans that cover 0 to 5 in order", 3, tables[0] + 1)
    refused("range_offsets: expected shape", 4, tables[1][:1])
    refused("ranges_R2: expected 0 <= start < end <= 9", 5, tables[2] + 1)
    refused("scale: expected a positive number", 6, 0.0)
    with pytest.raises(BackendError, match="no path_attention backend 'cascade'"):
        ops.path_attention(*good, backend="cascade")
    with pytest.raises(ValueError, match="group: expected 1 to 128"):
        ops.PathTables.of(ops.Spans(*tables), 129, CPU)


def test_registered_with_torch_library():
    inputs = random_inputs(8, 20)
    tables = tables_of_lengths([5, 3], [[], [(0, 5), (9, 12)]])
    torch.library.opcheck(ops.path_attention, (*inputs, *tables, 0.25), {"backend": "reference"})
