"""Plain forwards of factored judges: one pair in one batch, with a dense mask."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig

from gram_fast.comparing.loading import load_pair_tokenizer
from gram_fast.models.checkpoint import record_prompt
from gram_fast.models.options import JudgeOptions
from helpers.small_models import LABELS, write_judge


def factored_mask(shared: int, first: int, second: int, tail: int) -> Tensor:
    """Which keys each token reads of `shared | first | second | tail`, so many tokens each: bool [T, T].

    The second part does not read the first.
    """
    total = shared + first + second + tail
    mask_TT = torch.ones(total, total, dtype=torch.bool).tril()
    begin = shared + first
    mask_TT[begin : begin + second, shared:begin] = False
    return mask_TT


def factored_positions(shared: int, first: int, second: int, tail: int) -> Tensor:
    """Positions of these tokens, int64 [T]: both parts start behind the shared one, the tail behind the longer one."""
    parts = (0, shared), (shared, first), (shared, second), (shared + max(first, second), tail)
    return torch.cat([torch.arange(start, start + count) for start, count in parts])


def dense_logits(model: Any, parts: Sequence[Sequence[int]]) -> Tensor:
    """Logits [T, V] of all tokens of shared, first, second and tail ids by the model's own forward."""
    sizes = [len(part) for part in parts]
    mask_TT = factored_mask(*sizes)
    added = torch.zeros(mask_TT.shape, dtype=model.dtype).masked_fill(~mask_TT, torch.finfo(model.dtype).min)
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    logits_1TV: Tensor = model(
        input_ids=torch.tensor([[token for part in parts for token in part]]),
        attention_mask=added[None, None],
        position_ids=factored_positions(*sizes)[None],
        use_cache=False,
    ).logits
    model.set_attn_implementation(implementation)
    return logits_1TV[0]


def plain_factored(model: Any, parts: Sequence[Sequence[int]], labels: Sequence[int] = LABELS) -> np.ndarray:
    """Label logits, float32 [2], of shared, first, second and tail ids by the model's own forward."""
    with torch.no_grad():
        return dense_logits(model, parts)[-1, list(labels)].float().numpy()


def write_factored_judge(folder: Path, **more: Any) -> Path:
    """A tiny random judge whose checkpoint says that it was trained in both modes."""
    write_judge(folder, **more)
    config = AutoConfig.from_pretrained(folder)
    record_prompt(config, load_pair_tokenizer(str(folder), config, JudgeOptions()), False, ("full", "factored"))
    config.save_pretrained(folder)
    return folder
