"""Tokens of a pass go through experts once, however many pairs read them."""

import numpy as np
import pytest
import torch
import transformers
from helpers.small_models import LABELS, VOCAB, plain

from gram_fast.models.transformers_runner import TransformersRunner
from gram_fast.scoring.engine import Engine
from gram_fast.text.encoded import EncodedRound

_SHAPE = {
    **{"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2, "initializer_range": 0.25},
}
CONFIGS = {
    "qwen3_moe": transformers.Qwen3MoeConfig(**_SHAPE, num_experts=4, moe_intermediate_size=24, head_dim=8),
    "mixtral": transformers.MixtralConfig(**_SHAPE, num_local_experts=4),
    "gpt_oss": transformers.GptOssConfig(
        **_SHAPE, num_local_experts=4, head_dim=8, sliding_window=16, rope_parameters={"rope_type": "default"}
    ),
}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", CONFIGS)
def test_experts_see_every_distinct_token_once(name):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]).eval().requires_grad_(False)
    runner = TransformersRunner(model, LABELS, "auto")
    rows = [0, 0]
    for layer, block in enumerate(model.model.layers):

        def count(_, arguments, layer=layer):
            rows[layer] += arguments[0].numel() // 32

        block.mlp.experts.register_forward_pre_hook(count)
    rng = np.random.default_rng(0)
    head, prompt, *responses = (rng.integers(0, VOCAB, n).astype(np.int32) for n in (9, 20, 11, 12, 13, 14))
    pairs = np.array([(0, 1 + i, 5 + j) for i in range(4) for j in range(4) if i != j], np.int32)
    with Engine(runner, max_batch_tokens=40).request(head) as request:
        request.add(EncodedRound([prompt, *responses, *responses], pairs, reusable=2))
        ours = request.score(more_rounds=False)
        stats = request.stats(0.0)
    assert rows == [stats.tokens_computed] * 2
    # The head, the prompt, each response, and behind each the three others.
    assert stats.tokens_computed == 9 + 20 + 50 + 3 * 50 < stats.tokens_unshared / 2
    segments = [prompt, *responses, *responses]
    sequences = [[segments[number].tolist() for number in pair] for pair in pairs]
    np.testing.assert_allclose(ours, plain(runner, head.tolist(), sequences), rtol=0, atol=1e-4)
