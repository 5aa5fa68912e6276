"""Buckets: a pass that is filled up says the same, and on a GPU a replayed graph has the bits of launched kernels."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.dense import dense_runner
from helpers.small_models import VOCAB, score, tiny_model

from gram_fast.models.dense.attention import PassTables, TableSizes, TreeAttention
from gram_fast.models.dense.graphs import BUCKETS, Bucket, most_tokens
from gram_fast.models.dense.model import DenseShape
from gram_fast.models.dense.runner import DenseRunner
from gram_fast.ops import Spans
from gram_fast.ops.tables import Window
from gram_fast.scoring.engine import Engine
from gram_fast.scoring.key_values import KeyValueStore
from gram_fast.scoring.tree import TokenTree, TreePass, plan_round

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


def in_triton(tree_pass: TreePass, at_least: TableSizes, windows=(None, None)) -> PassTables:
    return TreeAttention("triton", "triton", group=2, scale=1.0, windows=windows).tables(tree_pass, CPU, at_least)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folder and configuration of a tiny model."""
    folder = tmp_path_factory.mktemp("tiny")
    model = tiny_model("qwen3")
    model.save_pretrained(folder)
    return folder, model.config


def forest(*lengths: int, budget: int = 4096) -> TreePass:
    """One pass: a root of `lengths[0]` tokens and a leaf of each other length behind it."""
    rng = np.random.default_rng(0)
    tree = TokenTree([1, 2])
    for length in lengths:
        tree.add_segment(rng.integers(0, VOCAB, length).astype(np.int32))
    leaves = tree.add_sequences(np.array([[0, other] for other in range(1, len(lengths))], np.int32), 1)
    (only,) = plan_round(tree, leaves, budget=budget, keep_limit=0, more_rounds=False).passes
    return only


def bucket_of(tree_pass: TreePass, most: int = BUCKETS[-1]) -> Bucket | None:
    return Bucket.of(tree_pass, 64, most)


# Shapes of Qwen3: hidden size, feed-forward width, query heads; of each 8 key/value heads of 128.
@pytest.mark.parametrize(
    ("sizes", "most", "sizes_of_passes"),
    [
        ((1024, 3072, 16), 1792, {100: 128, 1068: 1152, 1792: 1792, 1793: None}),
        ((2048, 6144, 16), 512, {100: 128, 400: 512, 513: None, 1068: None}),
        ((4096, 12288, 32), 128, {100: 128, 129: None, 1068: None}),
        ((5120, 25600, 64), 0, {1: None, 100: None}),
    ],
)
def test_a_larger_model_has_fewer_buckets(sizes, most, sizes_of_passes):
    hidden_size, intermediate_size, num_heads = sizes
    shape = DenseShape(hidden_size, intermediate_size, 36, num_heads, 8, 128, 151936, 1e-6)
    limit = most_tokens(shape)
    assert most <= limit < most + 128
    for num_tokens, size in sizes_of_passes.items():
        bucket = bucket_of(dataclasses.replace(TreePass.of_sequence(torch.arange(num_tokens)), budget=4096), limit)
        assert (bucket and bucket.num_tokens) == size


def test_the_smallest_bucket_that_fits():
    assert bucket_of(forest(20, 3, 4)).num_tokens == BUCKETS[0]
    exact = forest(100, BUCKETS[0] - 2 - 100)
    assert exact.num_tokens == BUCKETS[0]
    assert bucket_of(exact).num_tokens == BUCKETS[0]
    assert bucket_of(forest(100, BUCKETS[0] - 101)).num_tokens == BUCKETS[1]
    assert bucket_of(forest(BUCKETS[-1], 5)) is None
    # What fills a pass up must not lie on keys that were kept.
    assert bucket_of(forest(20, 3, 4, budget=BUCKETS[0] - 1)) is None
    assert bucket_of(forest(20, *range(1, 17))).num_leaves == 16
    assert bucket_of(forest(20, *range(1, 18))) is None


@pytest.mark.parametrize("lengths", [(20, 3, 4), (100, BUCKETS[0] - 102), (60, *range(1, 12))])
@pytest.mark.parametrize("windows", [(None, None), (Window(9), None), (None, Window(5))])
def test_a_filled_pass_says_the_same(lengths, windows, checkpoint):
    folder, config = checkpoint
    runner = dense_runner(folder, config, attention="triton")
    scale = runner.model.shape.head_dim**-0.5
    runner._attention = TreeAttention("triton", "triton", group=2, scale=scale, windows=windows)
    tree_pass = forest(*lengths)
    bucket = bucket_of(tree_pass)
    filled = bucket.fill(tree_pass)
    tables = in_triton(filled, bucket.tables, windows)
    assert bucket.holds(tables)
    assert filled.num_tokens == len(tables.input_ids_T) == bucket.num_tokens
    store = KeyValueStore()
    store.reserve(4096)
    plain = runner.forward(tree_pass, store)
    runner._rotation.grow(bucket.num_tokens)
    with torch.inference_mode():
        logits = runner.run(tables, store)
    assert logits.shape == (16, 2)
    torch.testing.assert_close(logits[: len(lengths) - 1], plain, atol=1e-5, rtol=0)


def test_more_of_anything_than_a_bucket_holds_is_seen():
    tree_pass = forest(20, 3, 4)
    bucket = bucket_of(tree_pass)
    assert bucket.holds(in_triton(bucket.fill(tree_pass), bucket.tables))
    # 600 ranges of one slot each, in front of the first span.
    spans_N2, range_offsets, ranges_R2 = tree_pass.spans
    spans = Spans(
        spans_N2,
        torch.cat([range_offsets[:1], range_offsets[1:] + 600]),
        torch.cat([torch.arange(1200, 2400, 2)[:, None] + torch.tensor([0, 1]), ranges_R2]),
    )
    many = dataclasses.replace(tree_pass, spans=spans)
    assert not bucket.holds(in_triton(bucket.fill(many), bucket.tables))


def on_gpu(checkpoint, dtype: torch.dtype = torch.bfloat16) -> DenseRunner:
    folder, config = checkpoint
    return dense_runner(folder, config, dtype, device="cuda")


def rounds(seed: int, count: int = 6) -> list[list[list[list[int]]]]:
    rng = np.random.default_rng(seed)
    parts = [rng.integers(0, VOCAB, n).tolist() for n in (30, 41, 17, 8, 29)]
    return [[[parts[a], parts[b]] for a, b in rng.integers(0, len(parts), (3, 2))] for _ in range(count)]


def captured(runner: DenseRunner) -> int:
    return sum(graph is not None for graph in runner._graphs._graphs.values())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_and_launched_are_equal_bit_for_bit(checkpoint, dtype):
    replaying, launching = on_gpu(checkpoint, dtype), on_gpu(checkpoint, dtype)
    engine, launching_engine = Engine(replaying, 512), Engine(launching, 512)
    for asked in rounds(1):
        launching._graphs._graphs.clear()
        expected = score(launching_engine, [9], [asked])[0]
        np.testing.assert_array_equal(score(engine, [9], [asked])[0], expected)
    assert captured(replaying) > 0
    assert captured(launching) == 0


@pytest.mark.parametrize("budget", [pytest.param(512, marks=pytest.mark.gpu)])
def test_graphs_are_captured_anew_when_the_store_moves(checkpoint, budget):
    """Engines that take turns, and one that comes when another is gone: its store may lie at the same place."""
    runner, asked = on_gpu(checkpoint), [rounds(1)[0]]
    score(Engine(runner, budget), [9], asked)
    found = []
    for engine in (Engine(runner, budget), Engine(runner, 4 * budget)) * 2:
        found += [score(engine, [9], asked)[0] for _ in range(4)][1:]  # the first call computes the head too
        assert captured(runner) > 0
    for _ in range(3):
        engine = Engine(runner, budget)
        found += [score(engine, [9], asked)[0] for _ in range(4)][1:]
        del engine
    for logits in found:
        np.testing.assert_array_equal(logits, found[0])


@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=pytest.mark.gpu)])
def test_no_pass_waits_for_the_gpu(checkpoint, dtype):
    runner = on_gpu(checkpoint, dtype)
    store = KeyValueStore()
    store.reserve(8192)
    passes = [forest(20, 3, 4), forest(1500, 700, 800, budget=8192)]
    for tree_pass in passes * 3:  # compiled, captured
        runner.forward(tree_pass, store)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for tree_pass in passes:
            runner.forward(tree_pass, store)
    finally:
        torch.cuda.set_sync_debug_mode("default")
