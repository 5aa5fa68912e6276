"""A factored verdict is that of a plain forward with a dense mask, whatever the other verdicts, passes and rounds."""

import copy

import numpy as np
import pytest
from helpers.attention import BACKENDS_HERE
from helpers.dense import dense_runner, save_in_shards
from helpers.factored import plain_factored
from helpers.small_models import CONFIGS, LABELS, VOCAB, tiny_model, tiny_runner
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.models.dense.weights import FAMILIES
from gram_fast.models.transformers_runner import TransformersRunner
from gram_fast.scoring.engine import Engine
from gram_fast.scoring.tree import TokenTree, plan_round
from gram_fast.text.encoded import EncodedRound

pytestmark = pytest.mark.usefixtures("one_thread")

RUNNERS = {name: tiny_runner(name) for name in CONFIGS}
MODELS = {name: tiny_model(name) for name in CONFIGS}

few_tokens = st.lists(st.integers(3, 5), max_size=7)
texts = few_tokens | st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20)


@st.composite
def verdicts(draw):
    """A head, segments, and rounds of verdicts: numbers of the prompt, the first and the second text, and the tail."""
    head = draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5))
    pool = draw(st.lists(texts, min_size=1, max_size=5))
    tails = draw(st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6), min_size=1, max_size=2))
    of_pool = st.integers(0, len(pool) - 1)
    verdict = st.tuples(of_pool, of_pool, of_pool, st.integers(len(pool), len(pool) + len(tails) - 1))
    return head, [*pool, *tails], draw(st.lists(st.lists(verdict, min_size=1, max_size=6), min_size=1, max_size=3))


def ask(engine, head, segments, rounds):
    """Label logits of rounds of verdicts, in one request."""
    with engine.request(np.array(head, np.int32), is_factored=True) as request:
        found = []
        for number, asked in enumerate(rounds):
            new = [] if number else [np.array(ids, np.int32) for ids in segments]
            request.add(EncodedRound(new, np.array(asked, np.int32), 3, is_factored=True))
            found.append(request.score(more_rounds=number + 1 < len(rounds)))
        return found, request.stats(0.0)


@pytest.mark.parametrize("name", RUNNERS)
@settings(max_examples=15, deadline=None)
@given(given_verdicts=verdicts(), budget=st.sampled_from([6, 7, 33, 500]), keep=st.sampled_from([1, 40, 1000]))
def test_verdicts_are_those_of_a_plain_forward_with_a_dense_mask(name, given_verdicts, budget, keep):
    head, segments, rounds = given_verdicts
    engine = Engine(RUNNERS[name], max_batch_tokens=budget)
    engine.keep_limit = keep
    ours, _ = ask(engine, head, segments, rounds)
    model = copy.deepcopy(MODELS[name])
    for logits, asked in zip(ours, rounds, strict=True):
        expected = [
            plain_factored(model, (head + segments[p], segments[a], segments[b], segments[t])) for p, a, b, t in asked
        ]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def random_verdicts(seed, count):
    """Segments and that many verdicts of them, of lengths around those of tiles and blocks."""
    rng = np.random.default_rng(seed)
    segments = [rng.integers(0, VOCAB, n).tolist() for n in (64, 9, 130, 1, 33, 70, 12, 5)]
    chosen = [(int(rng.integers(2)), *rng.integers(0, 6, 2).tolist(), int(rng.integers(6, 8))) for _ in range(count)]
    return segments, list(dict.fromkeys(chosen))


@pytest.mark.parametrize("attention", BACKENDS_HERE)
def test_attention_backends_agree(attention):
    model = tiny_model("qwen3")
    segments, asked = random_verdicts(0, 6)
    engine = Engine(TransformersRunner(model, LABELS, attention), max_batch_tokens=300)
    [ours], _ = ask(engine, [9, 9], segments, [asked])
    expected = [
        plain_factored(model, ([9, 9, *segments[p]], segments[a], segments[b], segments[t])) for p, a, b, t in asked
    ]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("deterministic", [False, True])
def test_the_dense_runner_agrees(family, deterministic, tmp_path):
    model = save_in_shards(tmp_path, family)
    segments, asked = random_verdicts(1, 30)
    runner = dense_runner(tmp_path, model.config, deterministic=deterministic)
    found = []
    for budget, order in ((500, 1), (40, -1)):
        [ours], _ = ask(Engine(runner, budget), [9, 9], segments, [asked[::order]])
        found.append(ours[::order])
    few = [
        plain_factored(model, ([9, 9, *segments[p]], segments[a], segments[b], segments[t])) for p, a, b, t in asked[:6]
    ]
    np.testing.assert_allclose(found[0][:6], few, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=0 if deterministic else 1e-4)
    if deterministic:
        alone = [ask(Engine(runner, 200), [9, 9], segments, [[verdict]])[0][0][0] for verdict in asked[:5]]
        assert [row.tobytes() for row in alone] == [row.tobytes() for row in found[0][:5]]


def test_bfloat16_is_no_further_from_float32_than_the_plain_forward():
    errors = []
    for seed in range(3):
        model = tiny_model("qwen3", seed, num_hidden_layers=4).bfloat16()
        exact = copy.deepcopy(model).float()
        segments, asked = random_verdicts(seed, 25)
        [ours], _ = ask(Engine(TransformersRunner(model, LABELS, "auto"), 128), [9, 9], segments, [asked])
        parts = [([9, 9, *segments[p]], segments[a], segments[b], segments[t]) for p, a, b, t in asked]
        plain, truth = (np.array([plain_factored(of, part) for part in parts]) for of in (model, exact))
        errors.append((np.abs(ours - truth), np.abs(plain - truth)))
    ours, plains = (np.concatenate(part) for part in zip(*errors, strict=True))
    assert ours.max() <= 1.5 * plains.max()
    assert ours.mean() <= 1.5 * plains.mean()


def test_every_encoding_is_computed_once_and_every_verdict_costs_its_tail():
    rng = np.random.default_rng(0)
    segments = [rng.integers(0, VOCAB, n).tolist() for n in (20, *[30] * 8, 5)]
    asked = [(0, a, b, 9) for a in range(1, 9) for b in range(1, 9) if a != b]
    _, stats = ask(Engine(RUNNERS["qwen3"], 64), [1, 2], segments, [asked[:20], asked[20:]])
    assert stats.tokens_computed == stats.tokens_tree == 2 + 20 + 2 * 8 * 30 + len(asked) * 5
    assert stats.tokens_unshared == len(asked) * (2 + 20 + 60 + 5)


def test_what_cannot_be_planned_is_refused():
    tree = TokenTree([1])
    numbers = [tree.add_segment(ids) for ids in ([2], [3], [4], [])]
    with pytest.raises(ValueError, match="a verdict needs two paths and a tail, got 2"):
        tree.add_verdicts([numbers[:2]])
    with pytest.raises(ValueError, match="at least one token behind its paths"):
        tree.add_verdicts([numbers])
    leaves = tree.add_verdicts([[0, 1, 2]])
    assert tree.leaf_lengths(leaves).tolist() == [4]
    with pytest.raises(ValueError, match="expected no verdict of a model with states"):
        plan_round(tree, leaves, budget=8, keep_limit=0, more_rounds=False, state_cost=1)
    long = tree.add_verdicts([[0, 1, tree.add_segment([5] * 9)]])
    with pytest.raises(ValueError, match="budget: expected at least the 9 tokens of a verdict, got 8"):
        plan_round(tree, long, budget=8, keep_limit=0, more_rounds=False)
    with pytest.raises(ValueError, match="expected verdicts"):
        tree.verdicts_of_plan(tree.add_sequences([[0]], 0), slots=9, tokens=9)


def test_paths_that_were_beginnings_of_sequences_end_where_they_end():
    tree = TokenTree([])
    a, b, c, d = (tree.add_segment([token]) for token in (1, 2, 3, 4))
    tree.add_sequences([[a, b, c]], 0)
    [packed] = plan_round(tree, tree.add_verdicts([[a, b, c, d]]), budget=9, keep_limit=0, more_rounds=False).passes
    assert packed.input_ids.tolist() == [1, 2, 3, 4]
    assert packed.position_ids.tolist() == [0, 1, 1, 2]
