"""Log probabilities of proofs in context and alone, and the score by which GRAM-R2 (arXiv 2509.02492) chooses one.

    sequence                     log probability of the proof
    prompt with label | proof    log pi(proof | s, label)
    separator | proof            log pi(proof)

All sequences of a pair are one packed forward: its proofs share the prompt, whose tokens are computed once.

Shape letters: T packed tokens, R tokens of all proofs, D model width.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gram_fast.errors import UnsupportedModelError
from gram_fast.scoring.surroundings import sheltered
from gram_fast.text.tokens import Ids
from gram_fast.training.data.sequences import TokenizedPair, collate
from gram_fast.training.objectives import hidden_states, linear_cross_entropy, unbiased_head
from gram_fast.training.packed_attention import PACKED_ATTENTION


@dataclass(frozen=True)
class ProofScore:
    """How likely a proof is: sums over its tokens, natural logarithms, at most 0."""

    in_context: float
    """log pi(proof | s, label): behind the prompt that shows the pair and its label."""
    alone: float
    """log pi(proof): behind the separator alone."""

    @property
    def score(self) -> float:
        """-log pi(proof | s, label) / log pi(proof), in [-inf, 0], higher is better: likely in context, unlikely alone.

        -inf for a proof that is certain alone, and where a log probability is not finite.
        """
        if not (math.isfinite(self.in_context) and math.isfinite(self.alone)) or self.alone >= 0:
            return -math.inf
        return -(self.in_context / self.alone)


def separator(tokenizer: Any) -> int:
    """Id of the token behind which a proof stands alone: the tokenizer's for a beginning, else an end, else padding.

    The paper does not say what stands before it. Raises UnsupportedModelError for a tokenizer that has none of them.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        if token is not None:
            return int(token)
    raise UnsupportedModelError(
        "the prover's tokenizer has no bos_token, eos_token or pad_token, behind which a proof would stand alone: "
        "expected one of them"
    )


@sheltered
def score_proofs(model: Any, prompt: Ids, proofs: Sequence[Ids], separator: int) -> list[ProofScore]:
    """Computes how likely proofs of one pair are, in one packed forward.

    Args:
        model: a causal language model of transformers in eval mode, whose attention is left as it was found.
        prompt: ids int32 [T] of the prover's prompt.
        proofs: ids int32 [T] of each, at least one token; what the chat template writes behind them is not counted.
        separator: the token before each proof alone.

    Raises UnsupportedModelError for a model that cannot be trained either, as `language_modelling`.
    """
    head = unbiased_head(model)
    befores = [prompt] * len(proofs) + [np.array([separator], np.int32)] * len(proofs)
    batch = collate([TokenizedPair.continued(b, p) for b, p in zip(befores, [*proofs, *proofs], strict=True)], True)
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    positions_R, labels_R = batch.pop("label_positions"), batch.pop("labels")
    with _packed(model):
        hidden_TD = hidden_states(model, **batch)
    ends = np.cumsum([len(ids) for ids in [*proofs, *proofs]]).tolist()
    ones_R = torch.ones(len(labels_R), device=model.device)
    sums = []
    for begin, end in zip([0, *ends], ends, strict=False):
        hidden_RD = hidden_TD[positions_R[begin:end]]
        sums.append(-float(linear_cross_entropy(hidden_RD, head.weight, labels_R[begin:end], ones_R[begin:end])))
    return [ProofScore(*both) for both in zip(sums[: len(proofs)], sums[len(proofs) :], strict=True)]


@contextmanager
def _packed(model: Any) -> Iterator[None]:
    """Has the model attend as packed batches want it."""
    before = model.config._attn_implementation
    try:
        model.config._attn_implementation = PACKED_ATTENTION
        yield
    finally:
        model.config._attn_implementation = before
