"""Runs packed passes through a dense model: binds its ops once and makes the tables of each pass.

Shape letters: T packed tokens, L leaves, D inputs and O outputs of a product.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from gram_fast import ops
from gram_fast.devices import on_device
from gram_fast.errors import BackendError
from gram_fast.kernels.label_logits import final_hidden, label_logits_reference, log_probabilities
from gram_fast.kernels.tables import TILE_ROWS
from gram_fast.models.dense.attention import PassTables, PathAttention, TreeAttention
from gram_fast.models.dense.fp8 import quantizing
from gram_fast.models.dense.graphs import Bucket, PassGraphs, most_tokens
from gram_fast.models.dense.model import DenseModel, DensePass, Operations
from gram_fast.models.dense.products import Add, Multiply, Product, find_product, fp8_product
from gram_fast.models.dense.rotation import RotationTable
from gram_fast.models.dense.weights import dense_windows
from gram_fast.models.supported import attention_span, check_dtype, plain_attention_span
from gram_fast.ops.label_logits import LabelLogits
from gram_fast.scoring.key_values import KeyValueStore
from gram_fast.scoring.processes import Processes
from gram_fast.scoring.tree import TreePass

_CPU = torch.device("cpu")


class DenseRunner:
    """Computes label logits of packed passes with this package's own model."""

    may_change = False

    def __init__(
        self, model: DenseModel, config: Any, attention: str, *, products: str = "auto", deterministic: bool = False
    ) -> None:
        """Chooses and binds the backends of all ops, and brings the weights into the layout of the products.

        Args:
            model: the model, on its device. A quantized one has products of its own, and none for `deterministic`.
            config: configuration of the checkpoint.
            attention: backend of `tree_attention`, or "auto".
            products: one of PRODUCTS (products.py), or "auto".
            deterministic: the bits of a leaf's logits do not depend on what else is in its pass or in earlier passes.
                Uses `path_attention` instead of `attention`.

        Raises UnsupportedModelError for attention that is not plain and causal and for a dtype that ops do not take,
        BackendError for a backend or product that cannot run and for a machine whose matrix products cannot be made
        deterministic.
        """
        self.model = model
        self.device, self.dtype = model.embedding_VD.device, model.embedding_VD.dtype
        check_dtype(self.dtype)
        # Attention whose bits depend on nothing else has no windows.
        self.max_length, self.max_length_reason = (plain_attention_span if deterministic else attention_span)(config)
        self._windows = [
            window if window and window.size < self.max_length else None for window in dense_windows(config)
        ]
        self._rotation = RotationTable(config, self.max_length, self.device)
        self._graphs: PassGraphs | None = None
        quantized = model.quantization is not None
        product = (fp8_product if quantized else partial(find_product, products))(self.device, self.dtype)
        self.products, self._plain_product = product.name, product.plain
        for projection in (projection for layer in model.layers for projection in layer.projections):
            projection.weight = product.prepare(projection.weight)
        self._attention: TreeAttention | PathAttention
        self._is_deterministic = deterministic
        if deterministic:
            self.attention = "path"
            self._attention = PathAttention(
                self._resolve("path_attention"), self._group, self._scale, model.shape.num_layers
            )
            self._operations = self._deterministic_operations(product)
            self._check_products()
        else:
            self.attention = self._resolve("tree_attention", attention, is_windowed=any(self._windows))
            leaf_attention = self._resolve("leaf_attention")
            self._attention = TreeAttention(self.attention, leaf_attention, self._group, self._scale, self._windows)
            self._operations = self._operations_on(product.multiply, {}, product.add)
            if quantized:
                self._operations = self._quantizing(self._operations)
            # Other backends make tables between their launches, which no graph can hold.
            can_capture = model.processes.count == 1 and self.device.type == "cuda"
            if can_capture and self.attention == leaf_attention == "triton":
                self._graphs = PassGraphs(self.device)

    @property
    def num_embeddings(self) -> int:
        """Rows of the input embedding."""
        return len(self.model.embedding_VD)

    @property
    def num_outputs(self) -> int:
        """Rows of the output embedding, which is read from the checkpoint's files the first time, and kept."""
        return len(self._output)

    @property
    def bytes_per_slot(self) -> int:
        """Memory of one token's keys and values in all layers, in bytes."""
        shape = self.model.shape
        return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * self.dtype.itemsize

    @property
    def bytes_per_state(self) -> int:
        """None: all layers are attention."""
        return 0

    @property
    def reads_whole_paths(self) -> bool:
        """Whether no layer has a window."""
        return not any(self._windows)

    @property
    def bytes_per_token(self) -> int:
        """Peak memory of one token's activations, in bytes.

        It counts four vectors of the model width (residual, its update, a norm, an output), the larger of the gate and
        up projections with their product and of queries, keys and values with the result of attention, and the float32
        cosines and sines.
        """
        shape = self.model.shape
        in_attention = 2 * (shape.num_heads + shape.num_kv_heads) * shape.head_dim
        inside = max(3 * shape.intermediate_size, in_attention)
        return (4 * shape.hidden_size + inside) * self.dtype.itemsize + 4 * shape.head_dim

    @property
    def processes(self) -> Processes:
        """Processes among which the model is divided."""
        return self.model.processes

    @torch.inference_mode()
    def forward(self, tree_pass: TreePass, store: KeyValueStore) -> Tensor:
        """Runs one pass and writes its keys and values -> label logits float32 [L, 2] on the model's device.

        On a GPU it returns once everything is launched, so that the caller can prepare the next pass meanwhile.
        """
        self._rotation.grow(int(tree_pass.position_ids.max()) + 1)
        if self._graphs is not None and (bucket := self._bucket(tree_pass)):
            assert isinstance(self._attention, TreeAttention)
            self._rotation.grow(bucket.num_tokens)
            tables = self._attention.tables(bucket.fill(tree_pass), _CPU, bucket.tables)
            if bucket.holds(tables):
                addresses = (store.layout, self._rotation.num_positions)
                launch = partial(self.run, store=store)
                return self._graphs.run(bucket, tables, addresses, launch)[: len(tree_pass.leaf_rows)]
        return self.run(self._attention.tables(tree_pass, self.device), store)

    def run(self, tables: PassTables[Any], store: KeyValueStore) -> Tensor:
        """Label logits of a pass from its tables, made by the runner's attention, on the model's device.

        The rotation table must hold the positions of the pass.
        """
        return self._run(self._operations, self._attention, tables, store)

    @torch.inference_mode()
    def token_logprobs(self, tree_pass: TreePass, store: KeyValueStore, token_ids: tuple[int, ...]) -> Tensor:
        """Runs one pass like `forward` -> log probabilities of these tokens behind each leaf, float32 [L, K]."""
        self._rotation.grow(int(tree_pass.position_ids.max()) + 1)
        tables = self._attention.tables(tree_pass, self.device)
        read = _read_hidden_one_by_one if self._is_deterministic else _read_hidden
        operations = replace(self._operations, read_labels=read)
        hidden_LD = self._run(operations, self._attention, tables, store)
        # A product of all rows gives a row other bits in other company; so few are read that one by one will do.
        parts = torch.split(hidden_LD, 1) if self._is_deterministic else [hidden_LD]
        return torch.cat([log_probabilities(part_LD, self._output, token_ids) for part_LD in parts])

    @cached_property
    def _output(self) -> Tensor:
        chunks = list(self.model.read_output())  # on the CPU
        output_VD = torch.empty((sum(map(len, chunks)), chunks[0].shape[1]), device=self.device, dtype=self.dtype)
        begin = 0
        for chunk_CD in chunks:
            output_VD[begin : begin + len(chunk_CD)] = chunk_CD
            begin += len(chunk_CD)
        return output_VD

    @torch.inference_mode()
    def plain_logits(self, input_ids: Tensor) -> Tensor:
        """Label logits, float32 [2], of one sequence [T] by the references of all ops, to compare `forward` with."""
        return self._run_plain(input_ids, label_logits_reference)[0]

    @torch.inference_mode()
    def next_logits(self, input_ids: Tensor) -> Tensor:
        """Logits of every token, float32 [V], behind one sequence [T] by the references of all ops.

        Reads the output embedding, which the model does not hold, from the checkpoint's files.
        """

        hidden_D = self._run_plain(input_ids, _read_hidden)[0]
        # The label logits are products in float32 of weights in the model's dtype.
        chunks = (rows_CD.to(self.device, self.dtype).float() for rows_CD in self.model.read_output())
        return torch.cat([rows_CD @ hidden_D.float() for rows_CD in chunks])

    def _run_plain(self, input_ids: Tensor, read_labels: LabelLogits) -> Tensor:
        store = KeyValueStore()
        store.reserve(len(input_ids))
        self._rotation.grow(len(input_ids))
        names = ("add_rms_norm", "rotary_into_cache", "swiglu")
        plain = self._operations_on(self._plain_product, dict.fromkeys(names, "reference"))
        operations = replace(plain, read_labels=read_labels)
        attention = TreeAttention("reference", "reference", self._group, self._scale, self._windows)
        tables = attention.tables(TreePass.of_sequence(input_ids), self.device)
        return self._run(operations, attention, tables, store)

    @property
    def _group(self) -> int:
        """Query heads per key/value head."""
        return self.model.shape.num_heads // self.model.shape.num_kv_heads

    @property
    def _scale(self) -> float:
        """Factor on the scores of attention."""
        return float(self.model.shape.head_dim**-0.5)

    def _bucket(self, tree_pass: TreePass) -> Bucket | None:
        """The bucket of a small pass."""
        return Bucket.of(
            tree_pass, TILE_ROWS // self._group, most_tokens(self.model.shape, self.model.quantization == "fp8")
        )

    def _resolve(self, op: str, name: str = "auto", *, is_windowed: bool = False) -> str:
        width = self.model.shape.head_dim
        return ops.resolve_backend(op, name, self.device, self.dtype, width, is_windowed=is_windowed)

    def _operations_on(self, project: Multiply, backends: Mapping[str, str], add: Add | None = None) -> Operations:
        """Binds each op to its backend in `backends`, or to the one that "auto" stands for.

        `add`: multiplies as `project` and adds, where a product goes to the residual stream as it is.
        """

        def bind(op: str) -> Any:
            return ops.bind(op, self._resolve(op, backends.get(op, "auto")))

        processes = self.model.processes

        def project_onto(residual_TO: Tensor, x_TD: Any, weight: Any, bias_O: Tensor | None) -> Tensor | None:
            if add is None or bias_O is not None or processes.count > 1:
                return processes.sum(project(x_TD, weight, bias_O))
            add(residual_TO, x_TD, weight)
            return None

        return Operations(
            norm=bind("add_rms_norm"),
            project=project,
            project_onto=project_onto,
            rotate=bind("rotary_into_cache"),
            activate=bind("swiglu"),
            read_labels=bind("label_logits"),
        )

    def _quantizing(self, operations: Operations) -> Operations:
        """The operations with ops that quantize what they give to a product of FP8."""
        norm, activate = (ops.bind(op, self._resolve(op)) for op in ("add_rms_norm_fp8", "swiglu_fp8"))
        return replace(operations, norm=quantizing(norm), activate=quantizing(activate))

    def _deterministic_operations(self, product: Product) -> Operations:
        """Binds ops that give a row the same bits at any place among any number of rows."""
        if product.multiply_rows is None:
            raise BackendError(f"deterministic=True: product {product.name!r} gives a row other bits in another pass")
        backends = {"label_logits": "extension"} | ({"swiglu": "extension"} if self.device.type == "cpu" else {})
        return self._operations_on(product.multiply_rows, backends)

    def _run(
        self,
        operations: Operations,
        attention: TreeAttention | PathAttention,
        tables: PassTables[Any],
        store: KeyValueStore,
    ) -> Tensor:
        shape = self.model.shape
        slot = (shape.num_kv_heads, shape.head_dim)
        attend, attend_leaves = attention.over(tables)
        # Bound ops launch on the current device, whichever GPU their tensors are on.
        with on_device(self.device):
            given = DensePass(
                input_ids_T=tables.input_ids_T,
                rotation=self._rotation.of(tables.position_ids_T),
                leaf_rows_L=tables.leaf_rows_L,
                buffers=store.buffers(range(shape.num_layers), slot, self.model.embedding_VD),
                attend=attend,
                attend_leaves=attend_leaves,
            )
            logits_L2 = self.model.forward(operations, given)
            return logits_L2 if self.processes.count == 1 else self.processes.agreed(logits_L2)

    def _check_products(self) -> None:
        """Raises BackendError when the bits of a row of a matrix product depend on its place or on other rows."""
        # Layers are alike but for the last, whose queries are a product of their own.
        ends = (self.model.layers[0], self.model.layers[-1])
        weights: list[Any] = [projection.weight for layer in ends for projection in layer.projections]
        for weight in weights:
            if reason := ops.row_dependence(weight, None, self._operations.project):
                raise BackendError(
                    f"deterministic=True: on {self.device} a product with a weight {list(weight.shape)} in "
                    f"{self.dtype} gives a row bits that depend on {reason}"
                )


def _read_hidden(hidden_TD: Tensor, rows_L: Tensor, _: Tensor, norm_D: Tensor | None, eps: float) -> Tensor:
    """In place of label logits: the hidden states that they are products of, [L, D]."""
    return final_hidden(hidden_TD, rows_L, norm_D, eps)


def _read_hidden_one_by_one(
    hidden_TD: Tensor, rows_L: Tensor, labels: Tensor, norm_D: Tensor | None, eps: float
) -> Tensor:
    """The same, a row at a time."""
    return torch.cat([_read_hidden(hidden_TD, row, labels, norm_D, eps) for row in torch.split(rows_L, 1)])
