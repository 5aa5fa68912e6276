"""Runs packed passes through a dense model: positions, keys and values, attention of the pass.

Shape letters: T packed tokens, L leaves, S key/value slots, H query heads, K key/value heads, E head width, F = E / 2.
"""

import logging
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from gram_fast import ops
from gram_fast.cache import KeyValueStore
from gram_fast.dense_model import DenseModel, DensePass
from gram_fast.dense_weights import dense_problem
from gram_fast.errors import BackendError, UnsupportedModelError
from gram_fast.ops.checks import uploaded
from gram_fast.transformers_runner import attention_span
from gram_fast.tree import TreePass

logger = logging.getLogger(__name__)

RUNNERS = ("auto", "transformers", "dense")
"""What runs a checkpoint's model."""

_OPS = ("add_rms_norm", "rotary_into_cache", "swiglu", "label_logits", "leaf_attention")


def find_runner(runner: str, name: str, config: Any, **hub: Any) -> str:
    """The runner that `runner` stands for: "auto" is "dense" where the checkpoint allows it, and is logged.

    `name` and `config` are the checkpoint's, `hub` is revision, token and trust_remote_code. Raises
    UnsupportedModelError for a checkpoint that the dense runner cannot run when it is asked for by name.
    """
    if runner not in RUNNERS:
        raise BackendError(f"there is no runner {runner!r}: expected one of {', '.join(RUNNERS)}")
    if runner == "transformers":
        return runner
    problem = dense_problem(name, config, **hub)
    if runner == "dense" and problem:
        raise UnsupportedModelError(f"runner 'dense' cannot run {name!r}: {problem}")
    if runner == "auto":
        logger.info("runner: %s", f"transformers ({problem})" if problem else "dense")
    return "transformers" if problem else "dense"


class _PassAttention:
    """Keys, values and attention of one pass; its device tables are made once for all layers."""

    def __init__(self, model: DenseModel, tree_pass: TreePass, store: KeyValueStore, backends: dict[str, str]) -> None:
        self._store, self._backends, self._embedding = store, backends, model.embedding_VD
        self._tables = (tree_pass.spans, tree_pass.range_offsets, tree_pass.ranges)
        self._leaf_rows = tree_pass.leaf_rows
        shape, device = model.shape, model.embedding_VD.device
        self._kv_shape = (shape.num_kv_heads, shape.head_dim)
        self._scale = shape.head_dim**-0.5
        group = shape.num_heads // shape.num_kv_heads
        self._tiles = (
            ops.attention_tiles(*self._tables, group, device) if backends["tree_attention"] == "triton" else None
        )
        has_items = backends["leaf_attention"] != "reference" and len(self._leaf_rows) > 0
        self._items = ops.leaf_items(*self._tables, self._leaf_rows, device) if has_items else None

    def buffers(self, layer: int) -> tuple[Tensor, Tensor]:
        return self._store.buffers(layer, self._kv_shape, self._embedding)

    def of_tokens(self, layer: int, q_THE: Tensor) -> Tensor:
        backend = self._backends["tree_attention"]
        return ops.tree_attention(  # type: ignore[no-any-return]
            q_THE, *self.buffers(layer), *self._tables, self._scale, backend, self._tiles
        )

    def of_leaves(self, layer: int, q_LHE: Tensor) -> Tensor:
        backend = self._backends["leaf_attention"]
        return ops.leaf_attention(  # type: ignore[no-any-return]
            q_LHE, *self.buffers(layer), *self._tables, self._leaf_rows, self._scale, backend, self._items
        )


class DenseRunner:
    """Label logits of packed passes, through the project's own model."""

    def __init__(self, model: DenseModel, config: Any, attention: str) -> None:
        """`config`: the checkpoint's configuration; `attention`: a name for ops.resolve_backend.

        Raises UnsupportedModelError for attention that is not plain and causal, BackendError for a backend that cannot
        run.
        """
        self.model = model
        self.config = config
        self.device, self.dtype = model.embedding_VD.device, model.embedding_VD.dtype
        self.max_length, self.max_length_reason = attention_span(config)
        self.attention = ops.resolve_backend("tree_attention", attention, self.device, self.dtype)
        self._backends = {op: ops.resolve_backend(op, "auto", self.device, self.dtype) for op in _OPS}
        self._backends["tree_attention"] = self.attention
        self._rotary = LlamaRotaryEmbedding(config).to(self.device)

    @property
    def bytes_per_slot(self) -> int:
        """Memory of one token's keys and values in all layers."""
        shape = self.model.shape
        return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * self.dtype.itemsize

    def forward(self, tree_pass: TreePass, store: KeyValueStore) -> Tensor:
        """Runs one pass and writes its keys and values -> label logits float32 [L, 2] on the model's device."""
        return self._run(tree_pass, store, self._backends)

    @torch.inference_mode()
    def plain_logits(self, input_ids: Tensor) -> Tensor:
        """Label logits [2], float32, of one sequence [T] by every op's plain reference: the yardstick of `forward`."""
        length = len(input_ids)
        store = KeyValueStore()
        store.reserve(length)
        whole = TreePass.of_sequence(input_ids)
        return self._run(whole, store, dict.fromkeys((*_OPS, "tree_attention"), "reference"))[0]

    def _run(self, tree_pass: TreePass, store: KeyValueStore, backends: dict[str, str]) -> Tensor:
        given = DensePass(
            uploaded(tree_pass.input_ids, self.device),
            self._rotation(uploaded(tree_pass.position_ids, self.device)),
            uploaded(tree_pass.leaf_rows, self.device),
            _PassAttention(self.model, tree_pass, store, backends),
            backends,
        )
        return self.model.forward(given)

    def _rotation(self, position_ids_T: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, float32 [T, F], of transformers' own embedding, whichever variant the model has."""
        like = torch.empty(0, device=self.device, dtype=torch.float32)
        half = self.model.shape.head_dim // 2
        cos_1TE, sin_1TE = self._rotary(like, position_ids_T[None])
        return cos_1TE[0, :, :half].contiguous(), sin_1TE[0, :, :half].contiguous()
