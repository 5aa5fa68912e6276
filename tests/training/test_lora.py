"""Merged adapters: the model that was trained, or an error that says where the training is."""

import json

import pytest
import torch
from helpers.small_models import CONFIGS, tiny_model
from helpers.small_training import run, write_checkpoint, write_obvious_pairs
from safetensors.torch import load_file

from gram_fast import PairwiseJudge
from gram_fast.errors import InputError, NumericalError
from gram_fast.models import adapters
from gram_fast.training.config import LoraOptions
from gram_fast.training.lora import add_adapters

EMBEDDING = {"r": 4, "target_modules": ["q_proj", "embed_tokens"]}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_obvious_pairs(tmp_path_factory.mktemp("data") / "pairs.jsonl", 24)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


def trained(base, pairs, folder, **more):
    """A run with adapters that are evaluated at its end, and the evaluation's loss."""
    out = run(
        "finetune", base, pairs, folder, num_train_epochs=4, eval_data=str(pairs), eval_strategy="epoch",
        save_strategy="epoch", label_smoothing=0.0, **more,
    )  # fmt: skip
    state = json.loads((out / "checkpoint-24" / "trainer_state.json").read_text())
    return out, [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]


def judged_loss(folder, pairs):
    """The loss of stage 2 without smoothing, by the judge's own probabilities in both orders."""
    judge = PairwiseJudge.from_pretrained(folder, dtype="float32")
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    comparisons = [judge.compare(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    return -torch.tensor([p for c in comparisons for p in (c.p_ab, c.p_ba)], dtype=torch.float64).log().mean().item()


@pytest.mark.parametrize("is_tied", [True, False])
def test_an_adapted_embedding_is_merged_to_the_model_that_was_trained(is_tied, tied, pairs, tmp_path, caplog):
    base = tied if is_tied else write_checkpoint(tmp_path / "base")
    out, losses = trained(base, pairs, tmp_path / "out", lora=EMBEDDING)
    assert losses[-1] < losses[0] - 0.05
    assert judged_loss(out, pairs) == pytest.approx(losses[-1], abs=1e-5)
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    head = before["model.embed_tokens.weight" if is_tied else "lm_head.weight"]
    assert torch.equal(after["lm_head.weight"], head)
    assert not torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert ("to which the output embedding is tied" in caplog.text) == is_tied


def test_a_tied_embedding_without_adapters_stays_tied(tied, pairs, tmp_path, caplog):
    out, losses = trained(tied, pairs, tmp_path / "out", lora={"r": 4})
    assert judged_loss(out, pairs) == pytest.approx(losses[-1], abs=1e-5)
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"]
    assert "lora.target_modules" not in caplog.text


def test_the_adapter_alone_is_the_judge_with_its_prompt(tied, pairs, tmp_path):
    out, _ = trained(tied, pairs, tmp_path / "out", lora={"r": 4})
    whole, adapter = (PairwiseJudge.from_pretrained(folder, device="cpu") for folder in (out, out / "adapter"))
    assert adapter.comparer.tokenizer.template == whole.comparer.tokenizer.template
    assert judged_loss(out / "adapter", pairs) == pytest.approx(judged_loss(out, pairs), abs=1e-5)


def test_a_merge_to_another_model_is_an_error_that_keeps_the_adapters(tied, pairs, tmp_path, monkeypatch):
    """peft's merge by itself gives the adapted embedding to the tied output embedding, too."""
    monkeypatch.setattr(adapters, "head_of_adapted_embedding", lambda model: None)
    with pytest.raises(NumericalError, match=r"the merged model has the loss .* is in the adapter '.*adapter'"):
        run("pretrain", tied, pairs, tmp_path / "out", max_steps=6, lora=EMBEDDING)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "scalar"])
@pytest.mark.parametrize("precision", [{"dtype": "bfloat16"}, {"bf16": True}], ids=str)
def test_rounding_is_no_other_model(stage, precision, tied, pairs, tmp_path):
    out = run(stage, tied, pairs, tmp_path / "out", max_steps=4, lora=EMBEDDING, **precision)
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize("stage", ["finetune", "scalar"])
def test_only_the_chosen_layers_are_adapted(stage, pairs, tmp_path):
    base = write_checkpoint(tmp_path / "base", num_hidden_layers=4)
    out = run(stage, base, pairs, tmp_path / "out", max_steps=4, lora={"r": 4, "layers_to_transform": [3, 2]})
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {name for name in after if name in before and not torch.equal(after[name], before[name])}
    assert changed == {
        n for n in before if n.startswith(("model.layers.2.", "model.layers.3.")) and n.endswith("proj.weight")
    }
    assert json.loads((out / "adapter" / "adapter_config.json").read_text())["layers_to_transform"] == [3, 2]


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("chosen", [None, [1], [2, 3]], ids=str)
def test_the_backward_ends_at_the_first_adapted_layer(name, chosen):
    model = tiny_model(name, num_hidden_layers=4)
    adapted = add_adapters(model, LoraOptions(r=4, layers_to_transform=chosen))
    entered = []
    layers = model.base_model.layers
    hooks = [layer.register_forward_pre_hook(lambda _, args: entered.append(args[0].requires_grad)) for layer in layers]
    adapted(input_ids=torch.arange(5)[None]).logits.sum().backward()
    assert len(hooks) == 4
    assert entered == [number > min(chosen or [0]) for number in range(4)]
    graded = {int(n.split("layers.")[1].split(".")[0]) for n, p in adapted.named_parameters() if p.grad is not None}
    assert graded == set(chosen or range(4))


def test_a_layer_that_the_model_lacks_is_named(tied, pairs, tmp_path):
    with pytest.raises(InputError, match=r"lora.layers_to_transform: expected layers from 0 to 1, .* got 5"):
        run("finetune", tied, pairs, tmp_path / "out", lora={"layers_to_transform": [1, 5]})
    with pytest.raises(InputError, match=r"Target modules .* not found"):
        run("finetune", tied, pairs, tmp_path / "out", lora={"layers_to_transform": [1], "target_modules": ["q_prj"]})
