"""Bound ops are the public ops without checks and dispatch: the same bits from every backend."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.attention import FOREST, FOREST_SLOTS, FOREST_TOKENS, TREE, random_inputs
from helpers.ops import CPU, skip_what_cannot_run
from torch import Tensor

from gram_fast import ops
from gram_fast.ops import LeafTables, PathTables, Spans, TreeTables
from gram_fast.ops.tree_attention import attention_and_lse

pytestmark = pytest.mark.usefixtures("one_thread")

Results = Any
LEAF_ROWS = torch.tensor([4, 8, 17])


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


# One function for each op: (backend, dtype) -> results of the public and of the bound op, with what they wrote.


def tree_attention(backend: str, dtype: torch.dtype) -> tuple[Results, Results]:
    inputs, spans = random_inputs(FOREST_TOKENS, FOREST_SLOTS, dtype=dtype), Spans(*FOREST)
    tables = TreeTables.of(spans, backend, 2, CPU)
    bound = ops.bind("tree_attention", backend)(*inputs, tables, 0.3)
    return ops.tree_attention(*inputs, *spans, 0.3, backend), bound


def tree_attention_backward(backend: str, dtype: torch.dtype) -> tuple[Results, Results]:
    inputs, spans = random_inputs(196, 196, dtype=dtype), Spans(*TREE)
    grad_THE, tables = normal(196, 4, 16, dtype=dtype), TreeTables.of(spans, "extension", 2, CPU)
    results = attention_and_lse(*inputs, tables, 0.3)
    bound = ops.bind("tree_attention_backward", backend)(grad_THE, *inputs, *results, tables, 0.3)
    return ops.tree_attention_backward(grad_THE, *inputs, *results, *spans, 0.3, backend), bound


def leaf_attention(backend: str, dtype: torch.dtype) -> tuple[Results, Results]:
    inputs, spans = random_inputs(len(LEAF_ROWS), FOREST_SLOTS, dtype=dtype), Spans(*FOREST)
    tables = LeafTables.of(spans, LEAF_ROWS, backend, CPU)
    bound = ops.bind("leaf_attention", backend)(*inputs, tables, 0.3)
    return ops.leaf_attention(*inputs, *spans, LEAF_ROWS, 0.3, backend), bound


def path_attention(backend: str, dtype: torch.dtype) -> tuple[Results, Results]:
    inputs, spans = random_inputs(FOREST_TOKENS, FOREST_SLOTS, dtype=dtype), Spans(*FOREST)
    bound = ops.bind("path_attention", backend)(*inputs, PathTables.of(spans, 2, CPU), 0.3)
    return ops.path_attention(*inputs, *spans, 0.3, backend=backend), bound


def plain(op: str, *arguments: Any) -> Callable[[str], tuple[Results, Results]]:
    """An op whose bound function takes the arguments of the public one."""

    def run(backend: str) -> tuple[Results, Results]:
        def copies() -> list[Any]:
            return [x.clone() if isinstance(x, Tensor) else x for x in arguments]

        public, bound = copies(), copies()
        results = getattr(ops, op)(*public, backend=backend), ops.bind(op, backend)(*bound)
        return (results[0], public), (results[1], bound)

    return run


def merge_states(backend: str, dtype: torch.dtype) -> tuple[Results, Results]:
    states = normal(5, 3, 8), normal(5, 3), normal(5, 3, 8, dtype=dtype), normal(5, 3) + 1
    return plain("merge_states", *states)(backend)


def label_logits(backend: str, dtype: torch.dtype) -> tuple[Results, Results]:
    hidden_TD, weight_2D, norm_D = normal(5, 12, dtype=dtype), normal(2, 12, dtype=dtype), normal(12, dtype=dtype)
    return plain("label_logits", hidden_TD, torch.tensor([4, 0]), weight_2D, norm_D, 1e-5)(backend)


def add_rms_norm(backend: str, dtype: torch.dtype) -> tuple[Results, Results]:
    residual_TD, x_TD, weight_D = normal(5, 12, dtype=dtype), normal(5, 12, dtype=dtype) + 1, normal(12, dtype=dtype)
    return plain("add_rms_norm", residual_TD, x_TD, weight_D, 1e-5)(backend)


def rotary_into_cache(backend: str, dtype: torch.dtype) -> tuple[Results, Results]:
    qkv_TCE, k_SKE, v_SKE = normal(5, 8, 6, dtype=dtype), *(torch.zeros(7, 2, 6, dtype=dtype) for _ in range(2))
    norm_E, eps, num_heads = normal(6, dtype=dtype), 1e-5, 4
    rotation = normal(5, 3).cos(), normal(5, 3).sin()
    return plain("rotary_into_cache", qkv_TCE, *rotation, k_SKE, v_SKE, norm_E, None, eps, num_heads)(backend)


def swiglu(backend: str, dtype: torch.dtype) -> tuple[Results, Results]:
    return plain("swiglu", normal(5, 14, dtype=dtype))(backend)


def invariant_linear(backend: str, dtype: torch.dtype) -> tuple[Results, Results]:
    return plain("invariant_linear", normal(131, 12, dtype=dtype), normal(7, 12, dtype=dtype), normal(7, dtype=dtype))(
        backend
    )


def split_linear(backend: str, dtype: torch.dtype) -> tuple[Results, Results]:
    return plain("split_linear", normal(131, 12), normal(7, 12), normal(7))(backend)


def quantize_rows(backend: str, dtype: torch.dtype) -> tuple[Results, Results]:
    return plain("quantize_rows", normal(5, 12, dtype=dtype))(backend)


def add_rms_norm_fp8(backend: str, dtype: torch.dtype) -> tuple[Results, Results]:
    residual_TD, x_TD, weight_D = normal(5, 12, dtype=dtype), normal(5, 12, dtype=dtype) + 1, normal(12, dtype=dtype)
    return plain("add_rms_norm_fp8", residual_TD, x_TD, weight_D, 1e-5)(backend)


def swiglu_fp8(backend: str, dtype: torch.dtype) -> tuple[Results, Results]:
    return plain("swiglu_fp8", normal(5, 14, dtype=dtype))(backend)


CASES = {name: globals()[name] for name in ops.BACKENDS}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("op", "backend"), [(op, backend) for op, names in ops.BACKENDS.items() for backend in names])
def test_a_bound_op_has_the_bits_of_the_public_one(op: str, backend: str, dtype: torch.dtype) -> None:
    skip_what_cannot_run(op, backend, "cpu", dtype)
    public, bound = CASES[op](backend, dtype)
    torch.testing.assert_close(bound, public, rtol=0, atol=0)


@pytest.mark.parametrize("op", ["tree_attention", "leaf_attention", "path_attention"])
def test_what_bound_attention_gives_is_contiguous(op: str) -> None:
    for backend in ops.BACKENDS[op]:
        _, bound = CASES[op](backend, torch.float32)
        assert bound.is_contiguous()


def test_backends_are_public() -> None:
    assert list(ops.BACKENDS.items()) == [
        ("tree_attention", ("reference", "cascade", "triton", "extension")),
        ("tree_attention_backward", ("reference", "extension")),
        ("leaf_attention", ("reference", "extension", "triton")),
        ("path_attention", ("reference", "triton", "extension")),
        ("merge_states", ("reference", "triton", "extension")),
        ("label_logits", ("reference", "triton", "extension")),
        ("add_rms_norm", ("reference", "triton", "extension")),
        ("rotary_into_cache", ("reference", "triton", "extension")),
        ("swiglu", ("reference", "triton", "extension")),
        ("invariant_linear", ("reference", "triton")),
        ("split_linear", ("reference", "extension")),
        ("quantize_rows", ("reference", "triton")),
        ("add_rms_norm_fp8", ("reference", "triton")),
        ("swiglu_fp8", ("reference", "triton")),
    ]


def test_backends_of_a_device_or_of_narrow_heads() -> None:
    cuda = torch.device("cuda")
    assert "on the CPU alone" in ops.backend_problem("swiglu", "extension", cuda, torch.float16)
    assert ops.backend_problem("swiglu", "extension", CPU, torch.float16) is None
    # The CUDA kernel of leaf attention ends at 256 columns: bound, it has no check of its own.
    assert "up to 256 columns, got 264" in ops.backend_problem("leaf_attention", "extension", cuda, torch.float16, 264)
    assert ops.resolve_backend("leaf_attention", "auto", CPU, torch.float32, 264) == "reference"
    assert ops.resolve_backend("leaf_attention", "auto", CPU, torch.float32, 256) == "extension"
