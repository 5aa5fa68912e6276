"""The engine's label logits are those of the model's plain forward, whatever the tree, the passes and the rounds."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from helpers.small_models import CONFIGS, LABELS, VOCAB, plain, score, tiny_model, tiny_runner
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.errors import BackendError, UnsupportedModelError
from gram_fast.models.supported import attention_span
from gram_fast.models.transformers_runner import TransformersRunner
from gram_fast.scoring.engine import Engine

pytestmark = pytest.mark.usefixtures("one_thread")

RUNNERS = {name: tiny_runner(name) for name in CONFIGS}

# Few distinct tokens, so that segments share prefixes and are prefixes of each other.
few_tokens = st.lists(st.integers(3, 5), max_size=7)
any_tokens = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20)
segments = few_tokens | any_tokens


@st.composite
def forests(draw: st.DrawFn) -> tuple[list[int], list[list[list[list[int]]]]]:
    """A head and rounds of sequences of 1 to 6 segments from a small pool."""
    head = draw(few_tokens)
    pool = draw(st.lists(segments, min_size=1, max_size=5))
    last = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9)
    depth = draw(st.integers(0, 5))
    sequence = st.tuples(st.lists(st.sampled_from(pool), min_size=depth, max_size=depth), last).map(
        lambda parts: [*parts[0], parts[1]]
    )
    return head, draw(st.lists(st.lists(sequence, min_size=1, max_size=6), min_size=1, max_size=3))


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=15, deadline=None)
@given(forest=forests(), budget=st.sampled_from([1, 3, 7, 33, 500]), reusable=st.integers(0, 6))
def test_float32_logits_equal_the_plain_forward(name, forest, budget, reusable):
    head, rounds = forest
    runner = RUNNERS[name]
    ours = score(Engine(runner, max_batch_tokens=budget), head, rounds, reusable)
    for logits, sequences in zip(ours, rounds, strict=True):
        np.testing.assert_allclose(logits, plain(runner, head, sequences), rtol=0, atol=1e-4)


def test_the_logits_are_large_enough_to_tell_wrong_attention():
    for runner in RUNNERS.values():
        ids = list(range(3, 40))
        full, cut = plain(runner, [], [[ids], [ids[1:]]])
        assert np.abs(full - cut).max() > 0.01


@pytest.mark.parametrize(
    "attention",
    [
        "reference",
        "cascade",
        "extension",
        pytest.param("triton", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="needs the interpreter")),
    ],
)
def test_attention_backends_agree(attention):
    runner = TransformersRunner(tiny_model("qwen3"), LABELS, attention)
    rounds = [[[[1, 2, 3], [4, 5], [6]], [[1, 2, 3], [4, 9], [6, 8]], [[1, 2], [3], [6]]]]
    (ours,) = score(Engine(runner, max_batch_tokens=5), [9, 9], rounds)
    np.testing.assert_allclose(ours, plain(runner, [9, 9], rounds[0]), rtol=0, atol=1e-4)


def test_bfloat16_is_no_further_from_float32_than_the_plain_forward():
    exact_model = tiny_model("qwen3", num_hidden_layers=4)
    rounded = TransformersRunner(copy.deepcopy(exact_model).bfloat16(), LABELS, "auto")
    # The float32 answer of the same (rounded) weights: what is compared is the computation's error.
    exact = TransformersRunner(copy.deepcopy(rounded.model).float(), LABELS, "auto")
    rng = np.random.default_rng(0)
    sequences = [[rng.integers(0, VOCAB, n).tolist() for n in rng.integers(1, 60, 3)] for _ in range(40)]
    (ours,) = score(Engine(rounded, max_batch_tokens=64), [1, 2, 3], [sequences])
    truth = plain(exact, [1, 2, 3], sequences)
    plain_error = np.abs(plain(rounded, [1, 2, 3], sequences) - truth)
    our_error = np.abs(ours - truth)
    assert our_error.max() <= 1.5 * plain_error.max()
    assert our_error.mean() <= 1.5 * plain_error.mean()


def test_the_output_embedding_is_never_multiplied(monkeypatch):
    runner = tiny_runner("qwen3")
    expected = plain(runner, [], [[[1, 2, 3]]])

    def multiplied(*_):
        raise AssertionError("vocabulary logits were computed")

    monkeypatch.setattr(runner.model.lm_head, "forward", multiplied)
    np.testing.assert_allclose(score(Engine(runner), [], [[[[1, 2, 3]]]])[0], expected, atol=1e-4)
    with pytest.raises(AssertionError, match="vocabulary logits"):
        runner.plain_logits(torch.tensor([1, 2, 3]))


def test_output_bias_is_added():
    runner = TransformersRunner(tiny_model("gpt_neox"), LABELS, "auto")
    before = score(Engine(runner), [], [[[[1, 2, 3]]]])[0]
    model = tiny_model("gpt_neox")
    model.get_output_embeddings().bias = torch.nn.Parameter(torch.arange(VOCAB).float(), requires_grad=False)
    after = score(Engine(TransformersRunner(model, LABELS, "auto")), [], [[[[1, 2, 3]]]])[0]
    np.testing.assert_allclose(after - before, [LABELS], atol=1e-5)


def test_a_sliding_window_is_exact_below_and_the_limit_says_so():
    runner = tiny_runner("mistral", sliding_window=24)
    assert runner.max_length == 24
    assert "sliding window" in runner.max_length_reason
    rng = np.random.default_rng(1)
    sequences = [[rng.integers(0, VOCAB, 8).tolist(), rng.integers(0, VOCAB, 16).tolist()] for _ in range(4)]
    (ours,) = score(Engine(runner), [], [sequences])
    np.testing.assert_allclose(ours, plain(runner, [], sequences), rtol=0, atol=1e-4)
    # One token more is not plain attention any more, which is why it is refused above this level.
    longer = [[*sequence, [1] * 24] for sequence in sequences]
    (beyond,) = score(Engine(runner), [], [longer])
    assert np.abs(beyond - plain(runner, [], longer)).max() > 1e-3


def test_length_dependent_rotary_embeddings_limit_the_length():
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 64}
    config = transformers.LlamaConfig(max_position_embeddings=128, rope_parameters=rope)
    assert attention_span(config) == (64, "its dynamic rotary embedding; beyond, it changes with length")


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"use_bidirectional_attention": True}, "causal"),
    ],
)
def test_other_kinds_of_attention_are_refused(config, word):
    with pytest.raises(UnsupportedModelError, match=word):
        attention_span(SimpleNamespace(model_type="other", num_attention_heads=4, **config))


def test_layers_without_the_attention_interface_are_refused():
    config = transformers.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UnsupportedModelError, match=r"0 of its 2 layers|keyword arguments"):
        score(Engine(TransformersRunner(model, LABELS, "auto")), [], [[[[1, 2, 3]]]])


def test_attention_sinks_are_refused():
    config = transformers.GptOssConfig(
        **{"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2},
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UnsupportedModelError, match="s_aux"):
        score(Engine(TransformersRunner(model, LABELS, "auto")), [], [[[[1, 2, 3]]]])


def test_an_unknown_backend_is_named():
    with pytest.raises(
        BackendError, match="no tree_attention backend 'fast': expected auto or one of reference, cascade"
    ):
        TransformersRunner(tiny_model("qwen3"), LABELS, "fast")


def test_what_auto_stands_for_is_logged_once(caplog):
    with caplog.at_level("INFO", logger="gram_fast"):
        runner = TransformersRunner(tiny_model("qwen3"), LABELS, "auto")
        score(Engine(runner), [], [[[[1, 2, 3]]]])
    assert [r.message for r in caplog.records] == [
        "tree_attention backend: extension (cpu, torch.float32)",
        "label_logits backend: extension (cpu, torch.float32)",
    ]
    assert runner.attention == "extension"
