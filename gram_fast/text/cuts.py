"""Finds where template text may be cut so that the token ids of the parts, joined, are the ids of the whole text.

A cut inside a literal (fixed text of the template) is safe when no token can lie across it, whatever stands in the
slots, and when the text on one side cannot change the tokens on the other:

- A pre-tokenizer that splits (the regular expressions of GPT-2, Llama 3, Qwen, ...) matches from left to right and the
  model runs inside each match. A place where a match always ends is a cut: the rest is matched afresh. "Always" is
  tested with every pair of character classes beside the literal; a pattern that looks behind has no cuts. Encoding
  checks the boundary again for every text (Frame in tokens.py), so text that the tests missed is not mis-scored.
- Without splitting, BPE (SentencePiece style) grows tokens by merging neighbours: a place whose two characters stand
  side by side in no entry of the vocabulary is a cut. This needs no test. It does not hold for Unigram,
  whose best path is a rounded sum over the whole text: far text can tip a tie. Unigram has cuts only where it splits.

Characters beside a cut are ASCII, so Unicode normalization cannot join across it.
"""

import itertools
import json

from tokenizers import Tokenizer

# One or more of each class that splitting rules tell apart: letters of cased, uncased and combining scripts, digits,
# punctuation, symbols, spaces, line ends, joiners, control characters.
_CLASSES = [*"aZé中ด7٣²'\"]_`<{.+ \t\n\r", "\u0301", "\u0bbf", "\u00a0", "\u200b", "\u200d", "😀", "\x00"]
_WORDS = [
    "",
    "'s",
    "'LL",
    "...\n",
    " \n ",
    "\r\n\r\n",
    "```",
    "```\n",
    "a\u0301",
    "👩\u200d💻",
    "   ",
    "\n\n\n",
    "12345",
]
PROBES = [*_WORDS, *_CLASSES]
_PAIRS = [first + second for first, second in itertools.product(_CLASSES, repeat=2)]


class CutProver:
    """Finds the safe cuts of literals for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._splits = len(self._pre_tokenize("a b\n1. c")) > 1
        spec = json.loads(tokenizer.to_str())
        self._looks_behind = "(?<" in json.dumps(spec["pre_tokenizer"])
        self._merges = spec["model"]["type"] == "BPE"
        # One long text to search for pairs of characters; the separator occurs in none of them.
        self._vocab = "" if self._splits else "\0".join(tokenizer.get_vocab(with_added_tokens=False))

    def safe_cuts(self, literal: str, follows_slot: bool, precedes_slot: bool) -> list[int]:
        """Finds the positions c, 0 < c < len(literal), at which the literal may be cut; ascending, maybe none.

        `follows_slot`, `precedes_slot`: whether arbitrary text adjoins on the left, right. The literal must hold no
        added token.
        """
        plain = [char.isascii() and char != "\0" for char in literal]
        candidates = [c for c in range(1, len(literal)) if plain[c - 1] and plain[c]]
        if self._splits:
            return self._always_split(literal, candidates, follows_slot, precedes_slot)
        return self._never_merged(literal, candidates) if self._merges else []

    def _always_split(self, literal: str, cuts: list[int], follows_slot: bool, precedes_slot: bool) -> list[int]:
        if self._looks_behind:
            return []
        for probe in PROBES + _PAIRS:
            left, right = probe if follows_slot else "", probe if precedes_slot else ""
            ends = {end for _, (_, end) in self._pre_tokenize(left + literal + right)}
            cuts = [c for c in cuts if len(self._normalize(left + literal[:c])) in ends]
        return cuts

    def _never_merged(self, literal: str, cuts: list[int]) -> list[int]:
        def surface(pair: str) -> str:
            """Two characters as the vocabulary writes them; some tokenizers put a space in front."""
            return "".join(piece for piece, _ in self._pre_tokenize(pair))[-2:]

        return [c for c in cuts if len(pair := surface(literal[c - 1 : c + 1])) == 2 and pair not in self._vocab]

    def _normalize(self, text: str) -> str:
        normalizer = self._tokenizer.normalizer
        return normalizer.normalize_str(text) if normalizer else text  # type: ignore[no-any-return]

    def _pre_tokenize(self, text: str) -> list[tuple[str, tuple[int, int]]]:
        normal = self._normalize(text)
        pre_tokenizer = self._tokenizer.pre_tokenizer
        return pre_tokenizer.pre_tokenize_str(normal) if pre_tokenizer else [(normal, (0, len(normal)))]
