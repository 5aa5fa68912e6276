"""How the next token of an answer is drawn from a model's logits, so that what else is in the batch does not matter."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gram_fast.generating.generator import Sampling


def ending_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids of the tokens that end an answer: those of the generation configuration and of the tokenizer, sorted."""
    return with_own_end(model.generation_config.eos_token_id, tokenizer)


def with_own_end(known: int | list[int] | None, tokenizer: Any) -> list[int]:
    """Ids of a generation configuration's `eos_token_id` and of the tokenizer's, sorted."""
    ids = known if isinstance(known, list) else [known]
    return sorted({token for token in (*ids, tokenizer.eos_token_id) if token is not None})


def generation_config(model: Any, ends: Sequence[int], sampling: Sampling) -> Any:
    """A copy of the checkpoint's generation configuration with a call's temperature, limit and ending tokens.

    What it does not state, such as top_k, is off: transformers' `generate` would take a top_k of 50.
    """
    config = copy.deepcopy(model.generation_config)
    if sampling.temperature is not None:
        config.do_sample, config.temperature = sampling.temperature > 0, sampling.temperature or None
    config.do_sample = bool(config.do_sample)
    config.num_beams, config.num_return_sequences = 1, 1
    config.max_length, config.max_new_tokens = None, sampling.max_new_tokens
    config.eos_token_id = list(ends)
    return config


def logits_processors(model: Any, config: Any) -> Any:
    """What a generation configuration does to logits [R, V], given ids [R, T]: penalties, temperature, top-k, top-p.

    transformers makes the list, in its own order: its `generate` and its continuous batching get theirs by this call.
    """
    # A length above 0 says that there are ids.
    return model._get_logits_processor(generation_config=config, input_ids_seq_length=1, device=model.device)


class Draws:
    """Draws the tokens of some answers, each from a stream of random numbers of its own.

    torch.multinomial has one stream for a batch, whose rows it goes through in order. Here a token is where the sum of
    the probabilities before it passes the answer's next number, so that it changes only where rounding moves that sum
    across the number. (Noise on every logit, the Gumbel-max trick, would be a number for each token of the vocabulary:
    a fifth of the time of a small model with 4,096.)
    """

    def __init__(self, seeds: Sequence[tuple[int, int]], most: int, device: torch.device) -> None:
        """`seeds`: seed of its request and number of each answer. `most`: tokens of an answer, at most."""
        numbers = [np.random.default_rng(seed).random(most) for seed in seeds]
        self._numbers_RL = torch.from_numpy(np.stack(numbers)).to(device)
        self._drawn = 0

    def draw(self, scores_RV: Tensor) -> Tensor:
        """Draws the next token of each answer from logits, float32 [R, V], -inf where it must not be -> int64 [R]."""
        sums_RV = scores_RV.softmax(-1).cumsum(-1, dtype=torch.float64)
        # Below the last sum, also where the product is rounded: behind it are tokens that must not be.
        places_R1 = self._numbers_RL[:, self._drawn, None] * sums_RV[:, -1:] * (1 - 2**-50)
        self._drawn += 1
        return torch.searchsorted(sums_RV, places_R1, right=True)[:, 0]

    def keep(self, rows: Sequence[int]) -> None:
        """Forgets all other answers."""
        self._numbers_RL = self._numbers_RL[list(rows)]
