"""The engine's label logits are those of the model's plain forward, whatever the tree, the passes and the rounds."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from helpers.attention import BACKENDS_HERE
from helpers.forests import forests
from helpers.small_models import CONFIGS, KINDS, LABELS, VOCAB, plain, score, tiny_model, tiny_runner
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.errors import BackendError, UnsupportedModelError
from gram_fast.models.supported import attention_span, plain_attention_span
from gram_fast.models.transformers_runner import TransformersRunner
from gram_fast.scoring.engine import Engine

pytestmark = pytest.mark.usefixtures("one_thread")

RUNNERS = {name: tiny_runner(name) for name in (*CONFIGS, *KINDS)}


@pytest.mark.parametrize("name", RUNNERS)
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


@pytest.mark.parametrize("attention", BACKENDS_HERE)
def test_attention_backends_agree(attention):
    runner = TransformersRunner(tiny_model("qwen3"), LABELS, attention)
    rounds = [[[[1, 2, 3], [4, 5], [6]], [[1, 2, 3], [4, 9], [6, 8]], [[1, 2], [3], [6]]]]
    (ours,) = score(Engine(runner, max_batch_tokens=5), [9, 9], rounds)
    np.testing.assert_allclose(ours, plain(runner, [9, 9], rounds[0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "more"), [("qwen3", {"num_hidden_layers": 4}), *((name, {}) for name in KINDS)])
def test_bfloat16_is_no_further_from_float32_than_the_plain_forward(name, more):
    # Of several models: the largest error of one is a matter of luck, of which expert a token goes to say.
    errors = [bfloat16_errors(name, seed, more) for seed in range(3)]
    ours, plains = (np.concatenate(parts) for parts in zip(*errors, strict=True))
    assert ours.max() <= 1.5 * plains.max()
    assert ours.mean() <= 1.5 * plains.mean()


def bfloat16_errors(name, seed, more):
    """Differences from float32 of our logits and of those of the plain forward."""
    rounded = TransformersRunner(tiny_model(name, seed, **more).bfloat16(), LABELS, "auto")
    # The float32 answer of the same (rounded) weights: what is compared is the computation's error.
    exact = TransformersRunner(copy.deepcopy(rounded.model).float(), LABELS, "auto")
    rng = np.random.default_rng(seed)
    sequences = [[rng.integers(0, VOCAB, n).tolist() for n in rng.integers(1, 60, 3)] for _ in range(40)]
    (ours,) = score(Engine(rounded, max_batch_tokens=64), [1, 2, 3], [sequences])
    truth = plain(exact, [1, 2, 3], sequences)
    return np.abs(ours - truth), np.abs(plain(rounded, [1, 2, 3], sequences) - truth)


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


@pytest.mark.parametrize("window", [1, 8, 24, 200])
@pytest.mark.parametrize("budget", [7, 500])
def test_a_sliding_window_of_any_size_is_exact(window, budget):
    # Smaller than a node, equal to one, larger than the path.
    runner = tiny_runner("mistral", sliding_window=window)
    assert runner.max_length == 512
    rng = np.random.default_rng(1)
    nodes = [rng.integers(0, VOCAB, 24).tolist() for _ in range(3)]
    rounds = [[[nodes[a], nodes[b], nodes[c]] for a, b, c in rng.integers(0, 3, (5, 3))] for _ in range(2)]
    for ours, sequences in zip(score(Engine(runner, budget), [], rounds), rounds, strict=True):
        np.testing.assert_allclose(ours, plain(runner, [], sequences), rtol=0, atol=1e-4)


def test_windows_count_among_limits_where_attention_has_to_be_plain():
    config = tiny_model("mistral", sliding_window=24).config
    assert attention_span(config) == (512, "max_position_embeddings")
    assert plain_attention_span(config) == (24, "its sliding window; beyond, attention is not plain")
    chunked = tiny_model("llama4").config
    assert plain_attention_span(chunked) == (8, "its attention chunk; beyond, attention is not plain")
    with pytest.raises(UnsupportedModelError, match="attn_logit_softcapping"):
        plain_attention_span(tiny_model("gemma2").config)


def test_length_dependent_rotary_embeddings_limit_the_length():
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 64}
    config = transformers.LlamaConfig(max_position_embeddings=128, rope_parameters=rope)
    assert attention_span(config) == (64, "its dynamic rotary embedding; beyond, it changes with length")


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"layer_types": ["sparse_attention", "full_attention"]}, "sparse_attention layers"),
        ({"use_bidirectional_attention": True}, "causal"),
    ],
)
def test_other_kinds_of_attention_are_refused(config, word):
    with pytest.raises(UnsupportedModelError, match=word):
        attention_span(SimpleNamespace(model_type="other", num_attention_heads=4, **config))


_TINY = {"vocab_size": VOCAB, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.GPTJConfig(**_TINY, rotary_dim=4), "0 of its 2 layers attend through"),
        (transformers.BartConfig(vocab_size=VOCAB, d_model=32, decoder_layers=2), "takes no position_ids"),
        (transformers.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4), "takes no position_ids"),
        (transformers.BertConfig(**_TINY, is_decoder=True), "weights between its last hidden state"),
        (transformers.DogeConfig(**_TINY), "masks attention by itself"),
        (transformers.DiffLlamaConfig(**_TINY), "its layers attend 4 times"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_models_that_compute_something_else_are_refused(config, reason):
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UnsupportedModelError, match=reason):
        score(Engine(TransformersRunner(model, LABELS, "auto")), [], [[[[1, 2, 3]]]])


@pytest.mark.parametrize(("name", "setting", "value"), [("gemma2", "attn_logit_softcapping", None),
                                                         ("gemma2", "final_logit_softcapping", None),
                                                         ("gemma3", "sliding_window", 500),
                                                         ("llama4", "attention_chunk_size", 500)])  # fmt: skip
def test_what_a_layer_asks_of_attention_matters_to_the_logits(name, setting, value):
    ids = [[list(range(3, 60))]]
    found = plain(tiny_runner(name), [], ids)
    assert np.abs(found - plain(tiny_runner(name, **{setting: value}), [], ids)).max() > 0.01


def test_sinks_matter_to_the_logits():
    runner = tiny_runner("gpt_oss")
    ids = [[list(range(3, 60))]]
    before = plain(runner, [], ids)
    for layer in runner.model.model.layers:
        layer.self_attn.sinks.fill_(-100.0)
    assert np.abs(before - plain(runner, [], ids)).max() > 0.01


@pytest.mark.parametrize(("family", "settings"), [
    ("GraniteConfig", {"logits_scaling": 8.0}),
    ("CohereConfig", {"logit_scale": 0.25}),
    ("Gemma2Config", {"final_logit_softcapping": 2.0, "head_dim": 8}),
])  # fmt: skip
def test_logits_are_scaled_and_capped_as_the_model_does(family, settings):
    shape = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = getattr(transformers, family)(**shape, num_key_value_heads=2, initializer_range=0.25, **settings)
    torch.manual_seed(0)
    runner = TransformersRunner(transformers.AutoModelForCausalLM.from_config(made).eval(), LABELS, "auto")
    ids = [9, 8, 7, 6]
    (ours,) = score(Engine(runner), [], [[[ids]]])
    np.testing.assert_allclose(ours, plain(runner, [], [[ids]]), rtol=0, atol=1e-4)
    (logprobs,) = score(Engine(runner), [], [[[ids]]], token_ids=(5, 7, 40))
    expected = runner.next_logits(torch.tensor(ids)).log_softmax(-1)[[5, 7, 40]]
    np.testing.assert_allclose(logprobs[0], expected, rtol=0, atol=1e-4)


_LATENT = {
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "moe_intermediate_size": 24,
}
_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
LATENT = {
    "deepseek_v2": transformers.DeepseekV2Config,
    "deepseek_v3": transformers.DeepseekV3Config,
    "glm4_moe_lite": transformers.Glm4MoeLiteConfig,
    "youtu": transformers.YoutuConfig,
}


@pytest.mark.parametrize("name", LATENT)
def test_latent_attention_has_values_narrower_than_keys(name):
    shape = {
        "initializer_range": 0.25,
        "intermediate_size": 48,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
    }
    torch.manual_seed(0)
    config = LATENT[name](**_TINY, **_LATENT, **_EXPERTS, **shape, v_head_dim=6)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    runner, engine = (made := TransformersRunner(model, LABELS, "auto")), Engine(made, max_batch_tokens=24)
    rng = np.random.default_rng(1)
    stem, *tails = (rng.integers(0, VOCAB, n).tolist() for n in (20, 11, 13, 17))
    rounds = [[[stem, tails[0]], [stem, tails[1]]], [[stem, tails[0], tails[2]], [stem, tails[2]]]]
    for logits, sequences in zip(score(engine, [1, 2], rounds), rounds, strict=True):
        np.testing.assert_allclose(logits, plain(runner, [1, 2], sequences), rtol=0, atol=1e-4)
    assert runner.bytes_per_slot == 2 * 2 * 4 * 12 * 4


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
