"""Checkpoints whose weights are stored as FP8 with one factor a block, as Qwen3's are."""

import json
import re

import pytest
import torch
from helpers.dense import dense_runner, save_in_shards, store_as_fp8
from helpers.small_models import LABELS, tiny_model, write_judge
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from gram_fast import PairwiseJudge, ops
from gram_fast.errors import InputError
from gram_fast.models.checkpoint import load_config
from gram_fast.models.dense.stored import times_blocks
from gram_fast.models.dense.weights import dense_problem, read_dense_model
from gram_fast.models.transformers_runner import TransformersRunner
from gram_fast.scoring.processes import Processes

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
IDS = torch.arange(3, 70)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_of_fp8_says_what_transformers_reads(tied, dtype, tmp_path):
    tiny_model("qwen3", tie_word_embeddings=tied).save_pretrained(tmp_path)
    store_as_fp8(tmp_path)
    config = load_config(str(tmp_path))
    assert dense_problem(str(tmp_path), config) is None
    ours = dense_runner(tmp_path, config, dtype)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    weight_OD = model.model.layers[0].mlp.down_proj.weight
    assert weight_OD.dtype == dtype
    assert torch.equal(ours.model.layers[0].down.weight.to_dense(), weight_OD)
    if dtype == torch.float32:
        theirs = TransformersRunner(model.requires_grad_(False), LABELS, "auto")
        torch.testing.assert_close(ours.plain_logits(IDS), theirs.plain_logits(IDS), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [(128, 128), (32, 20), (1, 7)])
def test_blocks_at_the_end_are_cut(block, dtype, tmp_path):
    save_in_shards(tmp_path, "qwen3")
    store_as_fp8(tmp_path, block, dtype)
    config, layer = load_config(str(tmp_path)), "model.layers.1."
    stored = {name: tensor for file in tmp_path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    model = read_dense_model(str(tmp_path), config, LABELS, CPU, torch.float32)
    halves = [read_dense_model(str(tmp_path), config, LABELS, CPU, torch.float32, Processes(r, 2)) for r in (0, 1)]
    for name, weight_OD in (
        ("mlp.down_proj", model.layers[1].down.weight),
        ("self_attn.q_proj", model.layers[1].qkv[0].weight),
    ):
        values_OD, scales_PQ = (stored[f"{layer}{name}.weight{end}"].double() for end in ("", "_scale_inv"))
        factors_OD = torch.stack(
            [
                torch.stack([scales_PQ[o // block[0], d // block[1]] for d in range(values_OD.shape[1])])
                for o in range(len(values_OD))
            ]
        )
        assert torch.equal(weight_OD, (values_OD * factors_OD).float())
    assert torch.equal(torch.cat([half.layers[1].down.weight for half in halves], 1), model.layers[1].down.weight)


def test_a_checkpoint_of_fp8_is_quantized_again(tmp_path):
    save_in_shards(tmp_path, "qwen3")
    store_as_fp8(tmp_path)
    config = load_config(str(tmp_path))
    ours = read_dense_model(str(tmp_path), config, LABELS, CPU, torch.bfloat16, quantization="fp8").layers[0]
    exact = read_dense_model(str(tmp_path), config, LABELS, CPU, torch.float32).layers[0]
    values_OD, scales_O1 = ops.quantize_rows(exact.gate_up.weight, backend="reference")
    assert torch.equal(ours.gate_up.weight.values_OD.float(), values_OD.float())
    assert torch.equal(ours.gate_up.weight.scales_O1, scales_O1)


def test_a_judge_of_a_checkpoint_of_fp8(tmp_path):
    write_judge(tmp_path)
    store_as_fp8(tmp_path)
    runners = [
        PairwiseJudge.from_pretrained(tmp_path, device="cpu", quantization=q).comparer.runner for q in (None, "fp8")
    ]
    assert [type(runner).__name__ for runner in runners] == ["DenseRunner", "DenseRunner"]
    assert [runner.products == "fp8" for runner in runners] == [False, True]


def change(folder, tensors=None, **settings):
    """Changes a stored checkpoint: its tensors by a function, and the settings of its quantization."""
    if tensors is not None:
        for file in folder.glob("*.safetensors"):
            changed = load_file(file)
            tensors(changed)
            save_file(changed, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= settings
    (folder / "config.json").write_text(json.dumps(config))


DOWN = "model.layers.0.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
UNREADABLE = {
    "no blocks": ({"weight_block_size": None}, None, "its weights are quantized, and not as FP8 in blocks"),
    "other blocks": ({"weight_block_size": [0, 16]}, None, "its weights are quantized, and not as FP8 in blocks"),
    "another method": ({"quant_method": "bitnet"}, None, "its weights are quantized, and not as FP8 in blocks"),
    "another format": ({"fmt": "e5m2"}, None, "its weights are quantized, and not as FP8 in blocks"),
    "no factors": ({}, lambda t: t.pop(f"{DOWN}_scale_inv", None), f"'{DOWN}' is FP8: expected .* with factors"),
    "factors of integers": (
        {},
        lambda t: t.update({k: v.int() for k, v in t.items() if k == f"{DOWN}_scale_inv"}),
        f"'{DOWN}_scale_inv' is stored as I32, expected one of F32, BF16, F16",
    ),
    "an embedding": (
        {},
        lambda t: t.update({k: v.to(torch.float8_e4m3fn) for k, v in t.items() if k == EMBEDDING}),
        f"'{EMBEDDING}' is FP8: expected that of weights of products alone",
    ),
    "factors of another weight": (
        {},
        lambda t: t.update({f"{k}_scale_inv": v[:1].clone() for k, v in list(t.items()) if k == "model.norm.weight"}),
        "a weight that qwen3 does not know: 'model.norm.weight_scale_inv'",
    ),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_is_quantized_otherwise_is_left_to_transformers(what, tmp_path):
    settings, tensors, message = UNREADABLE[what]
    save_in_shards(tmp_path, "qwen3")
    store_as_fp8(tmp_path)
    change(tmp_path, tensors, **settings)
    problem = dense_problem(str(tmp_path), load_config(str(tmp_path)))
    assert re.search(message, str(problem))


def test_factors_of_the_wrong_shape_are_named(tmp_path):
    write_judge(tmp_path)
    store_as_fp8(tmp_path)
    change(tmp_path, lambda t: t.update({f"{DOWN}_scale_inv": t[f"{DOWN}_scale_inv"][1:]}))
    with pytest.raises(InputError, match=rf"{DOWN}_scale_inv: expected shape \[4, 3\], got \[3, 3\]"):
        PairwiseJudge.from_pretrained(tmp_path, device="cpu")


def test_fp8_without_its_configuration_is_no_plain_number(tmp_path):
    tiny_model("qwen3").save_pretrained(tmp_path)
    config = load_config(str(tmp_path))
    store_as_fp8(tmp_path)
    assert "is FP8: expected" in dense_problem(str(tmp_path), config)


def test_times_blocks():
    values_OD = torch.arange(12.0).view(3, 4)
    expected_OD = torch.tensor([[0.0, 1, 2, 30], [4, 5, 6, 70], [800, 900, 1000, 11000]])
    assert torch.equal(times_blocks(values_OD, torch.tensor([[1.0, 10], [100, 1000]]), (2, 3)), expected_OD)
