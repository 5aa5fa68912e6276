"""Tiny random models and judges for tests. Weights are large enough that attention matters to the logits."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from gram_fast.judge import PairwiseJudge
from gram_fast.models.transformers_runner import TransformersRunner
from gram_fast.scoring.engine import Engine
from gram_fast.text.encoded import EncodedRound
from gram_fast.text.prompts import PairTemplate
from gram_fast.training.small_judge.tokenizer import make_qwen_tokenizer

VOCAB = 96
LABELS = (5, 7)
_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
}
CONFIGS: dict[str, Any] = {
    "qwen3": lambda **more: transformers.Qwen3Config(**{**_SHAPE, "head_dim": 12, **more}),
    "qwen2": lambda **more: transformers.Qwen2Config(**{**_SHAPE, **more}),
    "llama": lambda **more: transformers.LlamaConfig(**{**_SHAPE, "num_key_value_heads": 4, **more}),
    "mistral": lambda **more: transformers.MistralConfig(
        **{**_SHAPE, "num_key_value_heads": 1, "sliding_window": None, **more}
    ),
    # One more way to do everything: parallel blocks, LayerNorm, partial rotary embedding, no grouped heads.
    "gpt_neox": lambda **more: transformers.GPTNeoXConfig(
        **{k: v for k, v in _SHAPE.items() if k != "num_key_value_heads"} | more
    ),
}
KINDS: dict[str, Any] = {
    # Layers with windows beside full ones; queries, keys and values have norms, layers four.
    "gemma3": lambda **more: transformers.Gemma3TextConfig(
        **{**_SHAPE, "num_hidden_layers": 3, "head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 9}
        | {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], **more}
    ),
    # Soft caps of scores and of logits, which bite.
    "gemma2": lambda **more: transformers.Gemma2Config(
        **{**_SHAPE, "head_dim": 12, "query_pre_attn_scalar": 2, "sliding_window": 7}
        | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0, **more}
    ),
    # Windows, sinks, experts.
    "gpt_oss": lambda **more: transformers.GptOssConfig(
        **{**_SHAPE, "head_dim": 12, "sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, **more}
    ),
    # Chunks of the text in place of windows; queries of layers without rotation are scaled by position. One expert: the
    # largest errors in bfloat16 of a model with two are those of tokens that went to the other.
    "llama4": lambda **more: transformers.Llama4TextConfig(
        **{**_SHAPE, "head_dim": 12, "attention_chunk_size": 8, "intermediate_size_mlp": 48, "num_local_experts": 1}
        | {"floor_scale": 8, "attn_scale": 0.3}
        | {"layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0], **more}
    ),
    "mixtral": lambda **more: transformers.MixtralConfig(
        **{**_SHAPE, "num_local_experts": 4, "sliding_window": None, **more}
    ),
    "qwen3_moe": lambda **more: transformers.Qwen3MoeConfig(
        **{**_SHAPE, "head_dim": 12, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, **more}
    ),
}
"""Families with other layers than plain attention and one feed-forward."""

_LINEAR_SHAPE = {**_SHAPE, "num_hidden_layers": 4, "initializer_range": 0.15, "pad_token_id": None}
_DELTA = {
    "head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 16,
    "mamba_expand": 2,
}
_GRANITE = {
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    "num_local_experts": 0,
    "shared_intermediate_size": 48,
    "logits_scaling": 1.0,
}
_NEMOTRON = {
    "layers_block_type": ["linear_attention", "full_attention", "mlp", "linear_attention"],
    "head_dim": 12,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 8,
    "n_groups": 2,
    "chunk_size": 16,
}
_ZAMBA = {
    "layers_block_type": ["mamba", "hybrid", "hybrid", "mamba"],
    "num_mem_blocks": 1,
    "n_mamba_heads": 4,
    "mamba_d_state": 8,
    "mamba_ngroups": 2,
    "chunk_size": 16,
    "use_mem_rope": True,
}
_CONV_OR_ATTENTION = ["conv", "full_attention", "conv", "conv"]
# Decoders with layers that are no attention: gated delta nets, Mamba-2, short convolutions.
LINEAR_CONFIGS: dict[str, Any] = {
    "qwen3_next": lambda **more: transformers.Qwen3NextConfig(
        **{**_LINEAR_SHAPE, **_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 24, **more}
    ),
    "qwen3_5": lambda **more: transformers.Qwen3_5TextConfig(**{**_LINEAR_SHAPE, **_DELTA, **more}),
    "qwen3_5_moe": lambda **more: transformers.Qwen3_5MoeTextConfig(
        **{**_LINEAR_SHAPE, **_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 24, **more}
    ),
    "olmo_hybrid": lambda **more: transformers.OlmoHybridConfig(
        **{**_LINEAR_SHAPE, **_DELTA, "eos_token_id": None, **more}
    ),
    "granitemoehybrid": lambda **more: transformers.GraniteMoeHybridConfig(
        **{**_LINEAR_SHAPE, **_MAMBA, **_GRANITE, **more}
    ),
    "bamba": lambda **more: transformers.BambaConfig(**{**_LINEAR_SHAPE, **_MAMBA, "attn_layer_indices": [1], **more}),
    "nemotron_h": lambda **more: transformers.NemotronHConfig(
        **{**{k: v for k, v in _LINEAR_SHAPE.items() if k != "num_hidden_layers"}, **_NEMOTRON, **more}
    ),
    "falcon_h1": lambda **more: transformers.FalconH1Config(**{**_LINEAR_SHAPE, **_MAMBA, "mamba_d_ssm": 64, **more}),
    # Its layers with attention share one module.
    "zamba2": lambda **more: transformers.Zamba2Config(**{**_LINEAR_SHAPE, **_ZAMBA, **more}),
    "lfm2": lambda **more: transformers.Lfm2Config(**{**_LINEAR_SHAPE, "layer_types": _CONV_OR_ATTENTION, **more}),
    "lfm2_moe": lambda **more: transformers.Lfm2MoeConfig(
        **{**_LINEAR_SHAPE, **_EXPERTS, "num_dense_layers": 1, "layer_types": _CONV_OR_ATTENTION, **more}
    ),
}


def tiny_model(name: str, seed: int = 0, **more: Any) -> Any:
    """A random causal language model of that family in eval mode."""
    torch.manual_seed(seed)
    config = (CONFIGS | KINDS | LINEAR_CONFIGS)[name](**more)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("sinks"):  # which are zeros at first
            parameter.normal_()
    return model


def tiny_runner(name: str, **more: Any) -> TransformersRunner:
    return TransformersRunner(tiny_model(name, **more), LABELS, "auto")


def tiny_tokenizer(vocab_size: int = 600) -> Any:
    """A Qwen-like tokenizer trained on some presets."""
    presets = ("gram", "gram-demo", "short")
    return make_qwen_tokenizer(["".join(PairTemplate.load(preset).literals) for preset in presets], vocab_size)


def tiny_judge(**options: Any) -> PairwiseJudge:
    """A judge with the `gram` prompt on a tiny Qwen3 model."""
    tokenizer = tiny_tokenizer()
    model = tiny_model("qwen3", vocab_size=len(tokenizer), max_position_embeddings=4096)
    return PairwiseJudge.from_model(model, tokenizer, **options)


def write_judge(folder: Path, name: str = "qwen3", **more: Any) -> Path:
    """The checkpoint of a tiny random judge: its model and its tokenizer."""
    tokenizer = tiny_tokenizer()
    tiny_model(name, **{"vocab_size": len(tokenizer), "max_position_embeddings": 4096, **more}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def score(
    engine: Engine,
    head: list[int],
    rounds: list[list[list[list[int]]]],
    reusable: int = 2,
    token_ids: tuple[int, ...] | None = None,
) -> list[np.ndarray]:
    """Logits of rounds of sequences, each a list of segments behind `head`, in one request."""
    results = []
    with engine.request(np.array(head, np.int32), token_ids) as request:
        for number, sequences in enumerate(rounds):
            for sequence in sequences:
                row = np.arange(request.num_segments, request.num_segments + len(sequence), dtype=np.int32)
                segments = [np.array(ids, np.int32) for ids in sequence]
                request.add(EncodedRound(segments, row[None], reusable))
            results.append(request.score(more_rounds=number + 1 < len(rounds)))
    return results


def plain(runner: TransformersRunner, head: list[int], sequences: list[list[list[int]]]) -> np.ndarray:
    """The same logits, one plain forward a sequence."""
    whole = [torch.tensor([*head, *(token for segment in sequence for token in segment)]) for sequence in sequences]
    return torch.stack([runner.plain_logits(ids) for ids in whole]).numpy()
