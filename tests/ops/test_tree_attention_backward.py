"""Gradients of tree attention: as exact as those of plain attention."""

import pytest
import torch
from helpers.attention import (
    TREE,
    Inputs,
    Tables,
    assert_as_exact_as_plain_gradients,
    random_inputs,
    tables_of_lengths,
)
from helpers.layouts import every_other, offset_in_a_wider_buffer, transposed
from helpers.ops import CPU, on_each_dtype
from torch import Tensor

from gram_fast import ops
from gram_fast.ops.tree_attention import attention_and_lse

pytestmark = pytest.mark.usefixtures("one_thread")

SCALE = 0.2
on_each_backend = pytest.mark.parametrize("backend", ops.BACKENDS["tree_attention_backward"])
LAYOUTS = {
    "two tokens": tables_of_lengths([2], [[]]),
    "a span longer than any block": tables_of_lengths([331], [[]]),
    "spans that share nothing": tables_of_lengths([7, 13, 1, 29, 64, 128], [[]] * 6),
    "short leaves of one path": tables_of_lengths([37, *[3] * 11], [[], *[[(0, 37)]] * 11]),
    "deep": tables_of_lengths([5] * 9, [[(5 * i, 5 * i + 5) for i in range(depth)] for depth in range(9)]),
    "a tree": TREE,
}


def random_case(
    tables: Tables, heads: tuple[int, int] = (4, 2), width: int = 16, dtype: torch.dtype = torch.float32
) -> tuple[Inputs, Tensor]:
    """Queries, keys and values, and the gradient of the result."""
    num_tokens = int(tables[0][-1, 1])
    inputs = random_inputs(num_tokens, num_tokens, heads, width, dtype)
    return inputs, random_inputs(num_tokens, 1, heads, width, dtype, seed=1)[0]


def gradients_of(inputs: Inputs, grad_THE: Tensor, tables: Tables, backend: str = "extension") -> tuple[Tensor, ...]:
    made = ops.TreeTables.of(ops.Spans(*tables), "extension", inputs[0].shape[1] // inputs[1].shape[1], CPU)
    results = attention_and_lse(*inputs, made, SCALE)
    return ops.tree_attention_backward(grad_THE, *inputs, *results, *tables, SCALE, backend)


def check(inputs: Inputs, grad_THE: Tensor, tables: Tables, backend: str = "extension") -> None:
    gradients = gradients_of(inputs, grad_THE, tables, backend)
    assert_as_exact_as_plain_gradients(gradients, inputs, grad_THE, tables, SCALE)


@on_each_backend
@on_each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_are_as_exact_as_plain_ones(layout, dtype, backend):
    inputs, grad_THE = random_case(LAYOUTS[layout], dtype=dtype)
    check(inputs, grad_THE, LAYOUTS[layout], backend)


@on_each_dtype
@pytest.mark.parametrize(("heads", "width"), [((1, 1), 1), ((9, 3), 64), ((10, 2), 80), ((3, 3), 130)], ids=str)
def test_all_shapes_of_heads(heads, width, dtype):
    inputs, grad_THE = random_case(TREE, heads, width, dtype)
    check(inputs, grad_THE, TREE)


@pytest.mark.parametrize("layout", [every_other, offset_in_a_wider_buffer, transposed])
def test_strides(layout):
    inputs, grad_THE = random_case(TREE)
    strided = tuple(layout(x) for x in inputs)
    assert not any(x.is_contiguous() for x in strided)
    actual = gradients_of(strided, layout(grad_THE), TREE)
    torch.testing.assert_close(actual, gradients_of(inputs, grad_THE, TREE), rtol=0, atol=0)


@on_each_backend
@on_each_dtype
def test_one_token_gives_its_value_all_and_its_score_nothing(dtype, backend):
    token = tables_of_lengths([1], [[]])
    inputs, grad_THE = random_case(token, dtype=dtype)
    grad_q, grad_k, grad_v = gradients_of(inputs, grad_THE, token, backend)
    torch.testing.assert_close(grad_v, grad_THE.float().view(1, 2, 2, 16).sum(2).to(dtype), rtol=0, atol=0)
    # Two sums of 16 products that should cancel, one of them of a rounded result, times a query of at most 4.
    for grad in (grad_q, grad_k):
        assert grad.abs().max() <= 16 * torch.finfo(dtype).eps


def test_large_scores_do_not_overflow():
    inputs, grad_THE = random_case(TREE)
    large = (5 * inputs[0], 5 * inputs[1], inputs[2])
    check(large, grad_THE, TREE)
    # Of 1e5 and more float32 leaves a weight three digits.
    huge = (99 * inputs[0], 99 * inputs[1], inputs[2])
    assert all(grad.isfinite().all() for grad in gradients_of(huge, grad_THE, TREE))


def test_bits_are_the_same_again_on_several_threads():
    """Threads sum up parts of their own, whichever is first."""
    inputs, grad_THE = random_case(TREE, (9, 3), 64, torch.bfloat16)
    torch.set_num_threads(2)
    first, *others = [gradients_of(inputs, grad_THE, TREE) for _ in range(20)]
    assert_as_exact_as_plain_gradients(first, inputs, grad_THE, TREE, SCALE)
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)


def test_wrong_arguments_are_named():
    inputs, grad_THE = random_case(TREE)
    out_THE, lse_TH = torch.zeros(196, 4, 16), torch.zeros(196, 4)
    good = dict(zip(("grad_out_THE", "q_THE", "k_TKE", "v_TKE"), (grad_THE, *inputs), strict=True))
    good |= {"out_THE": out_THE, "lse_TH": lse_TH, "scale": 0.25, "backend": "extension"}
    good |= dict(zip(("spans_N2", "range_offsets", "ranges_R2"), TREE, strict=True))
    for name, wrong, message in (
        ("lse_TH", lse_TH.double(), "lse_TH: expected torch.float32"),
        ("lse_TH", lse_TH[:-1], r"lse_TH: expected shape \(196, 4\)"),
        ("out_THE", out_THE.transpose(0, 1).contiguous().transpose(0, 1), "out_THE: expected a contiguous tensor"),
        ("grad_out_THE", grad_THE.half(), "grad_out_THE: expected torch.float32"),
        ("k_TKE", inputs[1][:-1], r"k_TKE: expected shape \(196, 2, 16\)"),
        ("scale", 0.0, "scale: expected a positive number"),
        ("ranges_R2", TREE[2] + 400, "range"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.tree_attention_backward(**{**good, name: wrong})


def test_no_tokens_have_no_gradients():
    empty = torch.empty(0, 4, 16)
    keys, nothing = empty[:, :2].contiguous(), torch.empty((0, 2), dtype=torch.int64)
    tables = nothing, torch.zeros(1, dtype=torch.int64), nothing
    arguments = (empty, empty, keys, keys, empty, torch.empty(0, 4))
    gradients = ops.tree_attention_backward(*arguments, *tables, 1.0, "extension")
    assert [x.shape for x in gradients] == [(0, 4, 16), (0, 2, 16), (0, 2, 16)]


def test_torch_library():
    inputs, grad_THE = random_case(TREE)
    tables = ops.TreeTables.of(ops.Spans(*TREE), "extension", 2, CPU)
    results = attention_and_lse(*inputs, tables, 0.25)
    torch.library.opcheck(
        ops.tree_attention_backward, (grad_THE, *inputs, *results, *TREE, 0.25), {"backend": "extension"}
    )
