"""The levels of the cascade on CUDA, with a stand-in for its kernel where there is no GPU."""

import functools

import numpy as np
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
    on_each_forest,
    passes_of,
    plain_varlen,
    poisoned,
    random_inputs,
    rounds,
    span_tables,
)
from helpers.ops import CPU, on_each_dtype
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from gram_fast import ops
from gram_fast.errors import BackendError
from gram_fast.extension import _C
from gram_fast.kernels import tree_attention_cascade as cascade

pytestmark = pytest.mark.usefixtures("one_thread")

MERGE = functools.partial(ops.merge_states, backend="extension")


def varlen_without_cuda(
    q_THE: Tensor, k_SKE: Tensor, v_SKE: Tensor, problems: cascade.VarlenProblems, scale: float, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """The cascade's varlen_attention, one problem after the other."""
    lengths_q, lengths_k = ([end - start for start, end in ranges] for ranges in (problems.queries, problems.keys))
    for lengths, offsets in ((lengths_q, problems.query_offsets), (lengths_k, problems.key_offsets)):
        assert offsets.tolist() == np.cumsum([0, *lengths]).tolist()
    return plain_varlen(q_THE, k_SKE, v_SKE, lengths_q, lengths_k, scale, is_causal)


def attend_like_cuda(inputs: Inputs, tables: Tables, scale: float, sinks_H: Tensor | None = None) -> Tensor:
    made = cascade.cascade_tables(*tables, CPU)
    own = cascade.VarlenProblems.of(made.spans, made.spans, CPU)
    blocks = _C.attention_blocks(*(table.numpy() for table in tables)).tolist()
    on_cuda = cascade.CudaCascade(own, cascade.varlen_ranks(blocks, CPU))
    return cascade.cascade_attention(*inputs, on_cuda, scale, MERGE, sinks_H)


@on_each_dtype
@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (4, 1)])
@on_each_forest
def test_levels_of_the_cuda_cascade_without_cuda(
    monkeypatch: pytest.MonkeyPatch, tables: Tables, heads: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(cascade, "varlen_attention", varlen_without_cuda)
    q_THE, k_SKE, v_SKE = inputs = random_inputs(FOREST_TOKENS, FOREST_SLOTS, heads, 24, dtype)
    k_SKE, v_SKE = (poisoned(tensor, tables, len(q_THE)) for tensor in (k_SKE, v_SKE))
    out_THE = attend_like_cuda((q_THE, k_SKE, v_SKE), tables, 0.25)
    assert_as_exact_as_plain(out_THE, inputs, tables, 0.25)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds())
def test_levels_of_the_cuda_cascade_on_random_trees(made: Rounds) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cascade, "varlen_attention", varlen_without_cuda)
        for tree_pass, num_slots in passes_of(made):
            inputs, tables = random_inputs(tree_pass.num_tokens, num_slots), span_tables(tree_pass)
            assert_as_exact_as_plain(attend_like_cuda(inputs, tables, 0.25), inputs, tables, 0.25)


def test_tables_for_cuda_are_copied_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """From pageable memory a copy waits for all that the stream still has to do: every one goes by `uploaded`."""
    copied: list[Tensor] = []

    def on_cuda(tensor: Tensor, device: torch.device) -> Tensor:
        assert device.type == "cuda"
        copied.append(tensor)
        return tensor

    monkeypatch.setattr(cascade, "uploaded", on_cuda)
    tables = cascade.cascade_tables(*FOREST, torch.device("cuda"))
    assert isinstance(tables, cascade.CudaCascade)
    made = [tables.own.query_offsets, tables.own.key_offsets]
    for rows, slots, problems in tables.ranks:
        made += [rows, slots, problems.query_offsets, problems.key_offsets]
    assert [id(tensor) for tensor in made] == [id(tensor) for tensor in copied]
    assert {tensor.dtype for tensor in made[:2]} == {torch.int32}


@on_each_dtype
@pytest.mark.parametrize("sink", [-1e4, -2.0, 3.0, 1e4])
@on_each_forest
def test_sinks_of_the_cuda_cascade_without_cuda(
    monkeypatch: pytest.MonkeyPatch, tables: Tables, sink: float, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(cascade, "varlen_attention", varlen_without_cuda)
    inputs = random_inputs(FOREST_TOKENS, FOREST_SLOTS, (4, 2), 24, dtype)
    sinks_H = sink + torch.arange(4.0)
    out_THE = attend_like_cuda(inputs, tables, 0.25, sinks_H)
    assert_as_exact_as_plain(out_THE, inputs, tables, 0.25, Softmax(sinks_H=sinks_H))


def test_what_library_kernels_lack_is_said_and_where_it_is() -> None:
    spans, cuda = ops.Spans(*FOREST), torch.device("cuda")
    with pytest.raises(BackendError, match=r"'cascade' on CUDA takes no windows: choose 'triton'$"):
        ops.TreeTables.of(spans, "cascade", 2, cuda, window=ops.Window(3))
    inputs, tables = random_inputs(FOREST_TOKENS, FOREST_SLOTS), ops.TreeTables.of(spans, "cascade", 2, CPU)
    with pytest.raises(BackendError, match=r"'cascade' caps no scores: choose 'extension'$"):
        ops.bind("tree_attention", "cascade")(*inputs, tables, 0.25, softcap=1.0)
    with pytest.raises(BackendError, match=r"'cascade' caps no scores: choose 'extension'$"):
        ops.tree_attention(*inputs, *FOREST, 0.25, "cascade", softcap=1.0)
    with pytest.raises(BackendError, match=r"'cascade' caps no scores: choose 'triton'$"):
        ops.resolve_backend("tree_attention", "cascade", cuda, torch.bfloat16, is_capped=True)


@pytest.mark.gpu
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
    on_cpu, on_cuda = (cascade.VarlenProblems.of(queries, keys, torch.device(name)) for name in ("cpu", "cuda"))
    out, lse = cascade.varlen_attention(q_THE.cuda(), k_SKE.cuda(), v_SKE.cuda(), on_cuda, 0.125, is_causal)
    exact, exact_lse = varlen_without_cuda(q_THE.float(), k_SKE.float(), v_SKE.float(), on_cpu, 0.125, is_causal)
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
