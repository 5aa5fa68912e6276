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
    found = model.generation_config.eos_token_id
    known = found if isinstance(found, list) else [found]
    return sorted({token for token in (*known, tokenizer.eos_token_id) if token is not None})


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


class NoiseStreams:
    """Draws tokens by the Gumbel-max trick: the best of log probabilities with noise, of a stream for each answer.

    torch.multinomial has one stream for a batch, whose rows it goes through in order. Here the noise of an answer is
    the same in any batch, so that a token changes only where rounding turns the two best noisy logits about.
    """

    def __init__(self, seeds: Sequence[tuple[int, int]], device: torch.device) -> None:
        """`seeds`: seed of its request and number of each answer."""
        self._streams = [torch.Generator(device).manual_seed(_stream_seed(*seed)) for seed in seeds]

    def draw(self, scores_RV: Tensor) -> Tensor:
        """Draws a token for each row of logits, float32 [R, V], -inf where it must not be -> int64 [R]."""
        waits_RV = torch.empty_like(scores_RV)
        for row, stream in enumerate(self._streams):
            # Of exponential numbers with these rates the first is one with the probability of the softmax.
            waits_RV[row].exponential_(generator=stream)
        return (scores_RV - waits_RV.log_()).argmax(-1)

    def keep(self, rows: Sequence[int]) -> None:
        """Forgets the streams of all other rows."""
        self._streams = [self._streams[row] for row in rows]


def _stream_seed(seed: int, number: int) -> int:
    """A seed of 63 bits: requests with neighbouring seeds have streams of their own for all their answers."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> 1)
