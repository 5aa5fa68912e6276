"""Llama, Qwen2, Qwen3 and Mistral as packed passes ask for them: nothing but the model.

A layer is RMSNorm, fused projection, rotary embedding, attention, RMSNorm, gated feed-forward, on one residual stream.
The last layer computes keys and values of all tokens, and everything else for the ends of leaves alone.

Shape letters: T packed tokens, L leaves, D model width, H query heads, K key/value heads, E head width, C = H + 2K,
G = 2F fused gate and up projections, F feed-forward width, V vocabulary, S key/value slots.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from gram_fast import ops


@dataclass(frozen=True)
class DenseShape:
    """Sizes of a model."""

    hidden_size: int
    """D"""
    intermediate_size: int
    """F"""
    num_layers: int
    num_heads: int
    """H"""
    num_kv_heads: int
    """K"""
    head_dim: int
    """E"""
    vocab_size: int
    """V"""
    norm_eps: float


@dataclass
class DenseLayer:
    """Weights of one layer; what an architecture does not have is None."""

    input_norm_D: Tensor
    qkv_weight: Tensor
    """[C * E, D]: queries, keys, values."""
    qkv_bias: Tensor | None
    q_norm_E: Tensor | None
    k_norm_E: Tensor | None
    out_weight: Tensor
    """[D, H * E]"""
    out_bias: Tensor | None
    post_norm_D: Tensor
    gate_up_weight: Tensor
    """[G, D]"""
    gate_up_bias: Tensor | None
    down_weight: Tensor
    """[D, F]"""
    down_bias: Tensor | None


class Attention(Protocol):
    """What a layer asks of the pass that it is in."""

    def buffers(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values [S, K, E] of the layer."""

    def of_tokens(self, layer: int, q_THE: Tensor) -> Tensor:
        """Attention of all packed tokens -> [T, H, E]."""

    def of_leaves(self, layer: int, q_LHE: Tensor) -> Tensor:
        """Attention of the last token of each leaf -> [L, H, E]."""


@dataclass
class DenseModel:
    """Weights, and the one forward that uses them."""

    shape: DenseShape
    embedding_VD: Tensor
    layers: list[DenseLayer]
    final_norm_D: Tensor
    label_weight_2D: Tensor
    """Rows of the output embedding for the two labels."""

    def forward(
        self,
        input_ids_T: Tensor,
        cos_TF: Tensor,
        sin_TF: Tensor,
        leaf_rows_L: Tensor,
        attention: Attention,
        backends: Mapping[str, str],
    ) -> Tensor:
        """Label logits float32 [L, 2] of one pass.

        Args:
            input_ids_T: int64 [T].
            cos_TF, sin_TF: float32 [T, E / 2], of each token's position.
            leaf_rows_L: int64 [L] on the model's device.
            attention: the pass's keys, values and attention.
            backends: of every op but attention, by name.
        """
        residual_TD = self.embedding_VD[input_ids_T]
        update_TD: Tensor | None = None
        *body, last = self.layers
        for index, layer in enumerate(body):
            normed_TD = self._norm(residual_TD, update_TD, layer.input_norm_D, backends)
            q_THE = self._project(layer, index, normed_TD, cos_TF, sin_TF, attention, backends)
            update_TD = linear(attention.of_tokens(index, q_THE).flatten(1), layer.out_weight, layer.out_bias)
            update_TD = self._feed_forward(layer, residual_TD, update_TD, backends)
        normed_TD = self._norm(residual_TD, update_TD, last.input_norm_D, backends)
        q_LHE = self._project_ends(last, normed_TD, cos_TF, sin_TF, leaf_rows_L, attention, backends)
        residual_LD = residual_TD[leaf_rows_L]
        attended_LHE = attention.of_leaves(len(body), q_LHE)
        update_LD = linear(attended_LHE.flatten(1), last.out_weight, last.out_bias)
        update_LD = self._feed_forward(last, residual_LD, update_LD, backends)
        logits_L2: Tensor = ops.label_logits(
            residual_LD + update_LD,
            torch.arange(len(leaf_rows_L), device=residual_LD.device),
            self.label_weight_2D,
            self.final_norm_D,
            self.shape.norm_eps,
            backend=backends["label_logits"],
        )
        return logits_L2

    def _norm(
        self, residual_TD: Tensor, update_TD: Tensor | None, weight_D: Tensor, backends: Mapping[str, str]
    ) -> Tensor:
        eps = self.shape.norm_eps
        normed_TD: Tensor = ops.add_rms_norm(residual_TD, update_TD, weight_D, eps, backend=backends["add_rms_norm"])
        return normed_TD

    def _feed_forward(
        self, layer: DenseLayer, residual_TD: Tensor, update_TD: Tensor, backends: Mapping[str, str]
    ) -> Tensor:
        normed_TD = self._norm(residual_TD, update_TD, layer.post_norm_D, backends)
        gate_up_TG = linear(normed_TD, layer.gate_up_weight, layer.gate_up_bias)
        return linear(ops.swiglu(gate_up_TG, backend=backends["swiglu"]), layer.down_weight, layer.down_bias)

    def _project(
        self,
        layer: DenseLayer,
        index: int,
        normed_TD: Tensor,
        cos_TF: Tensor,
        sin_TF: Tensor,
        attention: Attention,
        backends: Mapping[str, str],
    ) -> Tensor:
        """Queries [T, H, E] of a layer, whose keys and values go to the cache."""
        qkv_TCE = self._heads(linear(normed_TD, layer.qkv_weight, layer.qkv_bias))
        self._rotate(qkv_TCE, cos_TF, sin_TF, attention.buffers(index), layer, self.shape.num_heads, backends)
        return qkv_TCE[:, : self.shape.num_heads]

    def _project_ends(
        self,
        layer: DenseLayer,
        normed_TD: Tensor,
        cos_TF: Tensor,
        sin_TF: Tensor,
        leaf_rows_L: Tensor,
        attention: Attention,
        backends: Mapping[str, str],
    ) -> Tensor:
        """Queries [L, H, E] of the last layer, whose keys and values go to the cache for all tokens."""
        shape = self.shape
        k_SKE, v_SKE = attention.buffers(shape.num_layers - 1)
        of_queries = shape.num_heads * shape.head_dim
        bias = layer.qkv_bias
        kv_TCE = self._heads(
            linear(normed_TD, layer.qkv_weight[of_queries:], None if bias is None else bias[of_queries:])
        )
        self._rotate(kv_TCE, cos_TF, sin_TF, (k_SKE, v_SKE), layer, 0, backends)
        normed_LD, weight = normed_TD[leaf_rows_L], layer.qkv_weight[:of_queries]
        q_LHE = self._heads(linear(normed_LD, weight, None if bias is None else bias[:of_queries]))
        nowhere = (k_SKE[:, :0], v_SKE[:, :0])
        cos_LF, sin_LF = cos_TF[leaf_rows_L], sin_TF[leaf_rows_L]
        self._rotate(q_LHE, cos_LF, sin_LF, nowhere, layer, shape.num_heads, backends)
        return q_LHE

    def _heads(self, projected: Tensor) -> Tensor:
        """[T, C * E] as [T, C, E]."""
        return projected.view(len(projected), projected.shape[1] // self.shape.head_dim, self.shape.head_dim)

    def _rotate(
        self,
        qkv_TCE: Tensor,
        cos_TF: Tensor,
        sin_TF: Tensor,
        buffers: tuple[Tensor, Tensor],
        layer: DenseLayer,
        num_heads: int,
        backends: Mapping[str, str],
    ) -> None:
        ops.rotary_into_cache(
            qkv_TCE,
            cos_TF,
            sin_TF,
            *buffers,
            layer.q_norm_E,
            layer.k_norm_E,
            self.shape.norm_eps,
            num_heads,
            backend=backends["rotary_into_cache"],
        )
