"""Pairs of one prompt in one batch, whose shared tokens are computed once: the same training as with plain batches."""

import itertools
import json
import pickle
from dataclasses import asdict

import numpy as np
import pytest
import torch
from helpers.small_models import tiny_model
from helpers.small_training import SGD, arguments_for, assert_same, finish, launch, run, weights, write_config
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from gram_fast.errors import InputError
from gram_fast.training import objectives
from gram_fast.training import train as training
from gram_fast.training.config import RunConfig
from gram_fast.training.data.sequences import TokenizedPair, collate
from gram_fast.training.packed_attention import PACKED_ATTENTION

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = ("pretrain", "finetune", "scalar")
TOGETHER = {"pairs_together": 3, "per_device_train_batch_size": 5}


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """20 pairs of three prompts of 9, 6 and 5, whose responses stand in many pairs."""
    path = tmp_path_factory.mktemp("grouped") / "pairs.jsonl"
    responses = ["", "Yes.", "Yes. And no.", "No, as was said before.", "It depends on the weather."]
    pairs = list(itertools.permutations(responses, 2))
    counts = {"Is it so?": 9, "Is it so? I ask again.": 6, "Why?": 5}
    rows = [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        for prompt, count in counts.items()
        for chosen, rejected in pairs[:count]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def model_with(stage):
    model = tiny_model("qwen3").requires_grad_(True)
    model.set_attn_implementation(PACKED_ATTENTION)
    if stage == "pretrain":
        objectives.set_objective(model, objectives.language_modelling(model))
    elif stage == "finetune":
        objectives.set_objective(model, objectives.label_preference(model, (5, 7), 0.1))
    else:
        torch.manual_seed(0)
        model.score = torch.nn.Linear(32, 1, bias=False)
        objectives.set_objective(model, objectives.bradley_terry_loss(model))
    return model


def pair_of(stage, first, second):
    if stage == "pretrain":
        ids = np.array([1, *first, 2, *second], np.int32)
        asked = np.arange(len(first), len(ids) - 1, dtype=np.int32)
        return TokenizedPair(ids, np.array([len(ids)]), asked, ids[asked + 1])
    orders = ([1, *first, 2, *second, 3], [1, *second, 2, *first, 3])
    chats = ([1, *first, 3], [1, *second, 3])
    sequences = [np.array(ids, np.int32) for ids in (orders if stage == "finetune" else chats)]
    return TokenizedPair.labelled_at_the_ends(sequences, (0, 1) if stage == "finetune" else (1, 0))


TEXT = st.lists(st.integers(4, 6), max_size=6)


@pytest.mark.parametrize("stage", STAGES)
@given(texts=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=7))
@example(texts=[([4], [5])] * 3)
@example(texts=[([4, 5], [4]), ([4], [4, 5]), ([], [4, 5, 6])])
@settings(max_examples=15, deadline=None)
def test_gradients_are_those_of_plain_batches(stage, texts):
    """Those of the tree, too, when it is filled up to a multiple of tokens."""
    pairs = [pair_of(stage, *both) for both in texts]
    losses, gradients = [], []
    for shares, multiple in ((False, 1), (True, 16)):
        model = model_with(stage)
        outputs = model(**collate(pairs, shares, multiple))
        outputs["loss"].backward()
        losses.append(outputs["loss"].detach())
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    # Of equal responses a scalar model's gradients cancel: rounding errors of terms near 0.01 are left.
    scale = max(0.01, *(gradient.abs().max().item() for gradient in gradients[0]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_is_the_plain_one(stage, base, grouped, tmp_path):
    """All 20 pairs in every step, accumulated or not."""
    run(stage, base, grouped, tmp_path / "plain", per_device_train_batch_size=20, max_steps=2, **SGD)
    run(stage, base, grouped, tmp_path / "tree", gradient_accumulation_steps=4, max_steps=2, **TOGETHER, **SGD)
    start, after = load_file(base / "model.safetensors"), weights(tmp_path / "plain")
    moved = max((after[name] - start[name]).abs().max().item() for name in start.keys() & after.keys())
    assert moved > 1e-3
    assert_same(tmp_path / "plain", tmp_path / "tree", tolerance=2e-4 * moved)


@pytest.mark.parametrize(
    "more",
    [
        {"lora": {"r": 4}},
        {"lora": {"r": 4, "layers_to_transform": [1]}, "gradient_checkpointing": True},
        {"gradient_checkpointing": True},
        {"lm_weight": 0.5},
    ],
    ids=["lora", "last layer with checkpointing", "checkpointing", "next tokens"],
)
def test_it_goes_with_other_options(more, base, grouped, tmp_path):
    more = {**more, "max_steps": 2, **SGD}
    run("finetune", base, grouped, tmp_path / "plain", per_device_train_batch_size=20, **more)
    shared = {"per_device_train_batch_size": 20, "pairs_together": 9}
    run("finetune", base, grouped, tmp_path / "tree", **shared, **more)
    start, after = load_file(base / "model.safetensors"), weights(tmp_path / "plain")
    assert any(not torch.equal(start[name], after[name]) for name in start.keys() & after.keys())
    assert_same(tmp_path / "plain", tmp_path / "tree", tolerance=1e-6)


def test_the_accuracy_is_the_plain_one(base, grouped, tmp_path):
    found = []
    for name, more in (("plain", {"per_device_train_batch_size": 5}), ("tree", TOGETHER)):
        out = run(
            "scalar", base, grouped, tmp_path / name, **more, max_steps=1, eval_data=str(grouped), eval_on_start=True,
            save_strategy="steps", save_steps=1, per_device_eval_batch_size=8,
        )  # fmt: skip
        history = json.loads((out / "checkpoint-1" / "trainer_state.json").read_text())["log_history"]
        found.append(next((entry["eval_loss"], entry["eval_accuracy"]) for entry in history if "eval_loss" in entry))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_run_goes_on_in_a_later_epoch_to_the_same_weights(base, grouped, tmp_path):
    """Of four steps an epoch."""
    more = {**TOGETHER, "max_steps": 7, "save_strategy": "steps", "save_steps": 1}
    whole = run("finetune", base, grouped, tmp_path / "whole", **more)
    for step in (4, 6):
        again = tmp_path / f"again-{step}"
        run("finetune", base, grouped, again, resume_from_checkpoint=str(whole / f"checkpoint-{step}"), **more)
        assert_same(whole, again)


def test_two_processes_are_one_that_accumulates_and_go_on_in_a_later_epoch(base, grouped, tmp_path):
    """An epoch is two steps of two batches. What accelerate puts between sampler and loader passes no epoch on."""
    more = {**TOGETHER, **SGD, "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    config = write_config(tmp_path / "config.yaml", base, grouped, tmp_path / "two", **more)
    finish(launch("finetune", config, processes=2))
    run("finetune", base, grouped, tmp_path / "one", gradient_accumulation_steps=2, **more)
    assert_same(tmp_path / "one", tmp_path / "two", tolerance=1e-5)
    (tmp_path / "two" / "model.safetensors").rename(tmp_path / "model.safetensors")
    (tmp_path / "two" / "checkpoint-4" / "model.safetensors").unlink()
    finish(launch("finetune", config, "resume_from_checkpoint=true", processes=2))
    assert_same(tmp_path, tmp_path / "two")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of: expected a positive integer, got 0"),
        ({"pairs_together": 0}, "pairs_together: expected a positive integer, got 0"),
        ({"pairs_together": 5}, "pairs_together: expected at most per_device_train_batch_size, 4, got 5"),
        ({"pairs_together": 2, "streaming": True, "max_steps": 1}, "pairs_together: expected 1 with streaming"),
        (
            {"pairs_together": 2, "train_sampling_strategy": "sequential"},
            "train_sampling_strategy: expected random with pairs_together, got 'sequential'",
        ),
    ],
)
def test_what_cannot_be_is_said(more, message, tmp_path):
    with pytest.raises(InputError, match=message):
        arguments_for(tmp_path, **more)


def test_spawned_workers_can_make_the_batches():
    """What a spawned worker of a DataLoader gets is pickled."""
    config = RunConfig("model", "out", ["data"], pairs_together=2)
    collate_rows = pickle.loads(pickle.dumps(training._collator(config)))
    rows = [asdict(TokenizedPair.labelled_at_the_ends([np.arange(3), np.arange(4)], [0, 1])) for _ in range(2)]
    assert collate_rows(rows)["input_ids"].tolist() == [[0, 1, 2, 3]]
