"""Groups: a prompt with its candidate responses, as text without duplicates."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gram_fast.errors import InputError
from gram_fast.results import MaybeNone, Preference
from gram_fast.text.lists import as_list
from gram_fast.text.messages import Prompt, read_text


@dataclass(frozen=True)
class Names:
    """What the parts of a group are called in messages."""

    prompt: str = "prompt"
    responses: str = "responses"
    candidate: Callable[[int], str] = "responses[{}]".format
    """Name of a candidate by its number; that of a reference by -1."""


@dataclass(frozen=True)
class Group:
    """A prompt and its candidates, in the caller's order; `texts` are in order of first appearance."""

    prompt: str
    texts: list[str]
    """The distinct responses."""
    text_of: NDArray[np.int64]
    """Number in `texts` of each candidate, int64 [C]."""
    numbers: list[int]
    """The caller's number of each candidate: ascending, without those left out; -1 of a reference, the first."""
    size: int
    """How many candidates the caller gave, those that are left out included, a reference not."""
    name: str
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
        names: Names = Names(),
        *,
        at_least: int = 2,
        include_reasoning: bool = False,
    ) -> "Group":
        """Reads a prompt and its responses, all of them; else as `read`.

        Raises InputError, which names all that is no text, and on fewer than `at_least` responses.
        """
        errors: dict[str, str] = {}
        group = cls.read(prompt, responses, errors, names, at_least=at_least, include_reasoning=include_reasoning)
        if group is None or errors:
            raise InputError.of(errors)
        return group

    @classmethod
    def read(
        cls,
        prompt: Prompt,
        responses: Sequence[Prompt],
        errors: dict[str, str],
        names: Names = Names(),
        *,
        reference: Sequence[Prompt] = (),
        at_least: int = 2,
        include_reasoning: bool = False,
    ) -> "Group | None":
        """Reads a prompt and its responses, without those that are no text; `errors` takes the reasons by name.

        None where the prompt or the reference is no text, and where there are fewer than `at_least` responses.
        `reference`, at most one response, becomes the first candidate. `include_reasoning`: texts of chat messages
        include their reasoning. Raises InputError where `responses` is no list.
        """
        listed = as_list(responses)
        if listed is None:
            raise InputError(f"{names.responses}: expected a list of responses, got {type(responses).__name__}")
        if len(listed) < at_least:
            errors[names.responses] = f"expected at least {at_least} responses, got {len(listed)}"
        values = {names.candidate(k): value for k, value in enumerate([*reference, *listed], -len(reference))}
        texts, left_out = {}, {}
        for name, value in [(names.prompt, prompt), *values.items()]:
            try:
                texts[name], left_out[name] = read_text(value, name, include_reasoning)
            except InputError as error:
                errors[name] = str(error).removeprefix(f"{name}: ")
        needed = [names.prompt, *map(names.candidate, range(-len(reference), 0))]
        if len(listed) < at_least or not all(name in texts for name in needed):
            return None
        prompt_text = texts.pop(names.prompt)
        numbers = [k for k, name in enumerate(values, -len(reference)) if name in texts]
        distinct, text_of = _distinct(texts.values())
        return cls(
            prompt_text, distinct, text_of, numbers, len(listed), names.responses, names.prompt, list(texts), left_out
        )

    @property
    def first_of(self) -> NDArray[np.int64]:
        """First candidate with each text, int64 [len(texts)]."""
        return np.unique(self.text_of, return_index=True)[1]

    def without(self, names: Collection[str]) -> "Group | None":
        """Leaves out the candidates of these names; None where the prompt or the reference is among them."""
        kept = [c for c, name in enumerate(self.names) if name not in names]
        if self.prompt_name in names or (self.numbers[0] < 0 and kept[:1] != [0]):
            return None
        texts, text_of = _distinct([self.texts[self.text_of[c]] for c in kept])
        numbers, own_names = [self.numbers[c] for c in kept], [self.names[c] for c in kept]
        return replace(self, texts=texts, text_of=text_of, numbers=numbers, names=own_names)

    def by_candidate(self, values: NDArray[np.float64]) -> list[float | MaybeNone]:
        """Values of the distinct texts, [len(texts)] -> of all candidates given, None for those that are left out."""
        found: list[float | MaybeNone] = [None] * self.size
        for number, value in zip(self.numbers, values[self.text_of].tolist(), strict=True):
            if number >= 0:
                found[number] = value
        return found

    def preferences(self, comparisons: Iterable[Preference]) -> tuple[Preference, ...]:
        """Renumbers comparisons from distinct texts to the caller's candidates; the reference is number -1."""
        number_of = [self.numbers[first] for first in self.first_of]
        return tuple(replace(c, i=number_of[c.i], j=number_of[c.j]) for c in comparisons)

    @property
    def named_texts(self) -> dict[str, str]:
        """Texts of the prompt and the candidates by name."""
        candidates = {name: self.texts[number] for name, number in zip(self.names, self.text_of, strict=True)}
        return {self.prompt_name: self.prompt, **candidates}

    def flags(self, flags_of: Callable[[str], tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """Flags of the prompt and the candidates by name, without empty ones: of their texts, and what is left out."""
        flagged = {
            name: (*flags_of(text), *(f"{key} left out" for key in self.left_out.get(name, ())))
            for name, text in self.named_texts.items()
        }
        return {name: flags for name, flags in flagged.items() if flags}


def _distinct(texts: Iterable[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct texts in order of first appearance, and the number of each text among them."""
    number_of: dict[str, int] = {}
    text_of = [number_of.setdefault(text, len(number_of)) for text in texts]
    return list(number_of), np.array(text_of, np.int64)
