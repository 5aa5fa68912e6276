"""Runs packed passes through a dense model: which ops, and what every layer of a pass is given.

Shape letters: T packed tokens, L leaves, D inputs and O outputs of a product.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from gram_fast import ops
from gram_fast.errors import BackendError, UnsupportedModelError
from gram_fast.kernels.tables import TILE_ROWS
from gram_fast.models.dense.attention import PassTables, PathAttention, TreeAttention, path_tables, tree_tables
from gram_fast.models.dense.graphs import Bucket, PassGraphs
from gram_fast.models.dense.model import Attention, DenseModel, DensePass, Linear
from gram_fast.models.dense.rotation import RotationTable
from gram_fast.models.dense.weights import dense_problem
from gram_fast.models.transformers_runner import attention_span
from gram_fast.scoring.key_values import KeyValueStore
from gram_fast.scoring.processes import Processes
from gram_fast.scoring.tree import TreePass

logger = logging.getLogger(__name__)

RUNNERS = ("auto", "transformers", "dense")
"""What runs a checkpoint's model."""

_OPS = ("add_rms_norm", "rotary_into_cache", "swiglu", "label_logits")


def find_runner(runner: str, name: str, config: Any, *, needed_for: Sequence[str] = (), **hub: Any) -> str:
    """The runner that `runner` stands for: "auto" is "dense" where the checkpoint allows it, and is logged.

    `name` and `config` are the checkpoint's, `hub` is revision, token and trust_remote_code. `needed_for`: options that
    "dense" alone has. Raises UnsupportedModelError for a checkpoint that the dense runner cannot run when it must.
    """
    if runner not in RUNNERS:
        raise BackendError(f"there is no runner {runner!r}: expected one of {', '.join(RUNNERS)}")
    if needed_for and runner == "transformers":
        raise BackendError(f"{needed_for[0]} needs runner 'dense', got 'transformers'")
    if runner == "transformers":
        return runner
    problem = dense_problem(name, config, **hub)
    if problem and (runner == "dense" or needed_for):
        raise UnsupportedModelError(f"runner 'dense' cannot run {name!r}: {problem}")
    if runner == "auto":
        logger.info("runner: %s", f"transformers ({problem})" if problem else "dense")
    return "transformers" if problem else "dense"


class DenseRunner:
    """Label logits of packed passes, through the project's own model."""

    def __init__(self, model: DenseModel, config: Any, attention: str, *, deterministic: bool = False) -> None:
        """`config`: the checkpoint's configuration; `attention`: a name for ops.resolve_backend.

        `deterministic`: a leaf's logits have the same bits whatever else is in its pass and in the passes before; it
        has attention of its own in place of `attention`.

        Raises UnsupportedModelError for attention that is not plain and causal, BackendError for a backend that cannot
        run, and for a machine whose products cannot be made deterministic.
        """
        self.model = model
        self.config = config
        self.device, self.dtype = model.embedding_VD.device, model.embedding_VD.dtype
        self.max_length, self.max_length_reason = attention_span(config)
        self._rotation = RotationTable(config, self.max_length, self.device)
        self._backends = {op: self._resolve(op) for op in _OPS}
        self._linear: Linear = linear
        self._is_deterministic = deterministic
        if deterministic:
            # Elsewhere these two may give a row other bits with its place or with the number of rows.
            self._backends["label_logits"] = self._resolve("label_logits", "extension")
            if self.device.type == "cpu":
                self._backends["swiglu"] = self._resolve("swiglu", "extension")
            self._backends["path_attention"] = self._resolve("path_attention")
            self._linear = partial(ops.invariant_linear, backend=self._resolve("invariant_linear"))
            self._check_products()
            self.attention = "path"
        else:
            self.attention = self._resolve("tree_attention", attention)
            self._backends |= {"tree_attention": self.attention, "leaf_attention": self._resolve("leaf_attention")}
        # Other backends make tables between their launches, which no graph can hold.
        can_capture = model.processes.count == 1 and self.device.type == "cuda"
        attends_in_triton = all(self._backends.get(op) == "triton" for op in ("tree_attention", "leaf_attention"))
        self._graphs = PassGraphs(self.device) if can_capture and attends_in_triton else None

    @property
    def bytes_per_slot(self) -> int:
        """Memory of one token's keys and values in all layers."""
        shape = self.model.shape
        return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * self.dtype.itemsize

    @property
    def bytes_per_token(self) -> int:
        """Memory of one token's activations at the most.

        Residual, what is added to it, both normed, and the output; beside them gate and up projections with their
        product, or queries, keys and values with what was attended; and the float32 cosines and sines.
        """
        shape = self.model.shape
        in_attention = 2 * (shape.num_heads + shape.num_kv_heads) * shape.head_dim
        inside = max(3 * shape.intermediate_size, in_attention)
        return (4 * shape.hidden_size + inside) * self.dtype.itemsize + 4 * shape.head_dim

    @property
    def processes(self) -> Processes:
        """Among which the model is divided."""
        return self.model.processes

    @torch.inference_mode()
    def forward(self, tree_pass: TreePass, store: KeyValueStore) -> Tensor:
        """Runs one pass and writes its keys and values -> label logits float32 [L, 2] on the model's device.

        On a GPU it returns when everything is launched: the caller prepares the next pass while this one runs.
        """
        self._rotation.grow(int(tree_pass.position_ids.max()) + 1)
        if self._is_deterministic:
            tables = path_tables(tree_pass, self._group).on(self.device)
            attention = PathAttention(self.model.shape, store, self.model.embedding_VD, tables, self._backends)
            return self._run(tables, attention, self._linear, self._backends)
        if self._graphs is not None and (bucket := Bucket.of(tree_pass, TILE_ROWS // self._group)):
            filled = bucket.fill(tree_pass)
            self._rotation.grow(bucket.num_tokens)
            tables = tree_tables(filled, self._group, self._backends, bucket.tables)
            if bucket.holds(tables):
                addresses = (store.layout, self._rotation.num_positions)
                launch = partial(self._run_tree, filled, store)
                return self._graphs.run(bucket, tables, addresses, launch)[: len(tree_pass.leaf_rows)]
        return self._run_tree(tree_pass, store, tree_tables(tree_pass, self._group, self._backends).on(self.device))

    @torch.inference_mode()
    def plain_logits(self, input_ids: Tensor) -> Tensor:
        """Label logits [2], float32, of one sequence [T] by every op's plain reference: the yardstick of `forward`."""
        store = KeyValueStore()
        store.reserve(len(input_ids))
        self._rotation.grow(len(input_ids))
        whole = TreePass.of_sequence(input_ids)
        plain = dict.fromkeys((*_OPS, "tree_attention", "leaf_attention"), "reference")
        tables = tree_tables(whole, self._group, plain).on(self.device)
        attention = TreeAttention(self.model.shape, store, self.model.embedding_VD, whole, tables, plain)
        return self._run(tables, attention, linear, plain)[0]

    @property
    def _group(self) -> int:
        """Query heads of a key/value head."""
        return self.model.shape.num_heads // self.model.shape.num_kv_heads

    def _resolve(self, op: str, name: str = "auto") -> str:
        return ops.resolve_backend(op, name, self.device, self.dtype, self.model.shape.head_dim)

    def _run_tree(self, tree_pass: TreePass, store: KeyValueStore, tables: PassTables) -> Tensor:
        like = self.model.embedding_VD
        attention = TreeAttention(self.model.shape, store, like, tree_pass, tables, self._backends)
        return self._run(tables, attention, self._linear, self._backends)

    def _run(self, tables: PassTables, attention: Attention, product: Linear, backends: Mapping[str, str]) -> Tensor:
        """`tables` are on the model's device; their positions are known to the rotation table."""
        rotation = self._rotation.of(tables.position_ids_T)
        given = DensePass(tables.input_ids_T, rotation, tables.leaf_rows_L, attention, product, backends)
        return self.model.processes.agreed(self.model.forward(given))

    def _check_products(self) -> None:
        """Raises BackendError where a row of a product has bits that its place or other rows change."""
        layer = self.model.layers[0]
        queries = self.model.shape.num_heads * self.model.shape.head_dim
        of_last_layer = (layer.qkv_weight[:queries], layer.qkv_weight[queries:])
        for weight in (layer.qkv_weight, layer.out_weight, layer.gate_up_weight, layer.down_weight, *of_last_layer):
            if reason := ops.row_dependence(weight, None, self._linear):
                raise BackendError(
                    f"deterministic=True: on {self.device} a product with a weight {list(weight.shape)} in "
                    f"{self.dtype} gives a row bits that depend on {reason}"
                )
