"""Stage 2 with language modelling of the better response: which tokens are predicted, and the loss and gradients."""

from itertools import accumulate

import pytest
import torch
from helpers.small_models import tiny_model, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gram_fast.errors import UnsupportedModelError
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokens import PairTokenizer
from gram_fast.training import objectives
from gram_fast.training.data.records import PairRecord
from gram_fast.training.data.sequences import collate, finetune_encoder
from gram_fast.training.packed_attention import PACKED_ATTENTION

TOKENIZER = tiny_tokenizer()
PAIRS = {preset: PairTokenizer(TOKENIZER, PairTemplate.load(preset)) for preset in ("gram", "short", "genrm")}
# Of single bytes, so that every token is text by itself.
TEXT = st.text(st.characters(max_codepoint=126, min_codepoint=9), max_size=20) | st.sampled_from(
    ["<|im_end|>", "\n\n", "[Answer B]\n", " ", "A"]
)
RECORDS = [
    PairRecord("Name a city.", "Oslo", "seven", "A", ""),
    PairRecord("And a number?", "Rome, the city of seven hills", "4", "B", ""),
    PairRecord("", "", "x", "A", ""),
]
LM_WEIGHT = 0.7


@given(TEXT, TEXT, TEXT, st.sampled_from("AB"), st.sampled_from(sorted(PAIRS)))
@settings(max_examples=60, deadline=None)
def test_what_begins_in_the_better_response_or_behind_it_is_predicted(prompt, a, b, preferred, preset):
    pairs = PAIRS[preset]
    [pair] = finetune_encoder(pairs, LM_WEIGHT)([PairRecord(prompt, a, b, preferred, "")])
    expected = []
    for start, order in ((0, "AB"), (pair.lengths[0], "BA")):
        texts = [prompt, *({"A": a, "B": b}[name] for name in order)]
        ids = pairs.whole_ids([texts])[0]
        begins = list(accumulate((len(TOKENIZER.decode(token)) for token in ids), initial=0))
        better = 1 + order.index(preferred)
        length, texts[better] = len(texts[better]), "\ue000"
        begin = pairs.text.fill(*texts).index("\ue000")
        expected += [start + n - 1 for n in range(len(ids)) if begin <= begins[n] <= begin + length]
    assert pair.next_positions.tolist() == expected


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_the_label_and_the_weighted_mean_over_the_response(smoothing, shares, tied):
    pairs = PAIRS["short"]
    encoded = finetune_encoder(pairs, LM_WEIGHT)(RECORDS)
    shape = {"vocab_size": len(TOKENIZER), "tie_word_embeddings": tied}
    model, other = (tiny_model("qwen3", **shape).requires_grad_(True) for _ in range(2))
    model.set_attn_implementation(PACKED_ATTENTION)
    objectives.set_objective(model, objectives.label_preference(model, pairs.label_ids, smoothing))
    ours = model(**collate(encoded, shares))["loss"]
    losses = []
    for record, pair in zip(RECORDS, encoded, strict=True):
        ends = pair.lengths.cumsum()
        better = record.response_a if record.preferred == "A" else record.response_b
        for label, start, end in zip(pair.labels, ends - pair.lengths, ends, strict=True):
            ids = torch.from_numpy(pair.input_ids[start:end]).long()
            logits = other(input_ids=ids[None]).logits[0]
            place = pair.next_positions[(pair.next_positions >= start) & (pair.next_positions < end)] - start
            assert better in TOKENIZER.decode(ids[place + 1])
            of_label = F.cross_entropy(
                logits[-1:, list(pairs.label_ids)], torch.tensor([label]).long(), label_smoothing=smoothing
            )
            of_response = F.cross_entropy(logits[place], ids[place + 1], reduction="sum") / max(1, len(place))
            losses.append(of_label + LM_WEIGHT * of_response)
    plain = torch.stack(losses).mean()
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    ours.backward()
    plain.backward()
    expected = {name: p.grad for name, p in other.named_parameters()}
    scale = max(grad.abs().max().item() for grad in expected.values())
    for name, p in model.named_parameters():
        # Sums of float32 products in another order; a wrong term would show at 1e-2.
        torch.testing.assert_close(p.grad, expected[name], rtol=0, atol=1e-5 * scale, msg=name)


def test_without_a_weight_there_are_the_labels_alone():
    batch = collate(finetune_encoder(PAIRS["short"])(RECORDS))
    assert not [key for key in batch if key.startswith("next")]
    joint = collate(finetune_encoder(PAIRS["short"], LM_WEIGHT)(RECORDS))
    for key, value in batch.items():
        torch.testing.assert_close(joint[key], value, rtol=0, atol=0)


def test_weights_of_rows_are_factors_of_their_losses(monkeypatch):
    monkeypatch.setattr(objectives, "_CHUNK_ELEMENTS", 96 * 5)
    torch.manual_seed(0)
    hidden, weight, of_row = torch.randn(13, 8), torch.randn(96, 8), torch.rand(13)
    targets = torch.randint(96, (13,))
    results = []
    for loss in (
        objectives.linear_cross_entropy,
        lambda h, w, t, r: (r * F.cross_entropy(h @ w.T, t, reduction="none")).sum(),
    ):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        value = loss(h, w, targets, of_row)
        (3 * value).backward()
        results.append((value.detach(), h.grad, w.grad))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_an_output_embedding_with_a_bias_is_refused():
    model = tiny_model("qwen3", vocab_size=len(TOKENIZER), tie_word_embeddings=False)
    model.lm_head = torch.nn.Linear(32, len(TOKENIZER))
    model.set_attn_implementation(PACKED_ATTENTION)
    objectives.set_objective(model, objectives.label_preference(model, PAIRS["short"].label_ids, 0.1))
    with pytest.raises(UnsupportedModelError, match="output embedding with a bias"):
        model(**collate(finetune_encoder(PAIRS["short"], LM_WEIGHT)(RECORDS)))
