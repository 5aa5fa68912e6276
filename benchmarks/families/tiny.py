"""Tiny random models of the causal language models that transformers knows, made by rules from default configurations.

Every size is made small by its name. Of layers, one of each kind stays. Windows and chunks become shorter than the
sequences that are scored, so that they matter; weights are large, and those that begin as constants are moved a little,
so that wrong attention shows in the logits.
"""

from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 96
WINDOW = 8

FAMILIES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

# What settings become, by name; None, 0 and what is smaller stays.
_SIZES = """
96: vocab_size vocab_size_per_layer_input audio_vocab_size pronunciation_vocab_size shape_vocab_size
    unpadded_vocab_size encoder_hash_byte_group_vocab ngram_vocab_size_base
32: hidden_size d_model n_embd dim_model emb_dim embedding_dim word_embed_proj_dim embedding_size lru_width
    backbone_hidden_size input_embedding_size output_embedding_size hidden_size_global pronunciation_embed_dim
    shape_embed_dim dim_model_base hc_lowrank ple_embed_dim
48: intermediate_size intermediate_size_mlp ffn_dim encoder_ffn_dim decoder_ffn_dim ffn_hidden_size n_inner
    moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size feed_forward_size dff dim_ff
    dense_intermediate_size shared_intermediate_size moe_shared_expert_intermediate_size d_inner
    prefix_dense_intermediate_size
4: num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads decoder_attention_heads
    num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads num_attention_heads_per_layer
4: num_experts num_local_experts n_routed_experts moe_num_experts zero_expert_num
2: num_experts_per_tok num_experts_per_token moe_topk moe_k top_k_experts n_group n_shared_experts
    moe_num_shared_experts num_shared_experts
2: num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads num_global_key_value_heads num_query_groups
8: head_dim swa_head_dim global_head_dim dim_head d_head kv_channels attention_head_size v_head_dim qk_nope_head_dim
    query_pre_attn_scalar
4: qk_rope_head_dim rotary_dim
16: kv_lora_rank q_lora_rank o_lora_rank router_hidden_size
8: index_head_dim indexer_head_dim index_topk d_rel gated_norm_rank laurel_rank adapter_rank
    hidden_size_per_layer_input
2: index_n_heads indexer_n_heads index_topk_blocks o_groups num_random_blocks hc_sinkhorn_iters hc_count hc_mult
    heads_per_ngram num_mem_blocks num_codebooks
4: mamba_n_heads mamba_num_heads linear_num_value_heads linear_num_heads
2: linear_num_key_heads n_mamba_heads n_groups mamba_n_groups mamba_ngroups
16: mamba_d_head mamba_head_dim
8: linear_key_head_dim linear_value_head_dim linear_head_dim mamba_d_state state_size ssm_state_size
64: mamba_d_ssm
4: mamba_dt_rank time_step_rank chunk_size mamba_chunk_size block_size index_block_size
8: sliding_window sliding_window_size attention_window_size window_size local_attention keep_window_size
    attention_chunk_size floor_scale local_attn_chunk_length lsh_attn_chunk_length
2: encoder_layers decoder_layers num_encoder_layers num_decoder_layers n_layer n_layers num_layers num_blocks
    num_hidden_layers num_layers_per_stack attn_layer_period interleave_moe_layer_step no_rope_layer_interval
1: first_k_dense_replace num_dense_layers topk_group attn_layer_offset expert_layer_offset moe_layer_start_index
"""


def _limits(table: str) -> dict[str, int]:
    limits, size = {}, 0
    for word in table.split():
        if word.endswith(":"):
            size = int(word[:-1])
        else:
            limits[word] = size
    return limits


_LIMITS = _limits(_SIZES)
_CHOICES = {
    "initializer_range": 0.25,
    "init_std": 0.25,
    "embedding_initializer_range": 0.25,
    "embed_init_std": 0.25,
    "is_decoder": True,
}
# What a default configuration sets so that it has little effect, or none.
_STRONG = {
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 2.0,
    "output_logit_soft_cap": 2.0,
    "logits_soft_cap": 2.0,
    "logits_scaling": 4.0,
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.5,
    "lm_head_multiplier": 0.5,
}
_FULL = "full_attention"
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

# What rules do not find: settings that must fit each other, and what defaults leave out.
_SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), _ROPE | {"mrope_section": [1, 1, 2]}),
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_head": 16},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "intermediate_size": [48] * 4,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
    },
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"num_hidden_layers": 4},
    "mamba2": {"head_dim": 16},
    "minicpm3": {"dim_model_base": 8},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"]},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "reformer": {
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [8, 64],
        "attn_layers": ["local", "lsh"],
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3},
}


def tiny_config(name: str) -> Any:
    """The configuration of a tiny decoder of that family."""
    config_class = CONFIG_MAPPING[name]
    return config_class(**_shrunk(config_class().to_dict()) | _SETTINGS.get(name, {}))


def with_windows(config: Any) -> Any:
    """The configuration with windows, where its family knows them and has none by default; None elsewhere."""
    settings = config.to_dict()
    kinds = settings.get("layer_types")
    if "sliding_window" not in settings or (settings["sliding_window"] and kinds is None) or set(kinds or ()) - {_FULL}:
        return None
    more: dict[str, Any] = {"sliding_window": WINDOW, "use_sliding_window": True}
    if kinds:
        more["layer_types"] = [*kinds[:-1], "sliding_attention"]
    return type(config)(**settings | {name: value for name, value in more.items() if name in settings})


def _shrunk(settings: dict[str, Any]) -> dict[str, Any]:
    """Those settings of a default configuration that a tiny one has otherwise."""
    small: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and "model_type" in value:
            kind = value["model_type"]
            small[name] = {"model_type": kind} | _shrunk(value) | _SETTINGS.get(kind, {})
        elif name in _CHOICES:
            small[name] = _CHOICES[name]
        elif name in _STRONG and value is not None:
            small[name] = _STRONG[name]
        elif name in _LIMITS and type(value) is int:
            small[name] = min(value, _LIMITS[name])
        elif name.endswith("_token_id"):
            small[name] = None if value is None else 0
    if "head_dim" in settings and "qk_rope_head_dim" in settings:
        small["head_dim"] = _LIMITS["qk_rope_head_dim"]
    elif settings.get("head_dim", 0) is None:
        small["head_dim"] = _LIMITS["head_dim"]
    if settings.get("num_key_value_heads", 0) in (None, settings.get("num_attention_heads")):
        small["num_key_value_heads"] = _LIMITS["num_attention_heads"]
    return small | _few_layers(settings)


def _few_layers(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with one entry a layer, and the number of layers, for one layer of each kind."""
    count = next((settings[name] for name in _COUNTS if settings.get(name)), None)
    lists = {name: values for name, values in settings.items() if isinstance(values, list) and len(values) == count}
    # Lists of the indices of all layers.
    indices = [name for name, values in lists.items() if values == list(range(len(values)))]
    lists = {name: values for name, values in lists.items() if name not in indices}
    if not lists:
        return {name: [0, 1] for name in indices}
    kept = one_of_each(list(zip(*lists.values(), strict=True)))
    small: dict[str, Any] = {name: len(kept) for name in _COUNTS if name in settings}
    small |= {name: list(range(len(kept))) for name in indices}
    for name, values in lists.items():
        limit = _LIMITS.get(name)
        small[name] = [values[index] if limit is None else min(values[index], limit) for index in kept]
    return small


def one_of_each(kinds: list[Any]) -> list[int]:
    """Indices of the first layer of each kind, in order: two or more."""
    first = [index for index, kind in enumerate(kinds) if kind not in kinds[:index]]
    return first if len(first) > 1 else [0, 1]


def tiny_model(config: Any) -> Any:
    """A random causal language model of that configuration in eval mode, in float32."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.numel() == 1 or weight.std() == 0:
            weight += 0.1 * torch.randn_like(weight)
    return model
