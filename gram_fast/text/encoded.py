"""The texts of one call as token ids, each encoded once, and the pairs of a round as lists of the pieces."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gram_fast.text.prompts import SLOTS
from gram_fast.text.tokens import Frame, Ids, PairTokenizer

Presentation = tuple[int, int, int]
"""(group, i, j): a pair as the judge sees it, response i of that group in slot A and response j in slot B."""
_NO_IDS = np.empty(0, np.int32)


@dataclass(frozen=True)
class EncodedRound:
    """The presentations of one round as sequences of segments."""

    segments: Sequence[Ids]
    """New ones; they are numbered behind those of earlier rounds."""
    sequences: NDArray[np.int32]
    """[P, k] numbers of segments."""
    reusable: int
    """The first so many segments of a sequence start other sequences too."""


@dataclass(frozen=True)
class EncodedTexts:
    """The prompts and responses of one call.

    Composed, a presentation is `head_ids` and three pieces: prompt, A and B. Where a text cannot be cut exactly, every
    presentation is encoded whole: it is one segment without a head, made in the round that asks for it.
    """

    tokenizer: PairTokenizer
    prompts: Sequence[str]
    groups: Sequence[Sequence[str]]
    """The responses to each prompt."""
    head_ids: Ids
    """What every presentation starts with."""
    pieces: Sequence[Ids]
    """All of them, each distinct text once a slot; none where presentations are encoded whole."""
    numbers: Sequence[dict[str, int]]
    """By slot, in the order of the template: the piece of each text."""

    @classmethod
    def of(cls, tokenizer: PairTokenizer, prompts: Sequence[str], groups: Sequence[Sequence[str]]) -> "EncodedTexts":
        """Encodes every prompt and response once; `groups[g]` are the responses to `prompts[g]`."""
        whole = cls(tokenizer, prompts, groups, _NO_IDS, (), ())
        if tokenizer.frames is None:
            return whole
        composed = _composed(whole, tokenizer.frames)
        if composed is None or not composed._is_exact_on_a_sample():
            warnings.warn(
                "a text of this request moves a cut that was held for safe: its pairs are tokenized whole", stacklevel=2
            )
            return whole
        return composed

    def round(self, presentations: Sequence[Presentation], known: int) -> EncodedRound:
        """The segments and sequences of a round, `known` segments of earlier rounds behind it."""
        if self.numbers:
            sequences = np.array([self._pieces_of(presentation) for presentation in presentations], np.int32)
            return EncodedRound(self.pieces[known:], sequences, reusable=2)
        segments = self.tokenizer.whole_ids([self._texts(presentation) for presentation in presentations])
        numbers = np.arange(known, known + len(segments), dtype=np.int32)
        return EncodedRound(segments, numbers[:, None], reusable=0)

    def _is_exact_on_a_sample(self) -> bool:
        """Compares composed ids with those of the whole text: first against last response, first and last group."""
        groups = range(len(self.groups))
        sample = [(g, i, j) for g in {*groups[:1], *groups[-1:]} for i, j in ((0, -1), (-1, 0))]
        whole = self.tokenizer.whole_ids([self._texts(presentation) for presentation in sample])
        composed = [[self.head_ids, *(self.pieces[k] for k in self._pieces_of(shown))] for shown in sample]
        return all(np.array_equal(np.concatenate(c), w) for c, w in zip(composed, whole, strict=True))

    def _texts(self, presentation: Presentation) -> tuple[str, str, str]:
        group, i, j = presentation
        return self.prompts[group], self.groups[group][i], self.groups[group][j]

    def _pieces_of(self, presentation: Presentation) -> list[int]:
        values = dict(zip(SLOTS, self._texts(presentation), strict=True))
        slots = self.tokenizer.text.slots
        return [numbers[values[slot]] for numbers, slot in zip(self.numbers, slots, strict=True)]


def _composed(texts: EncodedTexts, frames: tuple[Frame, ...]) -> EncodedTexts | None:
    """The texts with a piece for each distinct one, once a slot or once for slots whose surroundings are the same.

    None when a text moved a cut.
    """
    tokenizer = texts.tokenizer
    responses = [text for group in texts.groups for text in group]
    encoded: dict[tuple[bool, tuple[str, str]], dict[str, Ids]] = {}
    pieces: list[Ids] = []
    numbers = []
    for frame, slot in zip(frames, tokenizer.text.slots, strict=True):
        is_prompt = slot == "input"
        key = (is_prompt, frame.key)
        if key not in encoded:
            found = tokenizer.pieces(frame, texts.prompts if is_prompt else responses)
            if found is None:
                return None
            encoded[key] = found
        of_slot = encoded[key]
        numbers.append({text: len(pieces) + k for k, text in enumerate(of_slot)})
        pieces += [np.concatenate([ids, frame.after_ids]) for ids in of_slot.values()]
    return EncodedTexts(tokenizer, texts.prompts, texts.groups, frames[0].before_ids, pieces, numbers)
