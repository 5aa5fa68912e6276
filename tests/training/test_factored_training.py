"""Stage 2 in mode factored: what is drawn, encoded, learned and recorded, against forwards with a dense mask."""

import json
import shlex

import numpy as np
import pytest
import torch
from helpers.factored import dense_logits, plain_factored
from helpers.small_models import LABELS, tiny_model, tiny_tokenizer
from helpers.small_tokenizers import WHOLE, pair_tokenizer
from helpers.small_training import run, stop_at_the_save, write_checkpoint, write_obvious_pairs
from torch.nn import functional as F

from gram_fast.errors import InputError, UnsupportedModelError
from gram_fast.models.checkpoint import ADAPT, load_config, recorded_modes
from gram_fast.text.encoded import check_factored
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokens import PairTokenizer
from gram_fast.training import objectives
from gram_fast.training.config import RunConfig
from gram_fast.training.data.records import PairRecord
from gram_fast.training.data.sequences import TokenizedPair, collate, drawn_mode, finetune_encoder
from gram_fast.training.packed_attention import PACKED_ATTENTION

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = tiny_tokenizer()
PAIRS = {preset: PairTokenizer(TOKENIZER, PairTemplate.load(preset)) for preset in ("gram", "short")}
RECORDS = [
    PairRecord("Name a city.", "Oslo", "seven", "A", ""),
    PairRecord("Name a city.", "Oslo, or Rome", "seven", "B", ""),
    PairRecord("And a number?", "Rome, the city of seven hills", "4", "B", ""),
    PairRecord("", "", "x", "A", ""),
    PairRecord("", "y", "y", "A", ""),
]
BOTH = ("full", "factored")
LM_WEIGHT = 0.7


def parts_of(pair: TokenizedPair):
    """Ids of shared, first, second and tail of each sequence; of a full pair, all are shared but the last."""
    sizes = pair.parts if len(pair.parts) else [(length - 1, 0, 0, 1) for length in pair.lengths]
    return [
        [part.tolist() for part in np.split(ids, np.cumsum(of_ids)[:-1])]
        for ids, of_ids in zip(pair.sequences, sizes, strict=True)
    ]


@pytest.mark.parametrize("preset", sorted(PAIRS))
def test_the_tokens_are_those_of_the_full_pair_and_its_texts_are_in_parts_of_their_own(preset):
    pairs = PAIRS[preset]
    full = finetune_encoder(pairs)(RECORDS)
    factored = finetune_encoder(pairs, modes=("factored",))(RECORDS)
    for record, ours, theirs in zip(RECORDS, factored, full, strict=True):
        for name in ("input_ids", "lengths", "label_positions", "labels"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name))
        assert np.array_equal(ours.parts.sum(1), ours.lengths)
        assert theirs.parts.shape == (0, 4)
        for parts, order in zip(parts_of(ours), ["AB", "BA"], strict=True):
            shown = [record.prompt, *({"A": record.response_a, "B": record.response_b}[name] for name in order)]
            for ids, text in zip(parts, shown, strict=False):
                assert text in TOKENIZER.decode(ids)
    # What stands in front of the texts is the same in both orders.
    assert all((pair.parts[0, [0, 3]] == pair.parts[1, [0, 3]]).all() for pair in factored)


def test_a_mode_is_drawn_by_the_pair_and_the_seed():
    records = [PairRecord(f"Question {n}?", "yes", "no", "A", f"line {n}") for n in range(400)]
    drawn = [drawn_mode(record, BOTH, 7) for record in records]
    assert 150 < drawn.count("factored") < 250
    assert drawn != [drawn_mode(record, BOTH, 8) for record in records]
    encode = finetune_encoder(PAIRS["short"], modes=BOTH, seed=7)
    for some in (records[:40], records[30:50:3], records[17:18]):
        assert [len(pair.parts) > 0 for pair in encode(some)] == [drawn_mode(r, BOTH, 7) == "factored" for r in some]
    for mode in BOTH:
        assert {drawn_mode(record, (mode,), 7) for record in records} == {mode}


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("modes", [("factored",), BOTH], ids="+".join)
@pytest.mark.parametrize("name", ["qwen3", "qwen2"])
def test_the_loss_is_that_of_a_plain_forward_with_a_dense_mask(name, modes, shares):
    encoded = finetune_encoder(PAIRS["short"], modes=modes)(RECORDS)
    assert {len(pair.parts) for pair in encoded} == {2 * (mode == "factored") for mode in modes}
    model, other = (tiny_model(name, vocab_size=len(TOKENIZER)) for _ in range(2))
    model.set_attn_implementation(PACKED_ATTENTION)
    objectives.set_objective(model, objectives.label_preference(model, LABELS, 0.0))
    loss = model(**collate(encoded, shares, 16))["loss"]
    logits = np.array([plain_factored(other, parts) for pair in encoded for parts in parts_of(pair)])
    labels = torch.from_numpy(np.concatenate([pair.labels for pair in encoded])).long()
    torch.testing.assert_close(loss, F.cross_entropy(torch.from_numpy(logits), labels), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("lm_weight", [0.0, LM_WEIGHT])
def test_the_gradients_are_those_of_a_dense_mask(lm_weight, shares):
    """Next tokens of the better response are predicted on its own path: its first one behind the prompt."""
    encoded = finetune_encoder(PAIRS["short"], lm_weight, BOTH)(RECORDS)
    model, other = (tiny_model("qwen3", vocab_size=len(TOKENIZER)).requires_grad_(True) for _ in range(2))
    model.set_attn_implementation(PACKED_ATTENTION)
    objectives.set_objective(model, objectives.label_preference(model, LABELS, 0.1))
    ours = model(**collate(encoded, shares))["loss"]
    ours.backward()
    losses = []
    for record, pair in zip(RECORDS, encoded, strict=True):
        for parts, label, second in zip(parts_of(pair), pair.labels.tolist(), (False, True), strict=True):
            logits = dense_logits(other, parts)
            loss = F.cross_entropy(logits[-1:, list(LABELS)], torch.tensor([label]), label_smoothing=0.1)
            if lm_weight:
                loss = loss + lm_weight * loss_of_better(record, parts, label, second, logits, len(pair.parts) > 0)
            losses.append(loss)
    plain = torch.stack(losses).mean()
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    plain.backward()
    expected = {name: p.grad for name, p in other.named_parameters()}
    scale = max(grad.abs().max().item() for grad in expected.values())
    for name, p in model.named_parameters():
        # Sums of float32 products in another order; a wrong term would show at 1e-2.
        torch.testing.assert_close(p.grad, expected[name], rtol=0, atol=1e-5 * scale, msg=name)


def loss_of_better(record, parts, label, is_swapped, logits, is_factored):
    """Mean of -log P(next token) over the tokens that begin in the better response or right behind it."""
    a, b = (record.response_b, record.response_a) if is_swapped else (record.response_a, record.response_b)
    flat = [token for part in parts for token in part]
    [predicted] = PAIRS["short"].places([(record.prompt, a, b)], [1 + label])
    shared, first, *_ = map(len, parts)
    before = [
        shared - 1 if is_factored and place == shared + first else place - 1 for place in predicted.tolist() if place
    ]
    targets = torch.tensor([flat[place] for place in predicted.tolist() if place], dtype=torch.int64)
    return F.cross_entropy(logits[before], targets, reduction="sum") / max(1, len(before))


def test_a_judge_learns_to_read_each_response_by_itself(tmp_path):
    data = write_obvious_pairs(tmp_path / "pairs.jsonl", 32)
    out = run(
        "finetune", write_checkpoint(tmp_path / "base"), data, tmp_path / "out", mode="factored", num_train_epochs=5,
        eval_data=str(data), save_strategy="epoch", label_smoothing=0.0,
    )  # fmt: skip
    history = json.loads((out / "checkpoint-40" / "trainer_state.json").read_text())["log_history"]
    accuracies = [entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry]
    assert accuracies[-1] == 1.0
    assert recorded_modes(load_config(str(out))) == ("factored",)
    # Trained further, what it has learned last is recorded.
    again = run("finetune", out, data, tmp_path / "again", max_steps=1)
    assert recorded_modes(load_config(str(again))) == ("full",)


@pytest.mark.parametrize("more", [{"pairs_together": 2}, {"streaming": True, "lm_weight": 0.5}], ids=str)
def test_a_run_in_both_modes_goes_on_to_the_same_weights(more, base, labeled, tmp_path):
    more = {**more, "mode": "both", "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = run("finetune", base, labeled, tmp_path / "whole", **more)
    again = tmp_path / "again"
    run("finetune", base, labeled, again, resume_from_checkpoint=str(whole / "checkpoint-2"), **more)
    for name in ("model.safetensors", "config.json"):
        assert (whole / name).read_bytes() == (again / name).read_bytes()
    assert recorded_modes(load_config(str(whole))) == BOTH


def test_adapters_of_a_run_in_both_modes_are_merged_and_record_them(base, labeled, tmp_path):
    out = run("finetune", base, labeled, tmp_path / "out", mode="both", lora={"r": 4}, max_steps=3)
    for folder in (out, out / "adapter"):
        assert recorded_modes(load_config(str(folder))) == BOTH
    assert recorded_modes(load_config(str(base))) == ("full",)


def test_a_run_goes_on_in_its_mode_alone(base, labeled, tmp_path):
    more = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    stop_at_the_save(lambda: run("finetune", base, labeled, tmp_path / "out", mode="factored", **more))
    with pytest.raises(InputError, match="mode was 'factored', now it is 'both'"):
        run("finetune", base, labeled, tmp_path / "out", mode="both", resume_from_checkpoint=True, **more)


def test_the_command_that_adapts_a_judge_names_a_recipe():
    program, train, stage, name, override = shlex.split(ADAPT)
    assert (program, train) == ("gram-fast", "train")
    config, arguments = RunConfig.load(name, stage, [override, "use_cpu=true"])
    assert (config.modes, config.preset, config.model_name_or_path) == (BOTH, "auto", "CHECKPOINT")
    assert config.lora is not None
    assert arguments.num_train_epochs == 1


TEMPLATES = {
    "responses first": ("A: {response_a}\nB: {response_b}\nQ: {input}\n", "first slot is {input} .* got the slots"),
    "verifier": ("Q: {input}\nA: {response}\n", "shows two responses, got the slots {input}, {response}"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_without_two_responses_behind_the_prompt_is_refused(name, base, labeled, tmp_path):
    text, message = TEMPLATES[name]
    (tmp_path / "preset.txt").write_text(text)
    with pytest.raises(UnsupportedModelError, match=f"^mode factored: expected a template whose .*{message}"):
        run("finetune", base, labeled, tmp_path / "out", preset=str(tmp_path / "preset.txt"), mode="both")


@pytest.mark.parametrize("name", WHOLE)
def test_a_tokenizer_without_a_safe_cut_is_refused(name):
    with pytest.raises(UnsupportedModelError, match=r"^mode factored: expected a tokenizer .* without a safe cut"):
        check_factored(pair_tokenizer(name))
    check_factored(pair_tokenizer("qwen"))


@pytest.mark.parametrize("stage", ["pretrain", "scalar", "reason", "prove"])
def test_other_stages_know_no_mode(stage, base, labeled, tmp_path):
    with pytest.raises(InputError, match=rf"^mode: expected full in {stage}, .*, got 'factored'"):
        run(stage, base, labeled, tmp_path / "out", mode="factored")
    with pytest.raises(InputError, match="mode: expected full, factored or both, got 'half'"):
        run("finetune", base, labeled, tmp_path / "out", mode="half")


def test_a_judge_that_reasons_is_refused(base, labeled, tmp_path):
    with pytest.raises(InputError, match="finetune trains the label right behind the prompt"):
        run("finetune", base, labeled, tmp_path / "out", preset="gram-r2", mode="factored")


def test_a_text_that_moves_a_cut_names_its_row(monkeypatch):
    """No text of this tokenizer does: one that is said to is the third of five."""
    pieces = PairTokenizer.pieces
    monkeypatch.setattr(
        PairTokenizer,
        "pieces",
        lambda self, frame, texts: None if "moves" in (texts := list(texts)) else pieces(self, frame, texts),
    )
    records = [PairRecord("Q", "moves" if n == 2 else "yes", "no", "A", f"pairs.jsonl line {n}") for n in range(5)]
    with pytest.raises(InputError, match=r"^pairs.jsonl line 2: a text of this request moves a cut"):
        finetune_encoder(PAIRS["short"], modes=("factored",))(records)
