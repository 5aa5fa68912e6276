"""The pad token of a scalar reward model, without which transformers scores one text at a time."""

import logging
from collections.abc import Iterator
from typing import Any

log = logging.getLogger(__name__)


def set_pad_token(tokenizer: Any, last_id: int, vocab_size: int) -> None:
    """Gives a tokenizer a pad token of its vocabulary, unless it has one that can be used.

    transformers reads the reward at the last token that is no padding. The pad token may therefore not be `last_id`,
    with which the texts of the model end: often the end of a turn, which many tokenizers have as padding, too. Where
    there is no other special token, it has none afterwards, with a warning.
    """
    for token_id in _candidates(tokenizer):
        if token_id != last_id and token_id < vocab_size:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(token_id)
            return
    tokenizer.pad_token = None
    log.warning(
        "the tokenizer has no special token that could be padding, so that transformers scores one text at a time: add "
        "one to the tokenizer and the embedding of the base model"
    )


def _candidates(tokenizer: Any) -> Iterator[int]:
    """Ids of special tokens, those that are meant for padding first, then those that others use for it."""
    special = [id for id, token in tokenizer.added_tokens_decoder.items() if token.special]
    named = [id for id in special if "pad" in tokenizer.convert_ids_to_tokens(id).lower()]
    others = [tokenizer.eos_token_id, tokenizer.unk_token_id, *sorted(special, reverse=True)]
    return (id for id in (tokenizer.pad_token_id, *named, *others) if id is not None)
