"""Runner: the interface between the engine and a model, which runs packed passes and reports memory and limits."""

from typing import Any, Protocol

import torch
from torch import Tensor

from gram_fast.scoring.key_values import KeyValueStore
from gram_fast.scoring.processes import Processes
from gram_fast.scoring.tree import TreePass


class Runner(Protocol):
    """Runs packed passes through one model on one device."""

    model: Any
    device: torch.device
    dtype: torch.dtype
    attention: str
    """Name of the attention backend."""
    products: str
    """Name of what computes matrix products: "torch" where the model's own code does."""
    max_length: int
    """Most tokens of a sequence that the model scores exactly."""
    max_length_reason: str
    """Setting that `max_length` comes from, for messages."""
    may_change: bool
    """Whether the model belongs to somebody who may change it between calls, so that no keys and values stay."""

    @property
    def processes(self) -> Processes:
        """Processes that the model is divided among."""

    @property
    def num_embeddings(self) -> int:
        """Rows of the input embedding: token ids are lower."""

    @property
    def num_outputs(self) -> int:
        """Rows of the output embedding, which it reads where the model does not hold it: tokens of `token_logprobs`."""

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of one token's keys and values in all layers."""

    @property
    def bytes_per_state(self) -> int:
        """Bytes of the states of all layers at the end of a node, where some layers are no attention; else 0."""

    @property
    def reads_whole_paths(self) -> bool:
        """Whether every layer is attention in which a token reads all tokens before it, without windows."""

    @property
    def bytes_per_token(self) -> int:
        """Peak bytes of one token's activations during a pass."""

    def forward(self, tree_pass: TreePass, store: KeyValueStore) -> Tensor:
        """Runs one pass -> label logits, float32 [L, 2]; writes its keys, values and states to the store."""

    def token_logprobs(self, tree_pass: TreePass, store: KeyValueStore, token_ids: tuple[int, ...]) -> Tensor:
        """Runs one pass like `forward` -> log probabilities of these tokens behind each leaf, float32 [L, K].

        Of all tokens of the vocabulary, whose logits it computes: much dearer than `forward`.
        """

    def plain_logits(self, input_ids: Tensor) -> Tensor:
        """Computes the label logits of one sequence [T] by a plain forward, to check `forward` -> float32 [2]."""

    def next_logits(self, input_ids: Tensor) -> Tensor:
        """Computes the logits of every token behind one sequence [T] by a plain forward -> float32 [V]."""
