"""The dense runner against the transformers runner and plain forwards, and its loading."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers.dense import dense_runner, save_in_shards
from helpers.ops import on_each_device
from helpers.small_models import CONFIGS, LABELS, VOCAB, plain, score, tiny_model, write_judge
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear
from torch.profiler import ProfilerActivity, profile

from gram_fast.errors import BackendError, InputError, UnsupportedModelError
from gram_fast.judge import PairwiseJudge
from gram_fast.models.dense.attention import TreeAttention
from gram_fast.models.dense.runner import DenseRunner
from gram_fast.models.dense.weights import FAMILIES
from gram_fast.models.loading import find_runner
from gram_fast.models.options import JudgeOptions
from gram_fast.models.transformers_runner import TransformersRunner
from gram_fast.scoring.engine import Engine
from gram_fast.scoring.key_values import KeyValueStore
from gram_fast.scoring.tree import TreePass

pytestmark = pytest.mark.usefixtures("one_thread")

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# By name: family and what differs from the tiny shape of tests/helpers/small_models.py.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3 tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3 biases": ("qwen3", {"attention_bias": True}),
    "qwen2": ("qwen2", {}),
    "qwen2 odd heads": ("qwen2", {"hidden_size": 56, "num_attention_heads": 7, "num_key_value_heads": 1}),
    "llama tied": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 2}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3 rotary embedding": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "mistral": ("mistral", {"head_dim": 10, "num_attention_heads": 3}),
    "mistral window": ("mistral", {"sliding_window": 11}),
    # Full attention in the first layer, windows in the last.
    "qwen2 windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
}


def random_rounds(seed: int) -> list[list[list[list[int]]]]:
    """Two rounds of sequences that share beginnings, of lengths 1 to 40 a segment."""
    rng = np.random.default_rng(seed)
    parts = [rng.integers(0, VOCAB, n).tolist() for n in (1, 40, 3, 17, 8, 29)]
    sequences = [[parts[a], parts[b], parts[c]] for a, b, c in rng.integers(0, len(parts), (9, 3))]
    return [sequences[:5], sequences[5:]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_logits_equal_the_plain_forward(variant, tmp_path):
    family, more = VARIANTS[variant]
    model = save_in_shards(tmp_path, family, **more)
    ours, theirs = dense_runner(tmp_path, model.config), TransformersRunner(model, LABELS, "auto")
    ids = torch.arange(3, 90)
    torch.testing.assert_close(ours.plain_logits(ids), theirs.plain_logits(ids), atol=1e-4, rtol=0)
    rounds = random_rounds(0)
    for budget in (7, 64, 1000):
        for logits, sequences in zip(score(Engine(ours, budget), [9, 9], rounds), rounds, strict=True):
            np.testing.assert_allclose(logits, plain(theirs, [9, 9], sequences), rtol=0, atol=1e-4)
    assert ours.bytes_per_slot == theirs.bytes_per_slot
    assert (ours.max_length, ours.max_length_reason) == (theirs.max_length, theirs.max_length_reason)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("llama", {"sliding_window": 9}),
        ("llama", {"layer_types": ["sliding_attention"] * 2, "sliding_window": 9}),
        ("mistral", {"sliding_window": 9, "use_sliding_window": False}),
    ],
)
def test_windows_are_those_that_the_family_reads(family, more, tmp_path):
    write_judge(tmp_path, family)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | more))
    ours, theirs = (
        PairwiseJudge.from_pretrained(tmp_path, runner=runner, dtype="float32", device="cpu").compare("Hi", "a b", "c")
        for runner in ("dense", "transformers")
    )
    assert ours.p_ab == pytest.approx(theirs.p_ab, abs=1e-5)


def test_windows_that_cannot_be_run_are_a_reason_for_the_other_runner(tmp_path):
    for name, family, more, reason in (
        ("zero", "mistral", {"sliding_window": 0}, "sliding_window is 0, expected a positive number"),
        ("chunks", "qwen3", {"layer_types": ["chunked_attention"] * 2}, "it has chunked_attention layers"),
    ):
        folder = write_judge(tmp_path / name, family)
        with pytest.raises(UnsupportedModelError, match=reason):
            find_runner(str(folder), CONFIGS[family](**more), JudgeOptions(runner="dense"))


def test_a_dtype_that_no_op_takes_is_refused(tmp_path):
    model = save_in_shards(tmp_path, "qwen3")
    with pytest.raises(UnsupportedModelError, match=r"^expected a model in .* or bfloat16, got torch\.float64$"):
        dense_runner(tmp_path, model.config, torch.float64)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs the interpreter")
def test_triton_kernels_in_the_runner(tmp_path):
    model = save_in_shards(tmp_path, "qwen3")
    ours = dense_runner(tmp_path, model.config, attention="triton", products="torch")
    ours._attention = TreeAttention("triton", "triton", ours._group, ours._scale, [None] * 2)
    ours._operations = ours._operations_on(
        linear, dict.fromkeys(("add_rms_norm", "rotary_into_cache", "swiglu", "label_logits"), "triton")
    )
    rounds = [[[[1, 2, 3], [4, 5], [6]], [[1, 2, 3], [4, 9], [6, 8]], [[1, 2], [3], [6]]]]
    (logits,) = score(Engine(ours, max_batch_tokens=6), [9, 9], rounds)
    expected = plain(TransformersRunner(model, LABELS, "auto"), [9, 9], rounds[0])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("products", ["auto", "torch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_no_further_from_float32_than_the_plain_forward(family, products, tmp_path):
    model = save_in_shards(tmp_path, family, num_hidden_layers=4).bfloat16()
    model.save_pretrained(tmp_path / "rounded")
    # Read in bfloat16: brought into it, the frequencies of the rotary embedding are rounded too.
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "rounded", dtype=torch.bfloat16)
    theirs = TransformersRunner(read.eval(), LABELS, "auto")
    ours = dense_runner(tmp_path / "rounded", model.config, torch.bfloat16, products=products)
    exact = dense_runner(tmp_path / "rounded", model.config)
    rng = np.random.default_rng(0)
    sequences = [[rng.integers(0, VOCAB, n).tolist() for n in rng.integers(1, 60, 3)] for _ in range(40)]
    truth = plain(exact, [1, 2, 3], sequences)  # type: ignore[arg-type]
    (logits,) = score(Engine(ours, max_batch_tokens=64), [1, 2, 3], [sequences])
    error, plain_error = np.abs(logits - truth), np.abs(plain(theirs, [1, 2, 3], sequences) - truth)
    assert error.max() <= 1.5 * plain_error.max()
    assert error.mean() <= 1.5 * plain_error.mean()


def test_a_missing_and_an_unexpected_tensor_are_named(tmp_path):
    model = tiny_model("qwen3")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.1.self_attn.k_norm.weight"
    save_file({key: value for key, value in weights.items() if key != name}, file)
    with pytest.raises(UnsupportedModelError, match=rf"it lacks 1 weights of qwen3, first '{name}'"):
        find_runner(str(tmp_path), model.config, JudgeOptions(runner="dense"))
    save_file({**weights, "model.layers.0.self_attn.sinks": torch.zeros(4)}, file)
    with pytest.raises(UnsupportedModelError, match=r"qwen3 does not know: 'model\.layers\.0\.self_attn\.sinks'"):
        find_runner(str(tmp_path), model.config, JudgeOptions(runner="dense"))
    save_file({**weights, "model.norm.weight": torch.zeros(3)}, file)
    with pytest.raises(InputError, match=r"model\.norm\.weight: expected shape \[32\], got \[3\]"):
        dense_runner(tmp_path, model.config)
    file.write_bytes(b"not safetensors")
    with pytest.raises(InputError, match=r"cannot load weights from .*model\.safetensors"):
        find_runner(str(tmp_path), model.config, JudgeOptions(runner="dense"))


def test_a_missing_shard_is_named(tmp_path):
    model = save_in_shards(tmp_path, "llama")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    last = max(index["weight_map"].values())
    (tmp_path / last).unlink()
    with pytest.raises(InputError, match=last):
        find_runner(str(tmp_path), model.config, JudgeOptions(runner="dense"))


def test_an_output_embedding_of_its_own_counts_though_the_configuration_ties_it(tmp_path):
    """As transformers does where both are stored and differ."""
    model = tiny_model("qwen3", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs = TransformersRunner(transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval(), LABELS, "auto")
    ids = torch.arange(3, 40)
    assert not torch.allclose(theirs.plain_logits(ids), TransformersRunner(model, LABELS, "auto").plain_logits(ids))
    ours = dense_runner(tmp_path, model.config).plain_logits(ids)
    torch.testing.assert_close(ours, theirs.plain_logits(ids), atol=1e-4, rtol=0)


def test_auto_takes_what_dense_cannot_run_to_transformers_and_says_why(tmp_path, caplog):
    model = save_in_shards(tmp_path, "qwen3")
    where, config = str(tmp_path), model.config
    with caplog.at_level("INFO", logger="gram_fast"):
        assert find_runner(where, CONFIGS["gpt_neox"](), JudgeOptions()) == "transformers"
        assert find_runner(where, config, JudgeOptions()) == "dense"
        assert find_runner(str(tmp_path.parent), config, JudgeOptions()) == "transformers"
    assert [r.message for r in caplog.records] == [
        "runner: transformers (model type 'gpt_neox' is none of llama, mistral, qwen2, qwen3)",
        "runner: dense",
        "runner: transformers (it has no safetensors)",
    ]


def test_dense_by_name_is_refused_with_the_reason(tmp_path):
    where = str(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"runner 'dense' cannot run '.*': model type 'gpt_neox'"):
        find_runner(where, CONFIGS["gpt_neox"](), JudgeOptions(runner="dense"))
    with pytest.raises(UnsupportedModelError, match="its activation is 'gelu'"):
        find_runner(where, CONFIGS["llama"](hidden_act="gelu"), JudgeOptions(runner="dense"))
    of_its_own = CONFIGS["llama"](auto_map={"AutoModelForCausalLM": "modeling.Mine"})
    with pytest.raises(UnsupportedModelError, match="it brings code of its own"):
        find_runner(where, of_its_own, JudgeOptions(runner="dense", trust_remote_code=True))
    with pytest.raises(UnsupportedModelError, match="its heads are 512 wide"):
        find_runner(where, CONFIGS["qwen3"](head_dim=512), JudgeOptions(runner="dense"))
    with pytest.raises(BackendError, match="no runner 'vllm': expected one of auto, transformers, dense"):
        JudgeOptions(runner="vllm")


def test_a_judge_on_either_runner_says_the_same(tmp_path):
    write_judge(tmp_path)
    responses = ["a longer answer", "no", "a longer reply"]
    ranked = {}
    for runner in ("auto", "dense", "transformers"):
        judge = PairwiseJudge.from_pretrained(tmp_path, runner=runner)
        assert isinstance(judge.comparer.runner, TransformersRunner if runner == "transformers" else DenseRunner)
        ranked[runner] = judge.rank("Which?", responses)
    for runner in ("auto", "dense"):
        np.testing.assert_allclose(ranked[runner].scores, ranked["transformers"].scores, atol=1e-5)


def peak_memory(launch: Callable[[], object], device: str) -> int:
    """Most bytes of tensors at a time that a launch takes besides those that were there."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        launch()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        launch()
    events = profiled.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate(change for _, change in changes))


@on_each_device
def test_activations_take_the_memory_that_was_planned(device, tmp_path):
    model = save_in_shards(tmp_path, "qwen3", hidden_size=256, intermediate_size=768, head_dim=64)
    runner = dense_runner(tmp_path, model.config, torch.bfloat16, device=device, products="torch")
    tokens = 16384 if device == "cuda" else 2048
    whole = TreePass.of_sequence(torch.arange(tokens) % VOCAB)
    store = KeyValueStore()
    store.reserve(tokens)
    runner.forward(whole, store)  # compiles kernels, allocates keys and values
    peak = peak_memory(lambda: runner.forward(whole, store), device)
    assert 0.8 * tokens * runner.bytes_per_token < peak <= tokens * runner.bytes_per_token
