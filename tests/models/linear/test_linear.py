"""Decoders with recurrent layers and short convolutions: the tree's label logits are those of the plain forward."""

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from accelerate.hooks import ModelHook, add_hook_to_module
from helpers.forests import forests
from helpers.small_models import LABELS, LINEAR_CONFIGS, VOCAB, plain, score, tiny_model, tiny_runner
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.errors import UnsupportedModelError
from gram_fast.models import transformers_runner
from gram_fast.models.linear import mixers, scan
from gram_fast.models.linear.mixers import find_mixers
from gram_fast.models.linear.pieces import Pieces, padded_lengths
from gram_fast.models.transformers_runner import TransformersRunner
from gram_fast.scoring.engine import Engine
from gram_fast.text.encoded import EncodedRound

pytestmark = pytest.mark.usefixtures("one_thread")

RUNNERS = {name: tiny_runner(name) for name in LINEAR_CONFIGS}
# One of each kind is tried on more trees than the others.
KINDS = ("qwen3_next", "qwen3_5", "granitemoehybrid", "lfm2")


def check_forests(name: str, examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(forest=forests(), budget=st.sampled_from([1, 3, 7, 33, 500]), reusable=st.integers(0, 6))
    def check(forest, budget, reusable):
        head, rounds = forest
        ours = score(Engine(RUNNERS[name], max_batch_tokens=budget), head, rounds, reusable)
        for logits, sequences in zip(ours, rounds, strict=True):
            expected = plain(RUNNERS[name], head, sequences)
            if (difference := np.abs(logits - expected).max()) > 1e-4:
                assert difference <= rounding(name, head, sequences, expected)

    check()


def rounding(name, head, sequences, expected) -> float:
    """How far the plain forward itself moves where the last bit of every weight is another.

    Of a token that comes fifteen times, Qwen3-Next's logits move by 4e-4; transformers' own decoding, a token at a
    time, is 2e-4 from its plain forward, and 3e-6 from ours.
    """
    moved = []
    for seed in range(4):
        runner, generator = tiny_runner(name), torch.Generator().manual_seed(seed)
        for weight in runner.model.parameters():
            weight.mul_(1 + 2**-24 * torch.randn(weight.shape, generator=generator))
        moved.append(np.abs(plain(runner, head, sequences) - expected).max())
    return max(moved)


@pytest.mark.parametrize("name", LINEAR_CONFIGS)
def test_float32_logits_equal_the_plain_forward(name):
    check_forests(name, 12 if name in KINDS else 3)


def test_what_rounding_explains_is_far_from_what_wrong_states_do():
    sequences = [[[3, 3, 3, 3, 3, 3, 4], [0] * 15 + [41, 0], [81, 82, 39]]]
    expected = plain(RUNNERS["qwen3_next"], [], sequences)
    (decoded,) = score(Engine(RUNNERS["qwen3_next"], max_batch_tokens=1), [], [sequences])
    assert np.abs(decoded - expected).max() <= rounding("qwen3_next", [], sequences, expected) < 2e-3
    without = plain(RUNNERS["qwen3_next"], [], [sequences[0][1:]])
    assert np.abs(without - expected).max() > 0.05


@pytest.mark.parametrize("name", ["qwen3_5", "lfm2"])
def test_two_judges_of_one_model_take_turns(name):
    model = tiny_model(name)
    sequences = [[[number, *range(3, 40)], [7, number]] for number in range(6)]
    expected = plain(TransformersRunner(model, LABELS, "auto"), [8, 9], sequences)
    runners = [TransformersRunner(model, LABELS, "auto") for _ in range(2)]

    def ask(runner):
        return [score(Engine(runner, max_batch_tokens=50), [8, 9], [sequences])[0] for _ in range(6)]

    with ThreadPoolExecutor(2) as pool:
        for logits in [each for found in pool.map(ask, runners) for each in found]:
            np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_mixer_may_have_hooks():
    model = tiny_model("lfm2")
    handle = find_mixers(model)[0].register_forward_hook(lambda _, inputs, out: float(out.abs().max()) and None)
    assert TransformersRunner(model, LABELS, "auto").bytes_per_state == RUNNERS["lfm2"].bytes_per_state
    handle.remove()


@pytest.mark.parametrize("name", LINEAR_CONFIGS)
def test_long_pieces_equal_the_plain_forward(name):
    """Pieces of several chunks, shorter than a convolution's kernel, and passes that cut them."""
    rng = np.random.default_rng(0)
    pieces = [rng.integers(0, VOCAB, length).tolist() for length in (1, 70, 2, 150)]
    rounds = [[[a, b, [3, 4]] for a in pieces for b in pieces], [[a, [5], b] for a in pieces for b in pieces[:2]]]
    for budget in (40, 1000):
        ours = score(Engine(RUNNERS[name], max_batch_tokens=budget), [1, 2], rounds, 2)
        for logits, sequences in zip(ours, rounds, strict=True):
            np.testing.assert_allclose(logits, plain(RUNNERS[name], [1, 2], sequences), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", LINEAR_CONFIGS)
def test_the_logits_are_large_enough_to_tell_wrong_states(name, monkeypatch):
    def apart(table):
        table = table.copy()
        table[:, 2], table[:, 3:5] = 0, -1
        return Pieces(table)

    rounds = [[[[3, 4, 5, 6] * 5, [k] * 3, [9]] for k in range(4)]]
    right = score(Engine(RUNNERS[name]), [], rounds)[0]
    monkeypatch.setattr(transformers_runner, "Pieces", apart)
    wrong = score(Engine(RUNNERS[name]), [], rounds)[0]
    assert np.abs(right - wrong).max() > 5e-3


@pytest.mark.parametrize("name", KINDS)
def test_bfloat16_is_no_further_from_float32_than_the_plain_forward(name):
    rounded = TransformersRunner(copy.deepcopy(RUNNERS[name].model).bfloat16(), LABELS, "auto")
    exact = TransformersRunner(copy.deepcopy(rounded.model).float(), LABELS, "auto")
    rng = np.random.default_rng(0)
    sequences = [[rng.integers(0, VOCAB, n).tolist() for n in rng.integers(1, 60, 3)] for _ in range(30)]
    (ours,) = score(Engine(rounded, max_batch_tokens=64), [1, 2, 3], [sequences])
    truth = plain(exact, [1, 2, 3], sequences)
    plain_error = np.abs(plain(rounded, [1, 2, 3], sequences) - truth)
    our_error = np.abs(ours - truth)
    assert our_error.max() <= 1.5 * plain_error.max()
    assert our_error.mean() <= 1.5 * plain_error.mean()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("budget", [7, 500])
def test_what_is_kept_is_computed_once(name, budget):
    engine = Engine(RUNNERS[name], max_batch_tokens=budget)
    pieces = [np.array(ids, np.int32) for ids in ([3, 3, 3], [4, 5, 4, 5], [6])]
    b_pieces = [np.array([10 + n, *ids], np.int32) for n, ids in enumerate(pieces)]
    with engine.request(np.array([1, 2], np.int32)) as request:
        for shift in range(3):
            segments = [*pieces, *b_pieces] if shift == 0 else []
            rows = np.array([[i, 3 + (i + shift) % 3] for i in range(3)], np.int32)
            request.add(EncodedRound(segments, rows, 1))
            request.score(more_rounds=shift < 2)
    assert request.stats(0.0).tokens_computed == 2 + 8 + 3 * 11


@pytest.mark.parametrize("name", KINDS)
def test_states_count_as_slots(name):
    runner = RUNNERS[name]
    engine, store = Engine(runner), None
    score(engine, [1, 2], [[[[3, 4], [5]], [[6, 4], [5]]], [[[3, 4], [7]]]], reusable=1)
    store = engine._store.states
    assert store.bytes_per_state == runner.bytes_per_state > 0
    assert store.num_states == 3
    engine._store.release()
    assert store.num_states == store.bytes_per_state == 0


@pytest.mark.parametrize("name", KINDS)
def test_mixers_are_left_as_they_were_found(name, monkeypatch):
    runner = tiny_runner(name)
    found = find_mixers(runner.model)
    hooked = found[-1]
    add_hook_to_module(hooked, ModelHook())
    before = [dict(vars(module)) for module in found]
    rounds = [[[[1, 2, 3], [4]], [[1, 2, 3], [5]]]]
    (ours,) = score(Engine(runner), [], rounds)
    np.testing.assert_allclose(ours, plain(runner, [], rounds[0]), rtol=0, atol=1e-4)
    assert [dict(vars(module)) for module in found] == before

    def failing(*_, **__):
        raise RuntimeError("a layer fails")

    monkeypatch.setattr(found[1], "forward", failing)
    before = [dict(vars(module)) for module in found]
    monkeypatch.setattr(runner.model.base_model.norm if name != "lfm2" else runner.model.base_model, "forward", failing)
    with pytest.raises(RuntimeError, match="a layer fails"):
        score(Engine(runner), [], rounds)
    assert [dict(vars(module)) for module in found] == before


def test_packed_pieces_start_from_their_states(monkeypatch):
    """A stand-in for flash-linear-attention's form, which takes sequences one behind the other."""
    calls = []

    def packed(reference, query, key, value, *, g, beta, initial_state, cu_seqlens, **options):
        bounds = cu_seqlens.tolist()
        calls.append(len(bounds) - 1)
        assert len(initial_state) == len(bounds) - 1
        assert all(x.shape[:2] == (1, bounds[-1]) for x in (query, key, value, g, beta))
        outs, states = [], []
        for number, (start, end) in enumerate(pairwise(bounds)):
            its = [x[:, start:end] for x in (query, key, value)]
            out, state = reference(
                *its, g=g[:, start:end], beta=beta[:, start:end], initial_state=initial_state[number, None], **options
            )
            outs.append(out)
            states.append(state)
        return torch.cat(outs, dim=1), torch.cat(states)

    ours = scan.gated_delta_rule

    def with_packed(mixing, function, *args, **options):
        return ours(mixing, partial(packed, function), *args, **options)

    monkeypatch.setattr(scan, "_delta_chunks", lambda *_: (scan._ANY_LENGTH, scan._ANY_LENGTH))
    monkeypatch.setitem(mixers._OURS, "torch_chunk_gated_delta_rule", with_packed)
    runner, rounds = tiny_runner("qwen3_5"), [[[[1, 2, 3], [k, 4], [n]] for k in range(3) for n in range(3)]]
    calls.clear()
    (logits,) = score(Engine(runner, max_batch_tokens=100), [8, 9], rounds)
    np.testing.assert_allclose(logits, plain(runner, [8, 9], rounds[0]), rtol=0, atol=1e-4)
    assert calls == [1, 1, 3, 9] * 3


def test_lengths_are_padded_to_few():
    lengths = np.array([1, 8, 9, 16, 31, 32, 33, 64, 65])
    assert padded_lengths(lengths, 8, 32).tolist() == [8, 8, 16, 16, 32, 32, 64, 64, 96]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            transformers.JambaConfig(
                vocab_size=VOCAB, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1, num_experts=2, pad_token_id=None,
            ),
            "JambaMambaMixer cannot be scored by prefix sharing: it mixes tokens by .*mamba_selective_scan",
        ),
        (
            transformers.GraniteMoeHybridConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2,
                num_attention_heads=4, mamba_n_heads=4, mamba_d_head=16, num_local_experts=0),
            "no attention",
        ),
    ],
)  # fmt: skip
def test_other_mixers_are_refused(config, reason):
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UnsupportedModelError, match=reason):
        TransformersRunner(model, LABELS, "auto")


def test_layers_whose_mixer_is_unknown_are_refused():
    model = tiny_model("lfm2")
    model.config.layer_types = ["conv", "conv", "full_attention", "conv"]
    model.model.layers[0].conv = torch.nn.Linear(32, 32)
    with pytest.raises(UnsupportedModelError, match="2 of its 3 layers that are no attention mix"):
        TransformersRunner(model, LABELS, "auto")
