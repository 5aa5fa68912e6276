"""One prompt and its candidate responses, as text, equal ones once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gram_fast.errors import InputError
from gram_fast.text.prompts import Prompt, to_text


@dataclass(frozen=True)
class Group:
    """Candidates are numbered as the caller gave them, `texts` by first appearance."""

    prompt: str
    texts: list[str]
    """The distinct responses."""
    text_of: NDArray[np.int64]
    """[C] number in `texts` of each candidate."""
    prompt_name: str
    names: list[str]
    """What the caller calls each candidate, for messages."""

    @classmethod
    def of(
        cls,
        prompt: Prompt,
        responses: Sequence[Prompt],
        *,
        prompt_name: str = "prompt",
        name: Callable[[int], str] = "responses[{}]".format,
        at_least: int = 2,
    ) -> "Group":
        """Reads a prompt and its responses. Raises InputError on fewer than `at_least` and on what is not text."""
        if isinstance(responses, str) or not isinstance(responses, Sequence):
            raise InputError(f"responses: expected a list of responses, got {type(responses).__name__}")
        if len(responses) < at_least:
            raise InputError(f"responses: expected at least {at_least}, got {len(responses)}")
        names = [name(index) for index in range(len(responses))]
        texts = [to_text(response, name) for response, name in zip(responses, names, strict=True)]
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        text_of = np.array([numbers[text] for text in texts])
        return cls(to_text(prompt, prompt_name), list(numbers), text_of, prompt_name, names)

    @property
    def first_of(self) -> NDArray[np.int64]:
        """[len(texts)] first candidate with each text."""
        return np.unique(self.text_of, return_index=True)[1]

    def flags(self, flags_of: Callable[[str], tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """Flags by name, for the prompt and the candidates that have any."""
        named = [(self.prompt_name, self.prompt)]
        named += [(name, self.texts[number]) for name, number in zip(self.names, self.text_of, strict=True)]
        return {name: flags for name, text in named if (flags := flags_of(text))}
