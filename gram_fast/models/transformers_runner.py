"""Runs packed passes through any decoder-only checkpoint of the transformers library with plain causal attention.

The model's own code computes everything but attention, which it fetches from transformers' attention interface: there
stands `tree_attention`. The output embedding is never multiplied; two of its rows are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from gram_fast import ops
from gram_fast.errors import UnsupportedModelError
from gram_fast.ops.checks import uploaded
from gram_fast.scoring.key_values import KeyValueStore
from gram_fast.scoring.processes import ALONE, Processes
from gram_fast.scoring.tree import TreePass

_ATTENTION = "gram_fast_tree"
# Arguments of transformers' attention functions that change the result in a way that tree_attention does not know.
_FOREIGN_ARGUMENTS = ("softcap", "s_aux", "sinks", "position_bias", "head_mask", "alibi")


@dataclass
class _PassContext:
    """What the attention function needs, handed through the model's forward."""

    tree_pass: TreePass
    store: KeyValueStore
    backend: str
    layers_seen: set[int] = field(default_factory=set)
    tiles: dict[int, Tensor] = field(default_factory=dict)
    """By query heads of a key/value head: the Triton backend's table, made at the first layer for all."""

    def tiles_of(self, group: int, device: torch.device) -> Tensor | None:
        """What `ops.tree_attention` takes as `tiles`."""
        if self.backend != "triton":
            return None
        if group not in self.tiles:
            tree_pass = self.tree_pass
            self.tiles[group] = ops.attention_tiles(
                tree_pass.spans, tree_pass.range_offsets, tree_pass.ranges, group, device
            )
        return self.tiles[group]


class TransformersRunner:
    """Label logits of packed passes, through the model's own layers."""

    def __init__(self, model: Any, label_ids: tuple[int, int], attention: str) -> None:
        """`model`: a causal language model of transformers, on its device, in eval mode.

        `attention`: a name for ops.resolve_backend. Raises UnsupportedModelError for an architecture whose
        attention is not plain and causal, BackendError for a backend that cannot run.
        """
        self.model: Any = model
        self.config: Any = model.config.get_text_config(decoder=True)
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.max_length, self.max_length_reason = attention_span(self.config)
        self.attention = ops.resolve_backend("tree_attention", attention, self.device, self.dtype, self._head_dim)
        if self.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise UnsupportedModelError(f"expected a model in float32, float16 or bfloat16, got {self.dtype}")
        head: Any = plain_output_embedding(model)
        self._label_backend = ops.resolve_backend("label_logits", "auto", self.device, self.dtype)
        self._labels = torch.tensor(label_ids, device=self.device)
        self._label_weight_2D = head.weight[self._labels].contiguous()
        bias = getattr(head, "bias", None)
        self._label_bias_2 = None if bias is None else bias[self._labels].float()

    @property
    def processes(self) -> Processes:
        """The model is whole."""
        return ALONE

    @property
    def bytes_per_slot(self) -> int:
        """Memory of one token's keys and values in all layers, from the configuration."""
        config = self.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * self._head_dim * self.dtype.itemsize)

    @property
    def bytes_per_token(self) -> int:
        """Memory of one token's activations, about: what the feed-forward of most decoders holds at once."""
        config = self.config
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        return int((4 * config.hidden_size + 4 * inner) * self.dtype.itemsize)

    @property
    def _head_dim(self) -> int:
        config = self.config
        return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    def forward(self, tree_pass: TreePass, store: KeyValueStore) -> Tensor:
        """Runs one pass and writes its keys and values -> label logits float32 [L, 2] on the model's device."""
        context = _PassContext(tree_pass, store, self.attention)
        with self._attend_with(_ATTENTION):
            hidden_1TD = self.model.base_model(
                input_ids=uploaded(tree_pass.input_ids, self.device)[None],
                position_ids=uploaded(tree_pass.position_ids, self.device)[None],
                use_cache=False,
                gram_fast_pass=context,
            ).last_hidden_state
        if len(context.layers_seen) != self.config.num_hidden_layers:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} cannot be scored by prefix sharing: {len(context.layers_seen)} of its "
                f"{self.config.num_hidden_layers} layers attend through transformers' attention interface"
            )
        leaf_rows_L = uploaded(tree_pass.leaf_rows, self.device)
        logits_L2 = ops.label_logits(hidden_1TD[0], leaf_rows_L, self._label_weight_2D, backend=self._label_backend)
        if self._label_bias_2 is not None:
            logits_L2 = logits_L2 + self._label_bias_2
        return torch.as_tensor(logits_L2)

    @torch.inference_mode()
    def plain_logits(self, input_ids: Tensor) -> Tensor:
        """Label logits [2], float32, of one sequence [T] by the model's plain forward: the yardstick of `forward`."""
        with self._attend_with("sdpa"):
            logits = self.model(input_ids=input_ids[None].to(self.device), use_cache=False, logits_to_keep=1).logits
        return logits[0, -1, self._labels].float()  # type: ignore[no-any-return]

    @contextmanager
    def _attend_with(self, implementation: str) -> Iterator[None]:
        before = self.config._attn_implementation
        self.config._attn_implementation = implementation
        try:
            yield
        finally:
            self.config._attn_implementation = before


def plain_output_embedding(model: Any) -> nn.Module:
    """The output embedding, whose product with the last hidden state is the logits and nothing else.

    Raises UnsupportedModelError where there is none, or where the logits are scaled.
    """
    head: nn.Module | None = model.get_output_embeddings()
    config = model.config.get_text_config(decoder=True)
    if model.base_model is model:
        raise UnsupportedModelError(f"{type(model).__name__} has no base model that gives hidden states")
    for name in ("logits_scaling", "logit_scale"):
        if getattr(config, name, 1) not in (None, 1, 1.0):
            raise UnsupportedModelError(f"model type {config.model_type!r} scales its logits by {name}")
    if head is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no output embedding to read label logits from")
    return head


def attention_span(config: Any) -> tuple[int, str]:
    """Up to how many tokens attention is plain and causal, and what sets that limit.

    Sliding and chunked attention equal plain attention on shorter sequences; so do rotary embeddings that change with
    the length. Raises UnsupportedModelError when some layer is not attention of these kinds at all.
    """
    known = {"full_attention", "sliding_attention", "chunked_attention"}
    layer_types = set(getattr(config, "layer_types", None) or ())
    if foreign := sorted(layer_types - known):
        raise UnsupportedModelError(
            f"model type {config.model_type!r} cannot be scored by prefix sharing: it has {', '.join(foreign)} layers"
        )
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None):
            raise UnsupportedModelError(f"model type {config.model_type!r} cannot be scored exactly: it sets {name}")
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "use_bidirectional_attention", False):
        raise UnsupportedModelError(f"model type {config.model_type!r} is not a causal decoder")
    limits = [(getattr(config, "max_position_embeddings", None), "max_position_embeddings")]
    if "sliding_attention" in layer_types or (not layer_types and getattr(config, "use_sliding_window", True)):
        limits.append((getattr(config, "sliding_window", None), "its sliding window; beyond, attention is not plain"))
    if "chunked_attention" in layer_types:
        limits.append((config.attention_chunk_size, "its attention chunk; beyond, attention is not plain"))
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in rope.values() if all(isinstance(v, dict) for v in rope.values()) else [rope]:
        if parameters.get("rope_type") in ("dynamic", "longrope"):
            original = parameters.get("original_max_position_embeddings") or config.max_position_embeddings
            limits.append((original, f"its {parameters['rope_type']} rotary embedding; beyond, it changes with length"))
    finite = [(limit, reason) for limit, reason in limits if limit]
    return min(finite) if finite else (2**31 - 1, "no limit known")


def check_plain_attention(module: nn.Module, key: Tensor, value: Tensor, options: dict[str, Any]) -> None:
    """Raises UnsupportedModelError when what a layer hands to its attention function is not plain and causal."""
    name = type(module).__name__
    for argument in _FOREIGN_ARGUMENTS:
        if options.get(argument) is not None:
            raise UnsupportedModelError(f"{name} cannot be scored exactly: its attention uses {argument}")
    if options.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedModelError(f"{name} cannot be scored by prefix sharing: its attention is not causal")
    if key.shape[-1] != value.shape[-1]:
        raise UnsupportedModelError(f"{name} has keys of width {key.shape[-1]} and values of {value.shape[-1]}")


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    gram_fast_pass: _PassContext | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: [1, H, T, E] queries, [1, K, T, E] keys and values -> [1, T, H, E]."""
    if gram_fast_pass is None:
        raise UnsupportedModelError(f"{type(module).__name__} does not hand its keyword arguments on to attention")
    check_plain_attention(module, key, value, options)
    layer: int = module.layer_idx  # type: ignore[assignment]
    gram_fast_pass.layers_seen.add(layer)
    k_SKE, v_SKE = gram_fast_pass.store.write(layer, key[0].transpose(0, 1), value[0].transpose(0, 1))
    tree_pass = gram_fast_pass.tree_pass
    out_THE = ops.tree_attention(
        query[0].transpose(0, 1),
        k_SKE,
        v_SKE,
        tree_pass.spans,
        tree_pass.range_offsets,
        tree_pass.ranges,
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        gram_fast_pass.backend,
        gram_fast_pass.tiles_of(query.shape[1] // key.shape[1], query.device),
    )
    return out_THE[None], None


AttentionInterface.register(_ATTENTION, _attend)
AttentionMaskInterface.register(_ATTENTION, lambda *args, **options: None)
