"""Groups: a prompt with its candidate responses, as text without duplicates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gram_fast.errors import InputError
from gram_fast.text.messages import Prompt, read_text


@dataclass(frozen=True)
class Group:
    """A prompt and its candidates, numbered in the caller's order; `texts` are in order of first appearance."""

    prompt: str
    texts: list[str]
    """The distinct responses."""
    text_of: NDArray[np.int64]
    """Number in `texts` of each candidate, int64 [C]."""
    prompt_name: str
    names: list[str]
    """Name of each candidate in messages, such as "responses[2]"."""
    left_out: Mapping[str, tuple[str, ...]]
    """By name of the prompt or candidate, the keys of its chat messages that its text leaves out."""

    @classmethod
    def of(
        cls,
        prompt: Prompt,
        responses: Sequence[Prompt],
        *,
        prompt_name: str = "prompt",
        name: Callable[[int], str] = "responses[{}]".format,
        at_least: int = 2,
        include_reasoning: bool = False,
    ) -> "Group":
        """Reads a prompt and its responses; `name` gives the name of a candidate by its number.

        `include_reasoning`: texts of chat messages include their reasoning.

        Raises InputError on fewer than `at_least` responses and on anything that is not text.
        """
        if isinstance(responses, str) or not isinstance(responses, Sequence):
            raise InputError(f"responses: expected a list of responses, got {type(responses).__name__}")
        if len(responses) < at_least:
            raise InputError(f"responses: expected at least {at_least}, got {len(responses)}")
        names = [name(index) for index in range(len(responses))]
        read = [
            (name, *read_text(value, name, include_reasoning))
            for name, value in zip((*names, prompt_name), (*responses, prompt), strict=True)
        ]
        *texts, prompt_text = [text for _, text, _ in read]
        left_out = {name: keys for name, _, keys in read if keys}
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        text_of = np.array([numbers[text] for text in texts])
        return cls(prompt_text, list(numbers), text_of, prompt_name, names, left_out)

    @property
    def first_of(self) -> NDArray[np.int64]:
        """First candidate with each text, int64 [len(texts)]."""
        return np.unique(self.text_of, return_index=True)[1]

    def flags(self, flags_of: Callable[[str], tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """Flags of the prompt and the candidates by name, without empty ones: of their texts, and what is left out."""
        named = [(self.prompt_name, self.prompt)]
        named += [(name, self.texts[number]) for name, number in zip(self.names, self.text_of, strict=True)]
        flagged = {
            name: (*flags_of(text), *(f"{key} left out" for key in self.left_out.get(name, ()))) for name, text in named
        }
        return {name: flags for name, flags in flagged.items() if flags}
