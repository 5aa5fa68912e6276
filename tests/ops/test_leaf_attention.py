import logging
from collections.abc import Sequence
from itertools import pairwise

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

from gram_fast import ops
from gram_fast.errors import BackendError
from gram_fast.kernels.leaf_attention import leaf_attention_reference, leaf_mask
from gram_fast.kernels.tree_attention import tree_attention_reference
from gram_fast.scoring.tree import TokenTree, TreePass, plan_round

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# The constants of csrc/tables/leaf_items.h.
CHUNK_KEYS, ITEM_LEAVES = 256, 16
on_each_backend = pytest.mark.parametrize("backend", ops.BACKENDS["leaf_attention"])

Tables = tuple[Tensor, Tensor, Tensor, Tensor]  # spans [N, 2], range_offsets [N + 1], ranges [R, 2], leaf_rows [L]
Inputs = tuple[Tensor, Tensor, Tensor]  # q [L, H, E], k [S, K, E], v [S, K, E]


def make_tables(lengths: Sequence[int], reads: Sequence[Sequence[tuple[int, int]]], leaf_rows: Sequence[int]) -> Tables:
    """Spans of these lengths side by side, the ranges that each reads, and the leaves' last tokens."""
    ends = np.cumsum(lengths)
    ranges = [row for read in reads for row in read]
    return (
        torch.from_numpy(np.stack([ends - lengths, ends], axis=1)),
        torch.from_numpy(np.cumsum([0, *map(len, reads)])),
        torch.tensor(ranges, dtype=torch.int64).reshape(-1, 2),
        torch.tensor(leaf_rows, dtype=torch.int64),
    )


def under_a_root(root: int, leaves: Sequence[int]) -> Tables:
    """The first leaf goes on where the root ends, the others read the root as a range."""
    lengths = [root + leaves[0], *leaves[1:]]
    return make_tables(lengths, [[], *[[(0, root)]] * (len(leaves) - 1)], (np.cumsum(lengths) - 1).tolist())


def num_tokens(tables: Tables) -> int:
    return int(tables[0][-1, 1])


def random_inputs(
    tables: Tables,
    num_slots: int | None = None,
    heads: tuple[int, int] = (4, 2),
    width: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    num_heads, num_kv_heads = heads

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    num_slots = num_tokens(tables) if num_slots is None else num_slots
    return (
        normal(len(tables[3]), num_heads, width),
        normal(num_slots, num_kv_heads, width),
        normal(num_slots, num_kv_heads, width),
    )


def slots_of(tables: Tables) -> list[np.ndarray]:
    """The slots that each leaf reads, in no order."""
    spans, offsets, ranges, rows = (table.tolist() for table in tables)
    found = []
    for row in rows:
        span = next(n for n, (start, end) in enumerate(spans) if start <= row < end)
        pieces = [*ranges[offsets[span] : offsets[span + 1]], (spans[span][0], row + 1)]
        found.append(np.concatenate([np.arange(start, end) for start, end in pieces]))
    return found


def plain_attention(inputs: Inputs, tables: Tables, scale: float, dtype: torch.dtype) -> Tensor:
    """Leaf by leaf: the keys that it reads side by side, one softmax, everything rounded to `dtype`."""
    q_LHE, k_SKE, v_SKE = (tensor.to(dtype) for tensor in inputs)
    group = q_LHE.shape[1] // k_SKE.shape[1]
    out_LHE = torch.empty_like(q_LHE)
    for leaf, slots in enumerate(slots_of(tables)):
        k_HES = k_SKE[slots].permute(1, 2, 0).repeat_interleave(group, dim=0)
        v_HSE = v_SKE[slots].permute(1, 0, 2).repeat_interleave(group, dim=0)
        weights_H1S = (q_LHE[leaf, :, None] @ k_HES * scale).softmax(dim=-1)
        out_LHE[leaf] = (weights_H1S @ v_HSE)[:, 0]
    return out_LHE


# Times the error of plain attention in the same dtype.
FACTOR = {torch.float32: 2.0, torch.float16: 1.5, torch.bfloat16: 1.5}


def assert_as_exact_as_plain(actual: Tensor, inputs: Inputs, tables: Tables, scale: float) -> None:
    dtype = inputs[0].dtype
    exact, plain = (plain_attention(inputs, tables, scale, computed) for computed in (torch.float64, dtype))
    assert_no_further(actual, exact, plain, FACTOR[dtype])


def poisoned(tensor: Tensor, tables: Tables) -> Tensor:
    """NaN in every slot that no leaf reads."""
    is_read = torch.zeros(len(tensor), dtype=torch.bool)
    is_read[np.concatenate(slots_of(tables))] = True
    return torch.where(is_read[:, None, None], tensor, float("nan"))


def check(inputs: Inputs, tables: Tables, backend: str, device: str = "cpu") -> None:
    scale = inputs[0].shape[-1] ** -0.5
    q_LHE, k_SKE, v_SKE = inputs
    k_SKE, v_SKE = (poisoned(tensor, tables) for tensor in (k_SKE, v_SKE))
    out_LHE = ops.leaf_attention(*(x.to(device) for x in (q_LHE, k_SKE, v_SKE)), *tables, scale, backend)
    assert_as_exact_as_plain(out_LHE, inputs, tables, scale)


def skip_what_cannot_run(backend: str, device: str, dtype: torch.dtype) -> None:
    if problem := ops.backend_problem("leaf_attention", backend, torch.device(device), dtype):
        pytest.skip(problem)


# Two trees in one pass: spans read nothing, a part of an earlier span, kept slots, and several of these. Leaves end
# inside a span and at its end, and one of them twice.
FOREST = make_tables(
    [5, 3, 1, 7, 2],
    [[], [(0, 4)], [(30, 37), (0, 2)], [(21, 22)], [(21, 22), (9, 13), (25, 28)]],
    [17, 3, 4, 8, 11, 15, 15],
)
FOREST_SLOTS = 41


@on_each_device
@on_each_backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "width"),
    [((2, 2), 24), ((8, 2), 24), ((7, 1), 97), *[((3, 1), width) for width in (1, 64, 80, 96, 128, 256)]],
)
def test_widths_heads_and_dtypes(
    heads: tuple[int, int], width: int, dtype: torch.dtype, backend: str, device: str
) -> None:
    skip_what_cannot_run(backend, device, dtype)
    check(random_inputs(FOREST, FOREST_SLOTS, heads, width, dtype), FOREST, backend, device)


SHAPES = {
    "one token": make_tables([1], [[]], [0]),
    "one leaf": make_tables([523], [[]], [522]),
    "one leaf in the middle of a span": make_tables([523], [[]], [257]),
    "one token on a long range": make_tables([1], [[(2, 601)]], [0]),
    "a leaf at every depth of a comb": make_tables(
        [40] * 13, [[(40 * i, 40 * i + 7) for i in range(n)] for n in range(13)], [40 * n + 39 for n in range(13)]
    ),
    "a leaf at every token of a span": make_tables([61], [[]], range(61)),
    "a leaf behind every chunk": make_tables([1021], [[]], [254, 255, 256, 511, 512, 1020]),
    "just more than a chunk, just more than an item": under_a_root(CHUNK_KEYS + 1, [1] * (ITEM_LEAVES + 1)),
    "prime sizes": under_a_root(131, [7, 31, 1, 127, 257]),
    "ranges in many pieces": make_tables(
        [2, 3], [[(5 + 3 * i, 6 + 3 * i) for i in range(40)], [(5 + 3 * i, 7 + 3 * i) for i in range(40)]], [1, 3, 4]
    ),
    "ranges that touch": make_tables([4, 3], [[], [(0, 1), (3, 4), (1, 3)]], [2, 6]),
    "kept slots alone": make_tables([1, 1], [[(300, 599)], [(300, 599), (40, 41)]], [0, 1]),
}
SHAPE_SLOTS = 1100


@on_each_device
@on_each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run(backend, device, dtype)
    check(random_inputs(SHAPES[shape], SHAPE_SLOTS, (2, 1), 24, dtype), SHAPES[shape], backend, device)


# The triton interpreter would take minutes.
@on_each_device
@pytest.mark.parametrize("dtype", DTYPES)
def test_thousands_of_leaves(dtype: torch.dtype, device: str) -> None:
    skip_what_cannot_run("extension", device, dtype)
    tables = under_a_root(97, [1 + n % 3 for n in range(2003)])
    check(random_inputs(tables, heads=(2, 1), width=8, dtype=dtype), tables, "extension", device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["extension", "triton"])
def test_a_real_size(backend: str, dtype: torch.dtype) -> None:
    tables = under_a_root(1024, [512] * 63)
    check(random_inputs(tables, heads=(32, 8), width=128, dtype=dtype), tables, backend, "cuda")


def test_two_threads() -> None:
    torch.set_num_threads(2)
    tables = under_a_root(300, [200, 5, 500])
    check(random_inputs(tables), tables, "extension")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_rows_of_tree_attention(shape: str) -> None:
    tables = SHAPES[shape]
    q_THE = random_inputs((*tables[:3], torch.arange(num_tokens(tables))), SHAPE_SLOTS)[0]
    _, k_SKE, v_SKE = random_inputs(tables, SHAPE_SLOTS)
    expected = tree_attention_reference(q_THE, k_SKE, v_SKE, *tables[:3], 0.25)[tables[3]]
    actual = ops.leaf_attention(q_THE[tables[3]], k_SKE, v_SKE, *tables, 0.25, "extension")
    # Both sum up to 1021 weighted values below 5 in float32.
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)


@on_each_backend
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_do_not_overflow(dtype: torch.dtype, backend: str) -> None:
    skip_what_cannot_run(backend, "cpu", dtype)
    tables = under_a_root(270, [3, 5])
    q_LHE, k_SKE, v_SKE = random_inputs(tables, dtype=dtype)
    check((q_LHE * 30, k_SKE * 30, v_SKE), tables, backend)


@on_each_backend
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_the_scale_is_the_callers(scale: float, backend: str) -> None:
    inputs = random_inputs(FOREST, FOREST_SLOTS)
    assert_as_exact_as_plain(ops.leaf_attention(*inputs, *FOREST, scale, backend), inputs, FOREST, scale)


@on_each_backend
def test_no_leaves(backend: str) -> None:
    inputs = random_inputs((*FOREST[:3], torch.tensor([], dtype=torch.int64)), FOREST_SLOTS)
    out_LHE = ops.leaf_attention(*inputs, *FOREST[:3], torch.tensor([], dtype=torch.int64), 1.0, backend)
    assert out_LHE.shape == (0, 4, 16)
    assert ops.leaf_items(*FOREST[:3], torch.tensor([], dtype=torch.int64), CPU).numel() == 0


@on_each_device
@on_each_backend
def test_items_made_before(backend: str, device: str) -> None:
    skip_what_cannot_run(backend, device, torch.float32)
    tables = SHAPES["prime sizes"]
    inputs = [x.to(device) for x in random_inputs(tables)]
    items = ops.leaf_items(*tables, torch.device(device))
    expected = ops.leaf_attention(*inputs, *tables, 0.25, backend)
    assert torch.equal(ops.leaf_attention(*inputs, *tables, 0.25, backend, items), expected)


def columns_of_wider_rows(tensor: Tensor) -> Tensor:
    # Rows of an odd number of elements: no two of them are aligned alike.
    return torch.nn.functional.pad(tensor, (3, 2), value=float("nan"))[..., 3:-2]


@on_each_device
@on_each_backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [transposed, offset_in_a_wider_buffer, every_other, columns_of_wider_rows])
def test_strided_inputs(layout, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run(backend, device, dtype)
    inputs = random_inputs(FOREST, FOREST_SLOTS, dtype=dtype)
    out_LHE = ops.leaf_attention(*(layout(x.to(device)) for x in inputs), *FOREST, 0.25, backend)
    assert_as_exact_as_plain(out_LHE, inputs, FOREST, 0.25)


@on_each_backend
def test_slots_far_apart(backend: str) -> None:
    # Offsets over 2**31 elements, between blocks of 32 keys too; pages that nobody touches take no memory.
    tables = make_tables([34], [[]], [33])
    q_LHE, *keys_and_values = random_inputs(tables, dtype=torch.float16)
    stride = 2**26 + 16
    buffer = torch.empty(34 * stride, dtype=torch.float16)
    far = [buffer.as_strided((34, 2, 16), (stride, 16, 1), offset) for offset in (0, 32)]
    for apart, tensor in zip(far, keys_and_values, strict=True):
        apart.copy_(tensor)
    out_LHE = ops.leaf_attention(q_LHE, *far, *tables, 0.25, backend)
    assert_as_exact_as_plain(out_LHE, (q_LHE, *keys_and_values), tables, 0.25)


@st.composite
def rounds(draw: st.DrawFn) -> tuple[list[list[int]], list[list[tuple[int, int, int]]], int, int]:
    segments = draw(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=2, max_size=5))
    row = st.tuples(*[st.integers(0, len(segments) - 1)] * 3)
    tables = draw(st.lists(st.lists(row, min_size=1, max_size=6), min_size=1, max_size=2))
    return segments, tables, draw(st.sampled_from([3, 7, 16, 64])), draw(st.sampled_from([0, 8, 1000]))


def passes_of(made: tuple) -> list[tuple[TreePass, int]]:
    segments, sequences, budget, keep_limit = made
    tree = TokenTree([1, 0, 1])
    for ids in segments:
        tree.add_segment(ids)
    passes = []
    for rows in sequences:
        plan = plan_round(tree, tree.add_sequences(rows, 1), budget=budget, keep_limit=keep_limit, more_rounds=True)
        passes += [(tree_pass, plan.num_slots) for tree_pass in plan.passes if len(tree_pass.leaf_rows)]
        tree.keep(plan.kept)
    return passes


@on_each_backend
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds())
def test_passes_of_random_trees(backend: str, made: tuple) -> None:
    for p, num_slots in passes_of(made):
        tables = (p.spans, p.range_offsets, p.ranges, p.leaf_rows)
        check(random_inputs(tables, num_slots, (2, 1), 8, seed=p.num_tokens), tables, backend)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds())
def test_plans_of_random_trees(made: tuple) -> None:
    for p, num_slots in passes_of(made):
        check_plan((p.spans, p.range_offsets, p.ranges, p.leaf_rows), num_slots)


@pytest.mark.parametrize("shape", SHAPES)
def test_plans(shape: str) -> None:
    check_plan(SHAPES[shape], SHAPE_SLOTS)


def test_a_table_may_be_larger_than_its_pass_needs() -> None:
    arguments = good_arguments()
    tables = [arguments[name] for name in ("spans_N2", "range_offsets", "ranges_R2", "leaf_rows_L")]
    larger = ops.leaf_items(*tables, CPU, (40, 30))
    assert larger.shape == (40, 30)
    for backend in ("triton", "extension"):
        given = arguments | {"backend": backend}
        assert torch.equal(ops.leaf_attention(**given | {"items": larger}), ops.leaf_attention(**given))


def read_plan(tables: Tables) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items [X, 4], the leaves' offsets [L + 1], and the entries [P, 4] that some item counts as its own."""
    table, num_leaves = ops.leaf_items(*tables, CPU).numpy(), len(tables[3])
    flat, at = table.ravel(), 4 * len(table)
    items, offsets = flat[:at].reshape(-1, 4), flat[at : at + num_leaves + 1]
    entries = flat[at + (num_leaves + 4) // 4 * 4 :]
    return items, offsets, entries[: 4 * items[:, 3].max()].reshape(-1, 4)


def check_plan(tables: Tables, num_slots: int) -> None:
    items, offsets, entries = read_plan(tables)
    assert (items[:, 1] - items[:, 0] <= CHUNK_KEYS).all()
    assert (items[:, 3] - items[:, 2] <= ITEM_LEAVES).all()
    assert items[0, 2] == 0
    assert (items[1:, 2] == items[:-1, 3]).all(), "every entry is in one item"
    costs = (items[:, 1] - items[:, 0]) * (items[:, 3] - items[:, 2])
    assert (np.diff(costs) <= 0).all(), "longest first"
    num_reads = np.zeros((len(tables[3]), num_slots), dtype=int)
    for start, end, first, last in items:
        mine = entries[first:last]
        assert (mine[:, 1].min(), mine[:, 2].max()) == (start, end), "no key is fetched for nobody"
        assert (mine[:, 1] < mine[:, 2]).all()
        for leaf, low, high, partial in mine:
            num_reads[leaf, low:high] += 1
            assert offsets[leaf] <= partial < offsets[leaf + 1]
    assert np.array_equal(num_reads, leaf_mask(*tables, num_slots).numpy().astype(int))
    assert sorted(entries[:, 3]) == list(range(len(entries)))
    assert (offsets[0], offsets[-1]) == (0, len(entries))


@pytest.mark.parametrize("num_leaves", [1, ITEM_LEAVES, ITEM_LEAVES + 1, 63])
def test_shared_keys_are_fetched_once_for_sixteen_leaves(num_leaves: int) -> None:
    items, _, entries = read_plan(under_a_root(1024, [512] * num_leaves))
    fetched = int((items[:, 1] - items[:, 0]).sum())
    times = -(-num_leaves // ITEM_LEAVES)
    assert fetched == times * 1024 + num_leaves * 512
    assert len(entries) == num_leaves * 6


def test_partial_results_are_a_tenth_of_what_is_read() -> None:
    # 63 leaves, 1024 keys shared and 512 of each; 32 heads and 8 key/value heads of 128 columns, in bfloat16.
    items, _, entries = read_plan(under_a_root(1024, [512] * 63))
    partial_bytes = 2 * len(entries) * 32 * (128 + 1) * 4
    key_value_bytes = int((items[:, 1] - items[:, 0]).sum()) * 2 * 8 * 128 * 2
    assert partial_bytes < 0.1 * key_value_bytes


def test_leaves_beside_each_other_share_no_item() -> None:
    items, _, _ = read_plan(make_tables([10, 20, 30], [[], [], []], [9, 29, 59]))
    assert sorted(map(tuple, items[:, :2])) == [(0, 10), (10, 30), (30, 60)]


def test_chunks_are_even() -> None:
    items, _, _ = read_plan(make_tables([1021], [[]], [1020]))
    ends = sorted(items[:, 1])
    assert [end - start for start, end in pairwise([0, *ends])] == [256, 256, 256, 253]


def test_auto_is_the_extension_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="gram_fast"):
        assert ops.resolve_backend("leaf_attention", "auto", CPU, torch.float32) == "extension"
    assert "leaf_attention backend: extension" in caplog.text


def test_unknown_backend() -> None:
    with pytest.raises(BackendError, match=r"'cascade'.*reference, extension, triton"):
        ops.leaf_attention(*random_inputs(FOREST, FOREST_SLOTS), *FOREST, 1.0, "cascade")


@on_each_device
@on_each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [Tensor.contiguous, transposed])
@pytest.mark.parametrize("has_items", [False, True])
def test_opcheck(has_items: bool, layout, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run(backend, device, dtype)
    inputs = (layout(x.to(device)) for x in random_inputs(FOREST, FOREST_SLOTS, (2, 1), 8, dtype))
    items = ops.leaf_items(*FOREST, torch.device(device)) if has_items else None
    torch.library.opcheck(ops.leaf_attention, (*inputs, *FOREST, 0.25, backend, items))


def good_arguments() -> dict[str, object]:
    tables = make_tables([3, 2], [[(7, 9)], [(0, 2), (6, 7)]], [1, 4])
    names = ("q_LHE", "k_SKE", "v_SKE", "spans_N2", "range_offsets", "ranges_R2", "leaf_rows_L")
    arguments = dict(zip(names, (*random_inputs(tables, 9), *tables), strict=True))
    return {**arguments, "scale": 0.25, "backend": "extension", "items": ops.leaf_items(*tables, CPU)}


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
    "items 1 dimension": ("items", lambda x: x.ravel()),
    "items dtype": ("items", lambda x: x.long()),
    "items stride": ("items", lambda x: x.T.contiguous().T),
    "items none": ("items", lambda x: x[:0]),
    "items short": ("items", lambda x: x[:, :6].contiguous()),
}


@on_each_backend
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_named(wrong: str, backend: str) -> None:
    name = wrong.split()[0]
    changed, change, *also = WRONG[wrong]
    arguments = good_arguments() | {"backend": backend}
    ops.leaf_attention(**arguments)
    if backend == "reference" and name == "items":
        pytest.skip("it reads no items")
    for argument in (changed, *also):
        arguments[argument] = change(arguments[argument])
    with pytest.raises(ValueError, match=rf"^{name}: expected "):
        ops.leaf_attention(**arguments)


def test_fewer_slots_than_tokens() -> None:
    tables = make_tables([5], [[]], [2])
    with pytest.raises(ValueError, match=r"^k_SKE: expected at least T = 5 slots, got 4"):
        ops.leaf_attention(*random_inputs(tables, 4), *tables, 0.25, "extension")


def test_items_of_wrong_tables_are_not_made() -> None:
    spans, offsets, ranges, rows = FOREST
    with pytest.raises(ValueError, match=r"^leaf_rows_L: expected "):
        ops.leaf_items(spans, offsets, ranges, rows + 1, CPU)
    with pytest.raises(ValueError, match=r"^range_offsets: expected "):
        ops.leaf_items(spans, offsets[1:], ranges, rows, CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", ["k_SKE", "v_SKE", "spans_N2", "range_offsets", "ranges_R2", "leaf_rows_L", "items"])
def test_wrong_devices_are_named(name: str) -> None:
    arguments = good_arguments()
    if name in ("k_SKE", "v_SKE", "items"):
        for moved in ("q_LHE", "k_SKE", "v_SKE"):
            arguments[moved] = arguments[moved] if moved == name else arguments[moved].cuda()
    else:
        arguments[name] = arguments[name].cuda()
    with pytest.raises(ValueError, match=rf"^{name}: expected device"):
        ops.leaf_attention(**arguments)


def test_the_reference_keeps_float64() -> None:
    inputs = tuple(tensor.double() for tensor in random_inputs(FOREST, FOREST_SLOTS))
    actual = leaf_attention_reference(*inputs, *FOREST, 0.25)
    torch.testing.assert_close(actual, plain_attention(inputs, FOREST, 0.25, torch.float64), atol=1e-14, rtol=0)
