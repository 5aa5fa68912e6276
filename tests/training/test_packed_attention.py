"""Attention of training: what the backends for CUDA are told is what the extension computes."""

import numpy as np
import pytest
import torch
from helpers.attention import assert_as_exact_as_plain_gradients, random_inputs, tables_of_lengths
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import flex_attention

from gram_fast.kernels.tree_attention import tree_mask
from gram_fast.training import packed_attention as attention
from gram_fast.training.data.packing import sharing_beginnings

pytestmark = pytest.mark.usefixtures("one_thread")

FORESTS = {
    "tree": tables_of_lengths(
        [150, 3, 40, 2, 80], [[], [(0, 140)], [(0, 140), (150, 152)], [(0, 71), (71, 90)], [(0, 3)]]
    ),
    "spans": tables_of_lengths([7, 128, 130], [[]] * 3),
    "blocks": tables_of_lengths([256], [[]]),
    # Both orders of two pairs: prompts, texts that are read first and second, tails.
    "factored": tables_of_lengths(
        [190, 70, 40, 60, 130, 3, 3, 150, 20, 9],
        [
            [],
            [(0, 150)],
            [(0, 150)],
            [(0, 150)],
            [],
            [(0, 190), (250, 290)],
            [(0, 150), (190, 230), (290, 350)],
            [(350, 400)],
            [(350, 400)],
            [(350, 480), (640, 646)],
        ],
    ),
}


TEXT = st.lists(st.integers(0, 2), max_size=9)
SEQUENCE = st.lists(st.integers(0, 2), min_size=1, max_size=9)


def arrays(sequences):
    return [np.array(ids, np.int32) for ids in sequences]


@given(st.lists(SEQUENCE, max_size=9), st.lists(st.tuples(TEXT, TEXT, TEXT, SEQUENCE), max_size=4), st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_blocks_are_those_of_the_mask(sequences, factored, size):
    """Of trees, and of factored sequences."""
    assume(sequences or factored)
    spans = sharing_beginnings(arrays(sequences), list(map(arrays, factored))).spans
    length = spans.num_tokens
    mask_TT = tree_mask(*spans, length, length)
    unit_T, reads_UU = attention.units_read(spans)
    tokens = torch.arange(length)
    assert torch.equal((tokens <= tokens[:, None]) & reads_UU[unit_T[:, None], unit_T], mask_TT)
    blocks = -(-length // size)
    filled = torch.zeros(blocks * size, blocks * size, dtype=torch.bool)
    filled[:length, :length] = mask_TT
    read_BB = filled.view(blocks, size, blocks, size).sum((1, 3))
    partial_BB, full_BB = attention.blocks_read(unit_T, reads_UU, size)
    # Exactly those of which something is read, and whole ones but those of a single token.
    assert torch.equal(partial_BB | full_BB, read_BB > 0)
    assert not (partial_BB & full_BB).any()
    assert torch.equal(full_BB, (read_BB == size * size).tril(-1))


def test_flex_attention_is_given_the_forest_and_compiled_once():
    counter = CompileCounter()
    attend = torch.compile(flex_attention, dynamic=True, backend=counter)
    for tables in FORESTS.values():
        length = int(tables[0][-1, 1])
        inputs = random_inputs(length, length)
        packing = attention.Packing(*tables)
        expected = attention.packed_attention(*inputs, packing, 0.25)
        q_1HTE, k_1KTE, v_1KTE = (x.transpose(0, 1)[None] for x in inputs)
        ours = attend(q_1HTE, k_1KTE, v_1KTE, block_mask=packing.block_mask, scale=0.25, enable_gqa=True)
        # Sums of up to 275 products of numbers near 1 in float32.
        torch.testing.assert_close(ours[0].transpose(0, 1), expected, rtol=0, atol=1e-6)
        assert torch.equal(packing.block_mask.to_dense()[0, 0].bool(), blocks_of(tables, length))
    assert counter.frame_count == 1


def blocks_of(tables, length):
    """Blocks of 128 by 128 of which something is read."""
    blocks = -(-length // 128)
    filled = torch.zeros(blocks * 128, blocks * 128, dtype=torch.bool)
    filled[:length, :length] = tree_mask(*tables, length, length)
    return filled.view(blocks, 128, blocks, 128).any(3).any(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("forest", FORESTS)
def test_gradients_are_as_exact_as_plain_ones(forest, dtype):
    tables = FORESTS[forest]
    length = int(tables[0][-1, 1])
    inputs = random_inputs(length, length, dtype=dtype)
    leaves = [x.clone().requires_grad_() for x in inputs]
    out_THE = attention.packed_attention(*leaves, attention.Packing(*tables), 0.25)
    grad_THE = random_inputs(length, length, dtype=dtype, seed=1)[0]
    out_THE.backward(grad_THE)
    assert_as_exact_as_plain_gradients([x.grad for x in leaves], inputs, grad_THE, tables, 0.25)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("forest", FORESTS)
def test_cuda_has_the_gradients_of_the_cpu(forest, dtype):
    """In bfloat16 both round their weights and gradients, each in its own way."""
    tables = FORESTS[forest]
    length = int(tables[0][-1, 1])
    results = []
    for device in ("cpu", "cuda"):
        leaves = [x.to(device, dtype).requires_grad_() for x in random_inputs(length, length, (4, 2), 32)]
        packing = attention.Packing(*(table.to(device) for table in tables))
        out = attention.packed_attention(*leaves, packing, 0.25)
        out.backward(torch.ones_like(out) * torch.arange(32, device=device) / 32)
        results.append([out.detach().cpu(), *(x.grad.cpu() for x in leaves)])
    for ours, theirs in zip(*results, strict=True):
        scale = ours.abs().max().item()
        torch.testing.assert_close(theirs, ours, rtol=0, atol=scale * (5e-6 if dtype == torch.float32 else 2e-2))
