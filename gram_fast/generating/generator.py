"""TextGenerator: the interface to what writes answers, a model in this process or somebody's server."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gram_fast.errors import GramFastError
from gram_fast.text.tokens import Ids


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt, and how many answers to it are wanted."""

    content: str
    """The user message: what a server's chat template is rendered with."""
    ids: Ids | None
    """Token ids int32 [T] of the whole prompt, where its tokenizer is here: they are read in place of `content`."""
    n: int
    """Answers wanted, at least 1."""
    seed: int
    """Of this request, in [0, 2**31): the same seed and prompt give the same answers, whatever else is asked with it,
    where the engine can promise that."""


@dataclass(frozen=True)
class Token:
    """One token of an answer, with the most likely tokens in its place."""

    text: str
    logprobs: Mapping[str, float]
    """Log probability by text of the most likely tokens, this one among them."""


@dataclass(frozen=True)
class Generation:
    """One answer."""

    text: str
    """Without the special token that ends it."""
    num_tokens: int
    is_cut: bool
    """Whether the limit of tokens ended it, not the model."""
    tokens: Sequence[Token] | None = None
    """Its tokens, where they were asked for (`Sampling.top_logprobs`). Their texts need not join to `text`: a server
    may have another for a part of a character, and take white space, tags or special tokens out of the whole."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn, the same for all requests of a call."""

    max_new_tokens: int
    """Most tokens of an answer, at least 1."""
    temperature: float | None = None
    """At least 0, which takes the most likely token; None: as the checkpoint's generation configuration says."""
    top_logprobs: int = 0
    """How many of the most likely tokens are wanted in the place of each token; 0: none."""


Generated = tuple[int, "list[Generation] | GramFastError"]
"""Number of a request in its list, and its `n` answers, or why it has none."""


class TextGenerator(Protocol):
    """Writes answers to prompts."""

    @property
    def name(self) -> str:
        """The engine and its model, for messages and records."""

    @property
    def at_once(self) -> int:
        """Answers that it writes side by side: with fewer it is not busy."""

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> Iterator[Generated]:
        """Yields each request's answers when they are written, in any order, each request once.

        A request that is refused, or fails in each try, has an error; the others go on. Closing the iterator ends what
        is under way. Raises ServerError where no server can be reached, and StoppedError in a call that is to stop.
        """
