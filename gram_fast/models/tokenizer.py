"""Loads the tokenizer of a checkpoint: what its tokenizer.json says, whatever class the checkpoint names."""

import json
import logging
import re
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gram_fast.errors import GramFastError, UnsupportedModelError, one_line
from gram_fast.models.files import find_file, find_source
from gram_fast.models.gguf import read_gguf_tokenizer
from gram_fast.text.tokenizer_check import check_ids, is_panic, read_alike

log = logging.getLogger(__name__)


def load_tokenizer(name: str, other: str | None = None, **hub: Any) -> Any:
    """Loads the tokenizer of a checkpoint, a folder or a name on the hub; or that of another checkpoint in its place.

    `hub`: revision, token and trust_remote_code as in transformers. Some of transformers' classes take vocabulary and
    merges from tokenizer.json and make the rest themselves; where that reads text differently, the file itself is
    loaded, with a warning. An adapter may bring its own, and has that of its base otherwise. Raises
    UnsupportedModelError when there is no tokenizer.
    """
    if other is not None:
        name, hub = str(other), {**hub, "revision": None}
    source = find_source(name, **hub)
    if source.gguf is not None:
        return read_gguf_tokenizer(source.gguf)
    if source.adapter is not None and find_file(source.adapter, "tokenizer_config.json", **hub):
        name = source.adapter
    else:
        name, hub = source.name, source.hub
    try:
        file = find_file(name, "tokenizer.json", **hub)
        if file is not None:
            check_ids(_large_id(file))
        tokenizer = AutoTokenizer.from_pretrained(name, **hub)
        if file is None or not _is_rebuilt(tokenizer):
            return tokenizer
        # This class alone reads the file as the tokenizers library does.
        own = PreTrainedTokenizerFast.from_pretrained(name, **hub)
    except BaseException as error:
        # transformers raises anything for a broken file.
        if isinstance(error, GramFastError) or not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise UnsupportedModelError(f"cannot load a tokenizer from {name!r}: {one_line(error)}") from error
    if read_alike(tokenizer, own):
        return tokenizer
    log.warning(
        "the tokenizer.json of %s is read as it is: transformers' %s, which the checkpoint asks for, reads text "
        "differently",
        name,
        type(tokenizer).__name__,
    )
    return own


def _is_rebuilt(tokenizer: Any) -> bool:
    """Whether a class of transformers may have made something else of tokenizer.json; a checkpoint's own may do so."""
    kind = type(tokenizer)
    is_fast = hasattr(tokenizer, "backend_tokenizer")
    return is_fast and kind is not PreTrainedTokenizerFast and kind.__module__.startswith("transformers.")


def _large_id(file: Path) -> int:
    """The highest token id of a tokenizer.json where it has eight digits or more, else 0, without parsing the file."""
    text = file.read_bytes()
    if not re.search(rb'"\s*:\s*\d{8}', text):
        return 0
    spec = json.loads(text)
    vocab = spec["model"]["vocab"]
    ids = [*(vocab.values() if isinstance(vocab, dict) else ()), *(token["id"] for token in spec["added_tokens"])]
    return max(ids, default=0)
