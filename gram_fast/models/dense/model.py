"""Llama, Qwen2, Qwen3 and Mistral as packed passes ask for them: nothing but the model.

A layer is RMSNorm, fused projection, rotary embedding, attention, RMSNorm, gated feed-forward, on one residual stream.
The last layer computes keys and values of all tokens, and everything else for the ends of leaves alone.

Shape letters: T packed tokens, L leaves, D model width, H query heads, K key/value heads, E head width, C = H + 2K,
G = 2F fused gate and up projections, F feed-forward width, V vocabulary, S key/value slots.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gram_fast import ops
from gram_fast.scoring.processes import ALONE, Processes


@dataclass(frozen=True)
class DenseShape:
    """Sizes of a model; of heads and feed-forward width, what one process has of them."""

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
    """Keys, values and attention of a pass."""

    def buffers(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values [S, K, E] of the layer."""

    def of_tokens(self, layer: int, q_THE: Tensor) -> Tensor:
        """Attention of all packed tokens -> [T, H, E]."""

    def of_leaves(self, layer: int, q_LHE: Tensor) -> Tensor:
        """Attention of the last token of each leaf -> [L, H, E]."""


Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Product of rows [T, D] with a weight [O, D], and a bias [O] or None -> [T, O]."""


@dataclass(frozen=True)
class DensePass:
    """What every layer of one pass is given, on the model's device."""

    input_ids_T: Tensor
    """int64 [T]"""
    rotation: tuple[Tensor, Tensor]
    """Cosines and sines of each token's position, float32 [T, E / 2]."""
    leaf_rows_L: Tensor
    """int64 [L]: the last token of each leaf."""
    attention: Attention
    linear: Linear
    backends: Mapping[str, str]
    """The backend of every op but attention."""


@dataclass
class DenseModel:
    """Weights, and the one forward that uses them."""

    shape: DenseShape
    embedding_VD: Tensor
    layers: list[DenseLayer]
    final_norm_D: Tensor
    label_weight_2D: Tensor
    """Rows of the output embedding for the two labels."""
    processes: Processes = ALONE
    """Among which heads and feed-forward width are divided."""

    def forward(self, given: DensePass) -> Tensor:
        """Label logits float32 [L, 2] of one pass, whose keys and values are in its buffers afterwards."""
        residual_TD = self.embedding_VD[given.input_ids_T]
        update_TD: Tensor | None = None
        *body, last = self.layers
        for index, layer in enumerate(body):
            update_TD = self._attend(index, layer, residual_TD, update_TD, given)
            update_TD = self._feed_forward(layer, residual_TD, update_TD, given)
        normed_TD = self._norm(residual_TD, update_TD, last.input_norm_D, given)
        q_LHE = self._project_ends(last, normed_TD, given)
        residual_LD = residual_TD[given.leaf_rows_L]
        attended_LHE = given.attention.of_leaves(len(body), q_LHE)
        update_LD = self._project(last, attended_LHE, given)
        update_LD = self._feed_forward(last, residual_LD, update_LD, given)
        logits_L2: Tensor = ops.label_logits(
            residual_LD + update_LD,
            torch.arange(len(residual_LD), device=residual_LD.device),
            self.label_weight_2D,
            self.final_norm_D,
            self.shape.norm_eps,
            backend=given.backends["label_logits"],
        )
        return logits_L2

    def _norm(self, residual_TD: Tensor, update_TD: Tensor | None, weight_D: Tensor, given: DensePass) -> Tensor:
        normed_TD: Tensor = ops.add_rms_norm(
            residual_TD, update_TD, weight_D, self.shape.norm_eps, backend=given.backends["add_rms_norm"]
        )
        return normed_TD

    def _attend(
        self, index: int, layer: DenseLayer, residual_TD: Tensor, update_TD: Tensor | None, given: DensePass
    ) -> Tensor:
        normed_TD = self._norm(residual_TD, update_TD, layer.input_norm_D, given)
        qkv_TCE = self._heads(given.linear(normed_TD, layer.qkv_weight, layer.qkv_bias))
        self._rotate(qkv_TCE, given.rotation, given.attention.buffers(index), layer, given)
        attended_THE = given.attention.of_tokens(index, qkv_TCE[:, : self.shape.num_heads])
        return self._project(layer, attended_THE, given)

    def _project(self, layer: DenseLayer, attended_THE: Tensor, given: DensePass) -> Tensor:
        return self.processes.sum(given.linear(attended_THE.flatten(1), layer.out_weight, layer.out_bias))

    def _feed_forward(self, layer: DenseLayer, residual_TD: Tensor, update_TD: Tensor, given: DensePass) -> Tensor:
        normed_TD = self._norm(residual_TD, update_TD, layer.post_norm_D, given)
        gate_up_TG = given.linear(normed_TD, layer.gate_up_weight, layer.gate_up_bias)
        gated_TF = ops.swiglu(gate_up_TG, backend=given.backends["swiglu"])
        return self.processes.sum(given.linear(gated_TF, layer.down_weight, layer.down_bias))

    def _project_ends(self, layer: DenseLayer, normed_TD: Tensor, given: DensePass) -> Tensor:
        """Queries [L, H, E] of the last layer, whose keys and values go to the cache for all tokens."""
        of_queries = self.shape.num_heads * self.shape.head_dim
        q_weight, kv_weight = layer.qkv_weight[:of_queries], layer.qkv_weight[of_queries:]
        q_bias = kv_bias = None
        if layer.qkv_bias is not None:
            q_bias, kv_bias = layer.qkv_bias[:of_queries], layer.qkv_bias[of_queries:]
        k_SKE, v_SKE = given.attention.buffers(self.shape.num_layers - 1)
        self._rotate(
            self._heads(given.linear(normed_TD, kv_weight, kv_bias)), given.rotation, (k_SKE, v_SKE), layer, given
        )
        q_LHE = self._heads(given.linear(normed_TD[given.leaf_rows_L], q_weight, q_bias))
        cos_TF, sin_TF = given.rotation
        of_leaves = (cos_TF[given.leaf_rows_L], sin_TF[given.leaf_rows_L])
        self._rotate(q_LHE, of_leaves, (k_SKE[:, :0], v_SKE[:, :0]), layer, given)
        return q_LHE

    def _heads(self, projected: Tensor) -> Tensor:
        """[T, C * E] as [T, C, E]."""
        return projected.view(len(projected), projected.shape[1] // self.shape.head_dim, self.shape.head_dim)

    def _rotate(
        self,
        qkv_TCE: Tensor,
        rotation: tuple[Tensor, Tensor],
        buffers: tuple[Tensor, Tensor],
        layer: DenseLayer,
        given: DensePass,
    ) -> None:
        """Finishes queries in place, keys and values into the buffers: whichever of them `qkv_TCE` holds."""
        num_heads = qkv_TCE.shape[1] - 2 * buffers[0].shape[1]
        ops.rotary_into_cache(
            qkv_TCE,
            *rotation,
            *buffers,
            layer.q_norm_E,
            layer.k_norm_E,
            self.shape.norm_eps,
            num_heads,
            backend=given.backends["rotary_into_cache"],
        )
