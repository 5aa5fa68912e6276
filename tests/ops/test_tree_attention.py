"""Tree attention: every backend as exact as plain attention, whatever the tree, its sizes and its layout."""

import logging

import pytest
import torch
from helpers.attention import (
    FOREST,
    FOREST_SLOTS,
    FOREST_TOKENS,
    Rounds,
    Tables,
    assert_as_exact_as_plain,
    check_tree_attention,
    make_tables,
    on_each_forest,
    passes_of,
    plain_attention,
    poisoned,
    random_inputs,
    rounds,
    span_tables,
    tables_of_lengths,
    tournament_passes,
)
from helpers.layouts import every_other, off_its_alignment, offset_in_a_wider_buffer, strided_last, transposed
from helpers.ops import CPU, on_each_device, on_each_dtype, skip_what_cannot_run
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from gram_fast import ops
from gram_fast.errors import BackendError
from gram_fast.kernels.tree_attention import tree_attention_reference

pytestmark = pytest.mark.usefixtures("one_thread")

on_each_backend = pytest.mark.parametrize("backend", ["reference", "cascade", "triton", "extension"])


@on_each_device
@on_each_backend
@on_each_dtype
@pytest.mark.parametrize("width", [24, 64, 80, 96, 128])
@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (4, 1)])
def test_widths_heads_and_dtypes(
    heads: tuple[int, int], width: int, dtype: torch.dtype, backend: str, device: str
) -> None:
    skip_what_cannot_run("tree_attention", backend, device, dtype)
    check_tree_attention(random_inputs(FOREST_TOKENS, FOREST_SLOTS, heads, width, dtype), FOREST, backend, device)


# Around the lengths at which the CPU cascade turns to chunks of 192 queries and back to one call, and around whole
# tiles and blocks of keys of the extension.
@on_each_device
@on_each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [63, 64, 65, 129, 191, 192, 193, 384, 577, 767, 768, 769, 997])
def test_long_spans(length: int, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("tree_attention", backend, device, dtype)
    tables = tables_of_lengths([2, length, 3], [[], [(0, 1), (length + 9, length + 12)], [(2, 2 + length)]])
    check_tree_attention(random_inputs(length + 5, length + 13, (2, 1), 24, dtype), tables, backend, device)


@on_each_device
@on_each_backend
@pytest.mark.parametrize("length", [1, 2, 13, 211, 783])
def test_one_span_alone(length: int, backend: str, device: str) -> None:
    skip_what_cannot_run("tree_attention", backend, device, torch.bfloat16)
    inputs = random_inputs(length, length + 3, dtype=torch.bfloat16)
    check_tree_attention(inputs, tables_of_lengths([length], [[]]), backend, device)


@on_each_device
@on_each_backend
@on_each_dtype
def test_one_token_on_a_long_range(dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("tree_attention", backend, device, dtype)
    check_tree_attention(random_inputs(1, 1021, dtype=dtype), make_tables([(0, 1)], [[(2, 1019)]]), backend, device)


@on_each_device
@pytest.mark.parametrize("backend", ["cascade", "triton", "extension"])
@pytest.mark.parametrize("heads", [(4, 2), (8, 2)])
def test_plans_of_odd_lengths_and_hundreds_of_spans(heads: tuple[int, int], backend: str, device: str) -> None:
    skip_what_cannot_run("tree_attention", backend, device, torch.bfloat16)
    sizes = (3, 12, 61, 8192) if device == "cuda" else (3, 9, 9, 1500)
    for number, (tree_pass, num_slots) in enumerate(tournament_passes(*sizes)):
        inputs = random_inputs(tree_pass.num_tokens, num_slots, heads, 128, torch.bfloat16, seed=number)
        # All of it there: the plain one takes a minute on a CPU.
        q_THE, k_SKE, v_SKE = (tensor.to(device) for tensor in inputs)
        check_tree_attention((q_THE, k_SKE, v_SKE), span_tables(tree_pass), backend, device)


@pytest.mark.parametrize("backend", ["cascade", "extension"])
def test_two_threads(backend: str) -> None:
    torch.set_num_threads(2)
    tables = tables_of_lengths([300, 500], [[], [(0, 250)]])
    check_tree_attention(random_inputs(800, 800), tables, backend)


@on_each_backend
@on_each_dtype
def test_large_scores_do_not_overflow(dtype: torch.dtype, backend: str) -> None:
    skip_what_cannot_run("tree_attention", backend, "cpu", dtype)
    q_THE, k_SKE, v_SKE = random_inputs(FOREST_TOKENS, FOREST_SLOTS, dtype=dtype)
    check_tree_attention((q_THE * 30, k_SKE * 30, v_SKE), FOREST, backend)


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
@on_each_forest
def test_strided_inputs(tables: Tables, layout, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_what_cannot_run("tree_attention", backend, device, dtype)
    inputs = random_inputs(FOREST_TOKENS, FOREST_SLOTS, dtype=dtype)
    scale = 0.25
    out_THE = ops.tree_attention(*(layout(x.to(device)) for x in inputs), *tables, scale, backend)
    assert_as_exact_as_plain(out_THE, inputs, tables, scale)


@on_each_device
@on_each_dtype
@pytest.mark.parametrize("width", [24, 64])
def test_triton_without_descriptors_loads_only_what_is_read(width: int, dtype: torch.dtype, device: str) -> None:
    """Where an address is no multiple of 16 bytes. Every other slot may hold NaN."""
    skip_what_cannot_run("tree_attention", "triton", device, dtype)
    inputs = random_inputs(FOREST_TOKENS, FOREST_SLOTS, width=width, dtype=dtype)
    q_THE, k_SKE, v_SKE = inputs
    unread_is_nan = (off_its_alignment(poisoned(x, FOREST, len(q_THE)).to(device)) for x in (k_SKE, v_SKE))
    out_THE = ops.tree_attention(q_THE.to(device), *unread_is_nan, *FOREST, 0.25, "triton")
    assert_as_exact_as_plain(out_THE, inputs, FOREST, 0.25)


@on_each_backend
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds())
def test_passes_of_random_trees(backend: str, made: Rounds) -> None:
    for tree_pass, num_slots in passes_of(made):
        inputs = random_inputs(tree_pass.num_tokens, num_slots, seed=tree_pass.num_tokens)
        check_tree_attention(inputs, span_tables(tree_pass), backend)


def test_triton_on_a_cpu_is_for_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(BackendError, match="needs a CUDA device"):
        ops.tree_attention(*random_inputs(2, 2), *tables_of_lengths([2], [[]]), 1.0, "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendError, match="computes bfloat16 wrongly"):
        ops.resolve_backend("tree_attention", "triton", CPU, torch.bfloat16)


def test_auto_is_the_extension_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="gram_fast"):
        assert ops.resolve_backend("tree_attention", "auto", CPU, torch.float32, 264) == "extension"
    assert "extension" in caplog.text
    assert "on the CPU alone" in ops.backend_problem("tree_attention", "extension", torch.device("cuda"), torch.float16)


@on_each_backend
@on_each_dtype
def test_a_named_backend_is_itself(backend: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    skip_what_cannot_run("tree_attention", backend, "cpu", dtype)
    with caplog.at_level(logging.INFO, logger="gram_fast"):
        assert ops.resolve_backend("tree_attention", backend, CPU, dtype) == backend
    assert not caplog.text


def test_unknown_backend() -> None:
    with pytest.raises(BackendError, match=r"'flash'.*reference, cascade, triton, extension"):
        ops.resolve_backend("tree_attention", "flash", CPU, torch.float32)
    with pytest.raises(BackendError, match="'auto'"):  # resolved once, by the caller, not by the op
        ops.tree_attention(*random_inputs(2, 2), *tables_of_lengths([2], [[]]), 1.0, "auto")


@on_each_device
@on_each_dtype
@on_each_forest
@pytest.mark.parametrize("layout", [Tensor.contiguous, transposed, offset_in_a_wider_buffer])
@pytest.mark.parametrize("backend", ops.BACKENDS["tree_attention"])
def test_opcheck(backend: str, layout, tables: Tables, dtype: torch.dtype, device: str) -> None:
    skip_what_cannot_run("tree_attention", backend, device, dtype)
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


def test_tiles_may_be_more_than_a_pass_needs_and_groups_are_bounded() -> None:
    arguments = good_arguments() | {"backend": "triton"}
    tables = ops.Spans(*(arguments[name] for name in ("spans_N2", "range_offsets", "ranges_R2")))
    larger = ops.TreeTables.of(tables, "triton", 2, CPU, (9, 99))
    inputs = [arguments[name] for name in ("q_THE", "k_SKE", "v_SKE")]
    found = ops.bind("tree_attention", "triton")(*inputs, larger, arguments["scale"])
    assert torch.equal(found, ops.tree_attention(**arguments))
    with pytest.raises(ValueError, match=r"^group: expected 1 to 128"):
        ops.TreeTables.of(tables, "triton", 129, CPU)
    wide = random_inputs(5, 9, width=264)
    with pytest.raises(BackendError, match="heads of up to 256 columns, got 264"):
        ops.tree_attention(*wide, *tables, 1.0, "triton")
