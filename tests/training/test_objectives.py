"""Losses, gradients and memory of the training objectives against plain formulas."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from helpers import sharded
from helpers.small_models import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from gram_fast.errors import UnsupportedModelError
from gram_fast.training import objectives
from gram_fast.training.data.sequences import TokenizedPair, collate
from gram_fast.training.packed_attention import PACKED_ATTENTION

LABELS = (5, 7)
LENGTHS = [[1], [3], [5, 1, 17, 2], [300, 4], [257]]


def batch(lengths, seed=0):
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    pair = TokenizedPair(rng.integers(0, 96, total), np.array(lengths), np.arange(total), np.zeros(total, np.int32))
    return collate([pair])


def last(inputs):
    """Last tokens of the sequences."""
    return inputs["spans_N2"][:, 1] - 1


def packed(name="qwen3", **more):
    model = tiny_model(name, **more).requires_grad_(True)
    model.set_attn_implementation(PACKED_ATTENTION)
    return model


def plain_hidden(model, inputs):
    """[T, D] hidden states of each sequence by itself, by transformers' own attention."""
    model.set_attn_implementation("sdpa")
    parts = [model.base_model(input_ids=ids[None]).last_hidden_state[0] for ids in split(inputs)]
    return torch.cat(parts)


def split(inputs):
    return inputs["input_ids"][0].split(inputs["spans_N2"].diff(dim=1)[:, 0].tolist())


def some_sum(hidden):
    """To which every number contributes; a sum of squares would not do, the last norm makes that a constant."""
    return (hidden * torch.arange(hidden.numel()).view_as(hidden).cos()).sum()


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def assert_same_gradients(model, other):
    expected = gradients(other)
    scale = max(grad.abs().max().item() for grad in expected.values() if grad is not None)
    for name, grad in gradients(model).items():
        assert (grad is None) == (expected[name] is None), name
        if grad is not None:
            # Sums of hundreds of float32 products in another order; a wrong term would show at 1e-2.
            torch.testing.assert_close(grad, expected[name], rtol=0, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("name", ["qwen3", "llama", "qwen2", "mistral", "gpt_neox"])
def test_packed_sequences_do_not_see_each_other(name, lengths):
    inputs = batch(lengths)
    hidden = {}
    for kind in ("packed", "plain"):
        model = tiny_model(name).requires_grad_(True)
        if kind == "packed":
            model.set_attn_implementation(PACKED_ATTENTION)
            objectives.set_objective(model, lambda hidden, labels: {"loss": some_sum(hidden)})
            model(**inputs, num_items_in_batch=1)["loss"].backward()
        else:
            some_sum(plain_hidden(model, inputs)).backward()
        hidden[kind] = model
    assert_same_gradients(hidden["packed"], hidden["plain"])


def test_a_model_that_ignores_the_attention_interface_is_refused():
    model = packed()
    model.config.num_hidden_layers = 3
    objectives.set_objective(model, objectives.language_modelling(model))
    with pytest.raises(UnsupportedModelError, match="2 of its 3 layers"):
        model(**batch([3, 4]))


def test_values_narrower_than_keys_are_refused():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "kv_lora_rank": 16, "q_lora_rank": 16, "v_head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4}
    config = transformers.DeepseekV3Config(vocab_size=96, num_hidden_layers=2, **sizes, **heads)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=PACKED_ATTENTION)
    objectives.set_objective(model, objectives.language_modelling(model))
    with pytest.raises(UnsupportedModelError, match="keys of width 12 and values of 8"):
        model(**batch([3, 4]))


@pytest.mark.parametrize("chunk", [1, 96 * 5, 2**24])
@pytest.mark.parametrize("rows", [0, 1, 13])
def test_linear_cross_entropy_is_the_plain_one(rows, chunk, monkeypatch):
    monkeypatch.setattr(objectives, "_CHUNK_ELEMENTS", chunk)
    torch.manual_seed(0)
    hidden, weight = torch.randn(rows, 8), torch.randn(96, 8)
    targets = torch.randint(96, (rows,))
    results = []
    for loss in (
        objectives.linear_cross_entropy,
        lambda h, w, t: F.cross_entropy(h @ w.T, t, reduction="sum"),
    ):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        value = loss(h, w, targets)
        (3 * value).backward()
        results.append((value.detach(), h.grad, w.grad))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_cross_entropy_is_summed_in_float32_under_autocast():
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(50, 8).bfloat16(), torch.randn(96, 8), torch.randint(96, (50,))
    with torch.autocast("cpu", torch.bfloat16):
        ours = objectives.linear_cross_entropy(hidden, weight, targets, torch.ones(50))
        log_p = F.log_softmax(F.linear(hidden, weight.bfloat16()), dim=-1, dtype=torch.float32)
    torch.testing.assert_close(ours, F.nll_loss(log_p, targets, reduction="sum"), rtol=1e-6, atol=0)


def test_evaluation_makes_no_gradients():
    hidden, weight = torch.randn(50, 8, requires_grad=True), torch.randn(4096, 8, requires_grad=True)
    targets = torch.zeros(50, dtype=torch.int64)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        objectives.linear_cross_entropy(hidden, weight, targets)
    assert forward.get_total_flops() == 2 * 50 * 4096 * 8


@pytest.mark.parametrize("lengths", LENGTHS[1:], ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_language_modelling_is_the_models_own_loss(lengths, tied):
    inputs = batch(lengths)
    inputs["label_positions"] = torch.arange(sum(lengths))[sum(lengths) // 3 :]
    inputs["labels"] = inputs["input_ids"][0, inputs["label_positions"] - 1]
    model, other = packed(tie_word_embeddings=tied), tiny_model("qwen3", tie_word_embeddings=tied).requires_grad_(True)
    objectives.set_objective(model, objectives.language_modelling(model))
    ours = model(**inputs)["loss"]
    logits = plain_hidden(other, inputs) @ other.get_output_embeddings().weight.T
    plain = F.cross_entropy(logits[inputs["label_positions"]], inputs["labels"])
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    ours.backward()
    plain.backward()
    assert_same_gradients(model, other)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("tied", [True, False])
def test_label_preference_is_cross_entropy_of_two_logits_of_the_whole_vocabulary(smoothing, tied):
    inputs = batch([5, 1, 17, 2])
    right = torch.tensor([0, 1, 1, 0])
    inputs |= {"label_positions": last(inputs), "labels": right}
    model, other = packed(tie_word_embeddings=tied), tiny_model("qwen3", tie_word_embeddings=tied).requires_grad_(True)
    objectives.set_objective(model, objectives.label_preference(model, LABELS, smoothing))
    outputs = model(**inputs)
    other.set_attn_implementation("sdpa")
    logits = torch.cat([other(input_ids=ids[None]).logits[:, -1, list(LABELS)] for ids in split(inputs)])
    plain = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, right)
    torch.testing.assert_close(outputs["loss"], plain, rtol=1e-5, atol=1e-6)
    assert outputs["is_right"].flatten().tolist() == (logits.argmax(1) == right).tolist()
    outputs["loss"].backward()
    plain.backward()
    assert_same_gradients(model, other)


@given(
    st.floats(-30, 30, allow_nan=False),
    st.floats(0, 0.99),
)
@settings(max_examples=200, deadline=None)
def test_label_smoothing_is_the_regularised_ranking_loss(margin, smoothing):
    """Two-class label smoothing s: -log sigmoid(z) + s/2 z (arXiv 2506.14175)."""
    logits = torch.tensor([[margin, 0.0]], dtype=torch.float64)
    smoothed = F.cross_entropy(logits, torch.tensor([0]), label_smoothing=smoothing)
    z = torch.tensor(margin, dtype=torch.float64)
    torch.testing.assert_close(smoothed, -F.logsigmoid(z) + smoothing / 2 * z, rtol=1e-9, atol=1e-9)


def test_bradley_terry_compares_chosen_with_rejected():
    inputs = batch([5, 9, 2, 4])
    inputs |= {"label_positions": last(inputs), "labels": torch.tensor([1, 0, 1, 0])}
    model = packed()
    model.score = torch.nn.Linear(32, 1, bias=False)
    objectives.set_objective(model, objectives.bradley_terry_loss(model))
    outputs = model(**inputs)
    rewards = model.score(plain_hidden(model, inputs)[last(inputs)])[:, 0]
    expected = -F.logsigmoid(torch.stack([rewards[0] - rewards[1], rewards[2] - rewards[3]])).mean()
    torch.testing.assert_close(outputs["loss"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("objective", "tied"), [("language", "untied"), ("label", "tied")])
def test_sharded_parameters_get_the_same_gradients(objective, tied, tmp_path):
    """FSDP2 in two processes over gloo against one process that sees both batches."""
    script = Path(sharded.__file__)
    path = tmp_path / "gradients.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([*command, str(script), objective, tied, str(path)], env=environment, check=True, timeout=120)
    model = sharded.model_with(objective, tied == "tied")
    for rank in range(2):
        model(**sharded.batch(rank, objective), num_items_in_batch=4)["loss"].backward()
    gathered = torch.load(path)
    assert gathered.keys() == gradients(model).keys()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gathered[name], gradient, rtol=0, atol=1e-5, msg=name)


def peak_bytes(call):
    """Most bytes that torch held at once for the call and its backward, beyond what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call().backward()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(live)


@pytest.mark.parametrize("stage", ["label", "language"])
def test_memory_is_bounded_at_a_large_vocabulary(stage):
    """1,024 tokens by 150,000 words are 586 MiB of logits; the gradient of the embedding alone is 18 MiB."""
    inputs = batch([128] * 8)
    model = packed(vocab_size=150_000, num_hidden_layers=1)
    right = torch.arange(8) % 2
    if stage == "label":
        inputs |= {"label_positions": last(inputs), "labels": right}
        loss = objectives.label_preference(model, LABELS, 0.1)
    else:
        inputs["labels"] = inputs["input_ids"][0].roll(-1)
        loss = objectives.language_modelling(model)

    def plain():
        model.set_attn_implementation("sdpa")
        logits = model(input_ids=inputs["input_ids"].view(8, 128)).logits
        if stage == "label":
            return F.cross_entropy(logits[:, -1, list(LABELS)], right)
        return F.cross_entropy(logits.flatten(0, 1), inputs["labels"])

    plain_peak = peak_bytes(plain)
    model.zero_grad()
    model.set_attn_implementation(PACKED_ATTENTION)
    objectives.set_objective(model, loss)
    ours_peak = peak_bytes(lambda: model(**inputs)["loss"])
    assert plain_peak > 586 * 2**20
    # Stage 2: the embedding's gradient, twice while it is added up. Stage 1: chunks of 64 MiB besides.
    assert ours_peak < (64 if stage == "label" else 320) * 2**20
