"""Log probabilities of proofs against plain forwards, and the score against its formula."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.small_models import tiny_model

from gram_fast.errors import UnsupportedModelError
from gram_fast.training.self_training.proof_scores import ProofScore, score_proofs, separator


def plain(model, before, proof):
    """Sum of log P(token) over a proof's tokens, of one forward of transformers with all logits."""
    ids = torch.tensor([[*before, *proof]])
    log_p = model(input_ids=ids).logits[0].double().log_softmax(-1)
    places = range(len(before) - 1, len(before) + len(proof) - 1)
    return float(sum(log_p[place, token] for place, token in zip(places, proof, strict=True)))


@pytest.mark.parametrize("name", ["qwen3", "llama", "mistral", "gpt_neox"])
@pytest.mark.parametrize("start", [3, 90], ids=["the prompt begins with the separator", "it does not"])
def test_log_probabilities_are_those_of_plain_forwards(name, start):
    model = tiny_model(name)
    rng = np.random.default_rng(1)
    prompt = np.array([start, *rng.integers(0, 96, 40)], np.int32)
    common = rng.integers(0, 96, 7)
    # One of a single token, two with a common beginning, one twice.
    proofs = [rng.integers(0, 96, 1), *(np.append(common, rng.integers(0, 96, n)) for n in (3, 20)), common, common]
    proofs = [np.array(ids, np.int32) for ids in proofs]
    attention = model.config._attn_implementation
    found = score_proofs(model, prompt, proofs, 3)
    assert model.config._attn_implementation == attention
    for one, proof in zip(found, proofs, strict=True):
        assert one.in_context == pytest.approx(plain(model, prompt, proof), abs=1e-4)
        assert one.alone == pytest.approx(plain(model, [3], proof), abs=1e-4)
        assert one.score == pytest.approx(-plain(model, prompt, proof) / plain(model, [3], proof), abs=1e-4)
    assert found[3] == found[4]
    assert len({one.in_context for one in found}) == 4


def test_log_probabilities_are_summed_in_chunks_of_the_vocabulary(monkeypatch):
    model = tiny_model("qwen3")
    prompt, proofs = np.arange(9, dtype=np.int32), [np.arange(30, dtype=np.int32), np.arange(50, 62, dtype=np.int32)]
    whole = score_proofs(model, prompt, proofs, 1)
    monkeypatch.setattr("gram_fast.training.objectives._CHUNK_ELEMENTS", 5 * 96)
    for one, other in zip(score_proofs(model, prompt, proofs, 1), whole, strict=True):
        assert one.in_context == pytest.approx(other.in_context, abs=1e-4)
        assert one.alone == pytest.approx(other.alone, abs=1e-4)


def test_a_proof_that_is_likely_in_context_and_unlikely_alone_is_better():
    #                 in context, alone: score
    scores = {(-1.0, -10.0): -0.1, (-2.0, -10.0): -0.2, (-2.0, -4.0): -0.5, (-8.0, -4.0): -2.0, (0.0, -4.0): 0.0}
    for (in_context, alone), score in scores.items():
        assert ProofScore(in_context, alone).score == pytest.approx(score)
        assert ProofScore(in_context, alone).score <= 0
    for bad in ((-1.0, 0.0), (math.nan, -1.0), (-1.0, -math.inf), (-math.inf, -1.0), (-1.0, math.nan)):
        assert ProofScore(*bad).score == -math.inf


def test_a_proof_stands_alone_behind_the_first_of_three_tokens():
    def tokenizer(bos, eos, pad):
        return SimpleNamespace(bos_token_id=bos, eos_token_id=eos, pad_token_id=pad)

    assert separator(tokenizer(0, 2, 3)) == 0
    assert separator(tokenizer(None, 2, 3)) == 2
    assert separator(tokenizer(None, None, 3)) == 3
    with pytest.raises(UnsupportedModelError, match="bos_token, eos_token or pad_token"):
        separator(tokenizer(None, None, None))
