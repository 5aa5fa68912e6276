"""The forward pass of Llama, Qwen2, Qwen3 and Mistral over packed tokens.

A layer is RMSNorm, fused projection, rotary embedding, attention, RMSNorm and gated feed-forward, on one residual
stream. The last layer computes keys and values of all tokens, and everything else for the last token of each leaf
alone.

Shape letters: T packed tokens, L leaves, D model width, H query heads, K key/value heads, E head width, C = H + 2K,
G = 2F fused gate and up projections, F feed-forward width, V vocabulary, S key/value slots.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gram_fast.models.dense.products import Multiply, Weight
from gram_fast.ops.label_logits import LabelLogits
from gram_fast.ops.rotary_into_cache import RotaryIntoCache
from gram_fast.scoring.processes import ALONE, Processes


@dataclass(frozen=True)
class DenseShape:
    """Sizes of a model; heads and feed-forward width are those of one process."""

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
class Projection:
    """A weight [outputs, inputs], in the layout that the product of the runner wants, and its bias [outputs]."""

    weight: Weight
    bias: Tensor | None


@dataclass
class DenseLayer:
    """Weights of one layer; None for those that the architecture does not have."""

    input_norm_D: Tensor
    qkv: tuple[Projection, ...]
    """D to C * E: queries, keys, values. In the last layer two: D to H * E, queries; D to 2K * E, keys and values."""
    q_norm_E: Tensor | None
    k_norm_E: Tensor | None
    out: Projection
    """H * E to D"""
    post_norm_D: Tensor
    gate_up: Projection
    """D to G"""
    down: Projection
    """F to D"""

    @property
    def projections(self) -> tuple[Projection, ...]:
        """All weights of products."""
        return (*self.qkv, self.out, self.gate_up, self.down)


Buffers = tuple[Tensor, Tensor]
"""Keys and values [S, K, E] of one layer."""
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(queries [rows, H, E], keys [S, K, E], values [S, K, E]) -> attention [rows, H, E], contiguous."""


ProjectOnto = Callable[[Tensor, Any, Any, Tensor | None], Tensor | None]
"""(residual_TO, x_TD, a prepared Weight, bias_O or None) -> [T, O], for the next norm to add to the residual stream, or
None where it was added in place."""


@dataclass(frozen=True)
class Operations:
    """Ops of a layer, bound to backends when the model is loaded. They trust their arguments."""

    norm: Callable[[Tensor, Tensor | None, Tensor, float], Any]
    """`add_rms_norm`, or one that also quantizes: its result goes to `project`, or rows of it."""
    project: Multiply
    project_onto: ProjectOnto
    """Product for the residual stream, with a part of a weight's columns: summed over the processes that hold the other
    parts."""
    rotate: RotaryIntoCache
    activate: Callable[[Tensor], Any]
    """`swiglu`, or one that also quantizes: its result goes to `project_onto`."""
    read_labels: LabelLogits


@dataclass(frozen=True)
class DensePass:
    """Inputs of the layers for one pass, on the model's device."""

    input_ids_T: Tensor
    """int64 [T]"""
    rotation: tuple[Tensor, Tensor]
    """Cosines and sines of each token's position, float32 [T, E / 2]."""
    leaf_rows_L: Tensor
    """int64 [L]: packed row of each leaf's last token."""
    buffers: Sequence[Buffers]
    """Key/value buffers of every layer."""
    attend: Sequence[Attend]
    """Attention of all packed tokens, in every layer."""
    attend_leaves: Attend
    """Attention of the last token of each leaf, in the last layer."""


@dataclass
class DenseModel:
    """Weights of a model and its forward."""

    shape: DenseShape
    embedding_VD: Tensor
    layers: list[DenseLayer]
    final_norm_D: Tensor
    label_weight_2D: Tensor
    """Rows of the output embedding for the two label tokens."""
    processes: Processes = ALONE
    """Processes among which heads and feed-forward width are divided."""
    read_output: Callable[[], Iterable[Tensor]] = tuple
    """Reads the output embedding, which no pass needs, from where it is stored -> its rows [C, D], in chunks."""
    quantization: str | None = None
    """One of QUANTIZATIONS (fp8.py) that the weights of all products were quantized by, or None."""

    def forward(self, ops: Operations, given: DensePass) -> Tensor:
        """Runs one pass and writes its keys and values into its buffers -> label logits float32 [L, 2]."""
        residual_TD = self.embedding_VD[given.input_ids_T]
        update_TD: Tensor | None = None
        for layer, buffers, attend in zip(self.layers[:-1], given.buffers, given.attend, strict=False):
            update_TD = self._attention(ops, layer, attend, given.rotation, buffers, residual_TD, update_TD)
            update_TD = self._feed_forward(ops, layer, residual_TD, update_TD)
        return self._last_layer(ops, given, residual_TD, update_TD)

    def _last_layer(self, ops: Operations, given: DensePass, residual_TD: Tensor, update_TD: Tensor | None) -> Tensor:
        """Runs the last layer and the label logits; after keys and values, for the last tokens of leaves alone."""
        layer, buffers = self.layers[-1], given.buffers[-1]
        normed_TD = ops.norm(residual_TD, update_TD, layer.input_norm_D, self.shape.norm_eps)
        q, kv = layer.qkv
        self._rotate(ops, layer, self._heads(ops.project(normed_TD, kv.weight, kv.bias)), given.rotation, buffers)
        rows_L, (cos_TF, sin_TF) = given.leaf_rows_L, given.rotation
        q_LHE = self._heads(ops.project(normed_TD[rows_L], q.weight, q.bias))
        no_heads = (buffers[0][:, :0], buffers[1][:, :0])
        self._rotate(ops, layer, q_LHE, (cos_TF[rows_L], sin_TF[rows_L]), no_heads)
        residual_LD = residual_TD[rows_L]
        attended_LHE = given.attend_leaves(q_LHE, *buffers)
        update_LD = ops.project_onto(residual_LD, attended_LHE.flatten(1), layer.out.weight, layer.out.bias)
        update_LD = self._feed_forward(ops, layer, residual_LD, update_LD)
        every_L = torch.arange(len(residual_LD), device=residual_LD.device)
        hidden_LD = residual_LD if update_LD is None else residual_LD + update_LD
        return ops.read_labels(hidden_LD, every_L, self.label_weight_2D, self.final_norm_D, self.shape.norm_eps)

    def _attention(
        self,
        ops: Operations,
        layer: DenseLayer,
        attend: Attend,
        rotation: tuple[Tensor, Tensor],
        buffers: Buffers,
        residual_TD: Tensor,
        update_TD: Tensor | None,
    ) -> Tensor | None:
        """Attention with its norm and projections. Its activations are gone before those of the feed-forward come."""
        normed_TD = ops.norm(residual_TD, update_TD, layer.input_norm_D, self.shape.norm_eps)
        (qkv,) = layer.qkv
        qkv_TCE = self._heads(ops.project(normed_TD, qkv.weight, qkv.bias))
        self._rotate(ops, layer, qkv_TCE, rotation, buffers)
        attended_THE = attend(qkv_TCE[:, : self.shape.num_heads], *buffers)
        return ops.project_onto(residual_TD, attended_THE.flatten(1), layer.out.weight, layer.out.bias)

    def _feed_forward(
        self, ops: Operations, layer: DenseLayer, residual_TD: Tensor, update_TD: Tensor | None
    ) -> Tensor | None:
        normed_TD = ops.norm(residual_TD, update_TD, layer.post_norm_D, self.shape.norm_eps)
        gated_TF = ops.activate(ops.project(normed_TD, layer.gate_up.weight, layer.gate_up.bias))
        return ops.project_onto(residual_TD, gated_TF, layer.down.weight, layer.down.bias)

    def _heads(self, projected: Tensor) -> Tensor:
        """Views [T, C * E] as [T, C, E]."""
        return projected.view(projected.shape[0], projected.shape[1] // self.shape.head_dim, self.shape.head_dim)

    def _rotate(
        self, ops: Operations, layer: DenseLayer, qkv_TCE: Tensor, rotation: tuple[Tensor, Tensor], buffers: Buffers
    ) -> None:
        """Runs `rotary_into_cache` on the queries, on the keys and values, or on all, as `qkv_TCE` holds them."""
        num_heads = qkv_TCE.shape[1] - 2 * buffers[0].shape[1]
        norms = layer.q_norm_E, layer.k_norm_E
        ops.rotate(qkv_TCE, *rotation, *buffers, *norms, self.shape.norm_eps, num_heads)
