"""Token ids of a call's texts, each text encoded once, and presentations as sequences of these pieces."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gram_fast.errors import InputError, UnsupportedModelError
from gram_fast.text.prompts import slot_names
from gram_fast.text.tokens import Frame, Ids, PairTokenizer

Presentation = tuple[int, ...]
"""(group, i, j): text i of the group in slot A and text j in slot B, numbered as in Group.texts; or, for a verifier,
(group, i)."""
_NO_IDS = np.empty(0, np.int32)
# Whole presentations that are encoded at once to be counted: what the tokenizer keeps of each takes much memory.
_AT_ONCE = 256


@dataclass(frozen=True)
class EncodedRound:
    """Presentations of one round as sequences of segments (token ids [T], int32)."""

    segments: Sequence[Ids]
    """Segments that no earlier round had; their numbers follow those of earlier rounds."""
    sequences: NDArray[np.int32]
    """Numbers of the segments of each presentation, int32 [P, segments per presentation]."""
    reusable: int
    """Number of leading segments of a sequence that later rounds may share."""
    is_factored: bool = False
    """Whether the last three segments are two that do not read each other, and one that reads both."""


@dataclass(frozen=True)
class EncodedTexts:
    """Prompts and responses of one call, encoded in pieces that presentations share.

    A presentation is `head_ids` and one piece per slot. Where a text cannot be cut exactly, presentations are
    encoded whole instead: each is one segment without a head, encoded in its round.

    To a factored judge it is `head_ids`, the prompt's piece, that of either response, and the template's text behind
    them (docs/design/factored.md).
    """

    tokenizer: PairTokenizer
    prompts: Sequence[str]
    groups: Sequence[Sequence[str]]
    """Distinct responses to each prompt."""
    head_ids: Ids
    """Token ids int32 [T] that every presentation starts with; empty where presentations are encoded whole."""
    pieces: Sequence[Ids]
    """One piece for each distinct text of each slot; none where presentations are encoded whole."""
    numbers: Sequence[dict[str, int]]
    """Number of the piece of each text, one dictionary per slot in the template's order."""
    is_factored: bool = False
    """Whether the last piece is the text behind the slots, apart from the last slot's pieces."""

    @classmethod
    def of(
        cls,
        tokenizer: PairTokenizer,
        prompts: Sequence[str],
        groups: Sequence[Sequence[str]],
        *,
        is_factored: bool = False,
    ) -> "EncodedTexts":
        """Encodes every prompt and response once; `groups[g]` are the responses to `prompts[g]`.

        `is_factored`: for a judge that reads each response by itself. Where a text cannot be cut exactly this warns,
        and presentations are encoded whole; to a factored judge it is an InputError.
        """
        whole = cls(tokenizer, prompts, groups, _NO_IDS, (), (), is_factored)
        if tokenizer.frames is None:
            return whole
        composed = _composed(whole, tokenizer.frames)
        if composed is None or not composed._is_exact_on_a_sample():
            if is_factored:
                raise InputError(f"a text of this request {MOVES_A_CUT}")
            warnings.warn(
                "a text of this request moves a cut that was held for safe: its pairs are tokenized whole", stacklevel=2
            )
            return whole
        return composed

    def round(self, presentations: Sequence[Presentation], known: int) -> EncodedRound:
        """Makes the segments and sequences of a round; `known`: segments of the call's earlier rounds."""
        if self.numbers:
            sequences = np.array([self._pieces_of(presentation) for presentation in presentations], np.int32)
            return EncodedRound(self.pieces[known:], sequences, sequences.shape[1] - 1, self.is_factored)
        segments = self.tokenizer.whole_ids([self._texts(presentation) for presentation in presentations])
        numbers = np.arange(known, known + len(segments), dtype=np.int32)
        return EncodedRound(segments, numbers[:, None], reusable=0)

    def lengths(self, group: int, shown: NDArray[np.int64]) -> NDArray[np.int64]:
        """Counts the tokens of presentations of a group -> int64 [P].

        `shown`: numbers of the responses in the slots, int64 [P, responses shown]. Where presentations are encoded
        whole, this encodes all of them.
        """
        if not self.numbers:
            rows = [self._texts((group, *numbers)) for numbers in shown.tolist()]
            parts = [rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)]
            return np.array([len(ids) for part in parts for ids in self.tokenizer.whole_ids(part)], np.int64)
        found = np.full(len(shown), len(self.head_ids) + (len(self.pieces[-1]) if self.is_factored else 0))
        for numbers, place in self._numbers_and_places:
            if place == 0:
                found += len(self.pieces[numbers[self.prompts[group]]])
            else:
                of_texts = np.array([len(self.pieces[numbers[text]]) for text in self.groups[group]])
                found += of_texts[shown[:, place - 1]]
        return found

    def _is_exact_on_a_sample(self) -> bool:
        """Whether composed ids equal those of the whole text, for the first and last responses of two groups."""
        groups = range(len(self.groups))
        shown = ((0,), (-1,)) if self.tokenizer.template.is_verifier else ((0, -1), (-1, 0))
        sample = [(g, *responses) for g in {*groups[:1], *groups[-1:]} for responses in shown]
        whole = self.tokenizer.whole_ids([self._texts(presentation) for presentation in sample])
        composed = [[self.head_ids, *(self.pieces[k] for k in self._pieces_of(shown))] for shown in sample]
        return all(np.array_equal(np.concatenate(c), w) for c, w in zip(composed, whole, strict=True))

    def _texts(self, presentation: Presentation) -> list[str]:
        group, *shown = presentation
        responses = self.groups[group]
        return [self.prompts[group], *[responses[k] for k in shown]]

    def _pieces_of(self, presentation: Presentation) -> list[int]:
        texts = self._texts(presentation)
        numbers = [numbers[texts[place]] for numbers, place in self._numbers_and_places]
        return [*numbers, len(self.pieces) - 1] if self.is_factored else numbers

    @cached_property
    def _numbers_and_places(self) -> list[tuple[dict[str, int], int]]:
        """By slot in the template's order: the numbers of its pieces, and its place among a presentation's texts."""
        slots = self.tokenizer.text.slots
        places = map(slot_names(slots).index, slots)
        return list(zip(self.numbers, places, strict=True))


MOVES_A_CUT = (
    "moves a cut that was held for safe: expected texts whose tokens end with them, for a judge that reads each "
    "response by itself"
)
"""What is wrong with a text that a factored judge cannot read."""


def check_factored(tokenizer: PairTokenizer) -> None:
    """Raises UnsupportedModelError for a prompt in which no judge can read each response by itself."""
    slots = tokenizer.template.slots
    if slots[0] != "input" or tokenizer.template.is_verifier:
        raise UnsupportedModelError(
            "mode factored: expected a template whose first slot is {input} and that shows two responses, got the "
            f"slots {', '.join(f'{{{slot}}}' for slot in slots)}"
        )
    if tokenizer.frames is None:
        raise UnsupportedModelError(
            "mode factored: expected a tokenizer that cuts the template between its texts, got one without a safe cut"
        )


def _composed(texts: EncodedTexts, frames: tuple[Frame, ...]) -> EncodedTexts | None:
    """Encodes the texts in pieces, once for slots of responses that have the same template text around them.

    None when a text changes the tokens beyond a cut.
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
        behind = _NO_IDS if texts.is_factored and frame is frames[-1] else frame.after_ids
        pieces += [np.concatenate([ids, behind]) for ids in of_slot.values()]
    if texts.is_factored:
        pieces.append(frames[-1].after_ids)
    return replace(texts, head_ids=frames[0].before_ids, pieces=pieces, numbers=numbers)
