"""Runs packed passes through any decoder-only model of transformers with causal attention.

The model's own code computes everything but attention, for which transformers' attention interface calls
`tree_attention`, with the layer's window, sinks and soft cap. Of the output embedding only the rows of the two label
tokens are multiplied.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from gram_fast import ops
from gram_fast.errors import UnsupportedModelError
from gram_fast.kernels.label_logits import log_probabilities
from gram_fast.kernels.tables import uploaded
from gram_fast.models.callers import in_eval_mode, turn_of
from gram_fast.models.known_answers import cannot_run
from gram_fast.models.linear.mixers import bytes_of_states, find_mixers, over_pieces
from gram_fast.models.linear.pieces import Pieces
from gram_fast.models.output import OutputTransform
from gram_fast.models.supported import (
    attention_layers,
    attention_span,
    base_of,
    bytes_per_slot,
    check_attention,
    check_dtype,
    check_label_ids,
    check_output,
    head_dim,
    layer_configs,
    layer_windows,
    linear_layers,
    output_embedding,
    plain_attention,
)
from gram_fast.ops import TreeTables
from gram_fast.ops.backends import check_backend
from gram_fast.ops.checks import check_states, expect, on_device_of
from gram_fast.ops.tables import Window
from gram_fast.ops.tree_attention import AttendTree
from gram_fast.scoring.key_values import KeyValueStore
from gram_fast.scoring.processes import ALONE, Processes
from gram_fast.scoring.tree import TreePass

_ATTENTION = "gram_fast_tree"
_PASS: ContextVar["_PassContext"] = ContextVar("gram_fast_pass")


@dataclass
class _PassContext:
    """Arguments of the attention function for one pass.

    It stands in a context variable while the model's forward runs: not all models hand keyword arguments on.
    """

    tree_pass: TreePass
    store: KeyValueStore
    backend: str
    attention: AttendTree
    """`tree_attention` on that backend; trusts its arguments."""
    layers_seen: int = 0
    """Layers that have attended. Their order numbers them in the store: two may share one module."""
    tables: dict[tuple[int, int, torch.device, Window | None], TreeTables] = field(default_factory=dict)
    """By query heads per key/value head, head width, device and window, made at the first layer with these."""
    temperatures: Tensor | None = None
    """`_temperature_of_positions`, made at the first layer that wants it: all have the same settings."""

    def attend(
        self,
        q_THE: Tensor,
        k_SKE: Tensor,
        v_SKE: Tensor,
        scale: float,
        window: Window | None,
        sinks_H: Tensor | None,
        softcap: float | None,
    ) -> Tensor:
        """Computes attention of all packed tokens -> [T, H, E], contiguous.

        Queries come from the model's own code, so tensors are checked in every layer as `tree_attention` checks them;
        the spans were checked when the pass was planned. Raises ValueError, and BackendError for heads that are too
        wide.
        """
        sizes = check_states("q_THE", q_THE, k_SKE, v_SKE)
        expect(sizes["T"] == self.tree_pass.num_tokens, "q_THE", f"{self.tree_pass.num_tokens} tokens", sizes["T"])
        expect(scale > 0, "scale", "a positive number", scale)
        group, width, device = sizes["H"] // sizes["K"], sizes["E"], q_THE.device
        key = (group, width, device, window)
        if key not in self.tables:
            check_backend("tree_attention", self.backend, device, q_THE.dtype, width)
            self.tables[key] = TreeTables.of(self.tree_pass.spans, self.backend, group, device, window=window)
        with on_device_of(q_THE):
            return self.attention(q_THE, k_SKE, v_SKE, self.tables[key], scale, sinks_H, softcap)


class TransformersRunner:
    """Computes label logits of packed passes with the model's own layers."""

    def __init__(self, model: Any, label_ids: tuple[int, int], attention: str, *, may_change: bool = False) -> None:
        """Checks the model and chooses the backends.

        Args:
            model: a causal language model of transformers, on its device.
            label_ids: token ids of the two labels.
            attention: backend of `tree_attention`, or "auto".
            may_change: whether somebody else trains the model, or chooses its adapters, between calls.

        Raises UnsupportedModelError for an architecture that cannot be scored exactly, BackendError for a backend that
        cannot run.
        """
        self.model: Any = model
        self.may_change = may_change
        self.config: Any = model.config.get_text_config(decoder=True)
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.max_length, self.max_length_reason = attention_span(self.config)
        self._base = base_of(model)
        self._mixers = find_mixers(self._base)
        if (found := len(self._mixers)) != (expected := linear_layers(self.config)):
            raise UnsupportedModelError(
                f"{type(model).__name__} cannot be scored by prefix sharing: {found} of its {expected} layers that are "
                "no attention mix tokens in a known way"
            )
        try:
            with turn_of(model), in_eval_mode(model):
                of_states = bytes_of_states(self._mixers, self.config.hidden_size, self.dtype, self.device)
        except (TypeError, AttributeError, LookupError, RuntimeError, ValueError) as error:
            raise cannot_run(model, error) from error
        self.bytes_per_state, self._bytes_of_layer = sum(of_states), max(of_states, default=0)
        self.products = "torch"
        self.attention = ops.resolve_backend(
            "tree_attention",
            attention,
            self.device,
            self.dtype,
            head_dim(self.config),
            is_windowed=any(layer_windows(self.config)),
            is_capped=getattr(self.config, "attn_logit_softcapping", None) is not None,
        )
        check_dtype(self.dtype)
        check_label_ids(label_ids, len(self._head.weight))
        check_output(model, self._base)
        self._plain_attention = plain_attention(model)
        self._transform = OutputTransform.of(self.config)
        self._attend = ops.bind("tree_attention", self.attention)
        self._label_backend = ops.resolve_backend("label_logits", "auto", self.device, self.dtype)
        self._labels = torch.tensor(label_ids, device=self.device)

    @property
    def processes(self) -> Processes:
        """This process alone: the model is not divided."""
        return ALONE

    @property
    def reads_whole_paths(self) -> bool:
        """Whether no layer has a window or a state."""
        return not any(layer_windows(self.config)) and self.bytes_per_state == 0

    @property
    def num_embeddings(self) -> int:
        """Rows of the input embedding."""
        return len(self.model.get_input_embeddings().weight)

    @property
    def num_outputs(self) -> int:
        """Rows of the output embedding."""
        return len(self._head.weight)

    @property
    def bytes_per_slot(self) -> int:
        """Memory of one token's keys and values in all layers, by the configuration, in bytes."""
        return bytes_per_slot(self.config, self.dtype)

    @property
    def bytes_per_token(self) -> int:
        """Approximate memory of one token's activations, in bytes: that of the feed-forward of most decoders.

        With states, a pass holds those of one layer at the borders between pieces: of 64 tokens, it is assumed.
        """
        config = self.config
        inner = max(getattr(layer, "intermediate_size", None) or 0 for layer in layer_configs(config))
        inner = inner or 4 * config.hidden_size
        return int((4 * config.hidden_size + 4 * inner) * self.dtype.itemsize) + self._bytes_of_layer // 64

    @torch.no_grad()
    def forward(self, tree_pass: TreePass, store: KeyValueStore) -> Tensor:
        """Runs one pass and writes its keys and values -> label logits float32 [L, 2] on the model's device.

        Raises UnsupportedModelError when a layer does not attend through transformers' attention interface.
        """
        # The op with its checks: hidden states come from the model's own code, and may not have the dtype of its output
        # embedding.
        head, leaf_rows_L = self._head, uploaded(tree_pass.leaf_rows, self.device)
        logits_L2: Tensor = ops.label_logits(
            self._hidden(tree_pass, store), leaf_rows_L, head.weight[self._labels], backend=self._label_backend
        )
        bias = getattr(head, "bias", None)
        return self._transform(logits_L2 if bias is None else logits_L2 + bias[self._labels].float())

    @torch.no_grad()
    def token_logprobs(self, tree_pass: TreePass, store: KeyValueStore, token_ids: tuple[int, ...]) -> Tensor:
        """Runs one pass like `forward` -> log probabilities of these tokens behind each leaf, float32 [L, K]."""
        head = self._head
        hidden_LD = self._hidden(tree_pass, store)[uploaded(tree_pass.leaf_rows, self.device)]
        return log_probabilities(hidden_LD, head.weight, token_ids, getattr(head, "bias", None), self._transform)

    def _hidden(self, tree_pass: TreePass, store: KeyValueStore) -> Tensor:
        """Hidden states [T, D] of a pass."""
        context = _PassContext(tree_pass, store, self.attention, self._attend)
        token = _PASS.set(context)
        try:
            pieces = Pieces(tree_pass.pieces)
            with turn_of(self.model), over_pieces(self._mixers, pieces, store.states) as mixings:
                hidden_1TD = self._run(
                    self._base,
                    _ATTENTION,
                    input_ids=uploaded(tree_pass.input_ids, self.device)[None],
                    position_ids=uploaded(tree_pass.position_ids, self.device)[None],
                ).last_hidden_state
        finally:
            _PASS.reset(token)
        seen, layers = context.layers_seen, attention_layers(self.config)
        if seen != layers or not all(mixing.num_calls for mixing in mixings):
            what = f"{seen} of its {layers} layers attend through transformers' attention interface"
            if seen > layers:
                what = f"its layers attend {seen} times, expected {layers}, once each"
            raise UnsupportedModelError(f"{type(self.model).__name__} cannot be scored by prefix sharing: {what}")
        return hidden_1TD[0]  # type: ignore[no-any-return]

    def plain_logits(self, input_ids: Tensor) -> Tensor:
        """Label logits, float32 [2], of one sequence [T] by the model's plain forward, to compare `forward` with."""
        return self.next_logits(input_ids)[self._labels]

    @torch.no_grad()
    def next_logits(self, input_ids: Tensor) -> Tensor:
        """Logits of every token, float32 [V], behind one sequence [T] by the model's plain forward."""
        with turn_of(self.model):
            logits = self._run(
                self.model, self._plain_attention, input_ids=input_ids[None].to(self.device), logits_to_keep=1
            ).logits
        return logits[0, -1].float()  # type: ignore[no-any-return]

    @property
    def _head(self) -> Any:
        """The output embedding, whose rows of the labels change where the model is trained."""
        head = output_embedding(self.model)
        if hasattr(head, "base_layer"):
            raise UnsupportedModelError(
                f"{type(self.model).__name__} has an adapter on its output embedding: expected it to be merged"
            )
        return head

    def _run(self, model: Any, attention: str, **arguments: Any) -> Any:
        """Runs the model, or its base, without dropout and with that attention; it is left as it was found."""
        before = self.config._attn_implementation
        try:
            # In the `try`: an interruption right after an assignment must not leave it.
            self.config._attn_implementation = attention
            with in_eval_mode(self.model):
                return model(**arguments, use_cache=False)
        finally:
            self.config._attn_implementation = before


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Window | Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: queries [1, H, T, E], keys and values [1, K, T, E] -> [1, T, H, E].

    Values may be narrower, as those of latent attention are, and so is the result then. They are filled up with zeros.
    """
    context, name = _PASS.get(), type(module).__name__
    width = value.shape[-1]
    value = nn.functional.pad(value, (0, max(0, key.shape[-1] - width)))
    check_attention(module, key, value, options)
    if attention_mask is not None and not isinstance(attention_mask, Window):
        raise UnsupportedModelError(f"{name} cannot be scored by prefix sharing: it masks attention by itself")
    k_SKE, v_SKE = context.store.write(context.layers_seen, key[0].transpose(0, 1), value[0].transpose(0, 1))
    context.layers_seen += 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    sinks_H, softcap = options.get("s_aux"), options.get("softcap")
    q_THE = query[0].transpose(0, 1)
    if getattr(module, "attn_temperature_tuning", False) and not module.use_rope:
        if context.temperatures is None:
            found = _temperature_of_positions(module, context.tree_pass.position_ids)
            context.temperatures = uploaded(found.to(q_THE.dtype), q_THE.device)
        q_THE = q_THE * context.temperatures.to(q_THE.device)[:, None, None]
    out_THE = context.attend(q_THE, k_SKE, v_SKE, scale, attention_mask, sinks_H, softcap)
    return out_THE[None, :, :, :width], None


def _temperature_of_positions(module: Any, position_ids: Tensor) -> Tensor:
    """Factors [T] that make of queries which Llama 4 has scaled by their row those that are scaled by their position.

    Its layers without rotation take the place of a token in the forward for its position.
    """

    def scales(places: Tensor) -> Tensor:
        return torch.log1p(torch.floor((places + 1.0) / float(module.floor_scale))) * float(module.attn_scale) + 1.0

    return scales(position_ids.double()) / scales(torch.arange(len(position_ids), dtype=torch.float64))


def _window_of_mask(*_: Any, local_size: int | None = None, config: Any = None, **__: Any) -> Window | None:
    """In place of a mask, what transformers would make it of: the window of the layers that are given it."""
    if local_size is None:
        return None
    return Window(local_size, is_chunked=local_size == getattr(config, "attention_chunk_size", None))


AttentionInterface.register(_ATTENTION, _attend)
AttentionMaskInterface.register(_ATTENTION, _window_of_mask)
