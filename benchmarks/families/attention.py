"""What the attention of a model is, by what it asks of transformers' attention interface in one forward.

Shape letters: T queries, S keys.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

_NAME = "gram_fast_families"
_ARGUMENTS = {"s_aux": "sinks", "softcap": "soft cap", "position_bias": "position bias"}


@dataclass
class Seen:
    """What attention was asked for in one forward."""

    kinds: list[str] = field(default_factory=list)
    """What queries see, in the order in which it came."""
    more: set[str] = field(default_factory=set)

    @property
    def is_plain(self) -> bool:
        """Whether all of it was plain causal attention."""
        return {*self.kinds, *self.more} <= {"full", "narrower values"}


@contextmanager
def attention_of(model: Any, name: str) -> Iterator[None]:
    """Within, the model attends by that function of the attention interface."""
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def watched(model: Any, *, as_plain: bool = False) -> Iterator[Seen]:
    """Within, what the model's attention is asked for is noted; `as_plain`: and plain attention is computed instead."""
    global _watch
    before, seen = _watch, Seen()
    _watch = (seen, as_plain)
    try:
        with attention_of(model, _NAME):
            yield seen
    finally:
        _watch = before


_watch: tuple[Seen, bool] = (Seen(), False)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Any]:
    """An attention function of transformers: that of the model's own code, and a note of what it is."""
    seen, as_plain = _watch
    causal_TS = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
    seen.kinds.append(_kind(causal_TS if attention_mask is None else _visible(attention_mask), causal_TS))
    seen.more |= {word for name, word in _ARGUMENTS.items() if options.get(name) is not None}
    if key.shape[-1] != value.shape[-1]:
        seen.more.add("narrower values")
    if as_plain:
        group = query.shape[1] // key.shape[1]
        keys, values = (states.repeat_interleave(group, dim=1) for states in (key, value))
        out = nn.functional.scaled_dot_product_attention(query, keys, values, causal_TS, scale=scaling)
        return out.transpose(1, 2), None
    of_model = sys.modules[type(module).__module__].eager_attention_forward
    return of_model(module, query, key, value, attention_mask, scaling=scaling, **options)  # type: ignore[no-any-return]


def _visible(mask: Tensor) -> Tensor:
    """Which keys the queries of the first head see, bool [T, S], by a mask that is bool or is added to scores."""
    mask_TS = mask[0, 0]
    return mask_TS if mask_TS.dtype == torch.bool else mask_TS > torch.finfo(mask_TS.dtype).min / 2


def _kind(visible_TS: Tensor, causal_TS: Tensor) -> str:
    if visible_TS.shape != causal_TS.shape:
        return "other masks"
    rows, width = torch.arange(len(visible_TS)), int(visible_TS.sum(-1).max())
    if torch.equal(visible_TS, causal_TS):
        return "full"
    if torch.equal(visible_TS, causal_TS.triu(1 - width)):
        return "windows"
    same_chunk = rows[:, None] // width == rows[None] // width
    if visible_TS.shape[0] == visible_TS.shape[1] and torch.equal(visible_TS, causal_TS & same_chunk):
        return "chunks"
    return "other masks"


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, eager_mask)
