"""Where a template may be cut: at places where a token ends whatever stands in the slots."""

import functools

import pytest
from helpers.small_tokenizers import tokenizer
from helpers.texts import ANY_TEXT, TEMPLATES
from hypothesis import given, settings

from gram_fast.text.cuts import CutProver

LITERALS = [literal for template in TEMPLATES.values() for literal in template.literals]
ENDS = [literal[:64] for literal in LITERALS] + [literal[-64:] for literal in LITERALS]


@pytest.mark.parametrize("name", ["llama2", "no_cut"])
def test_no_entry_of_the_vocabulary_lies_across_a_cut(name):
    backend = tokenizer(name).backend_tokenizer
    prover = CutProver(backend)
    entries = [token.replace("▁", " ") for token in backend.get_vocab(with_added_tokens=False)]

    def lies_across(entry: str, left: str, right: str) -> bool:
        # Split anywhere, each half agrees with the literal as far as the literal goes; beyond it any text may stand.
        halves = ((entry[:k], entry[k:]) for k in range(1, len(entry)))
        return any(
            (left.endswith(a) or a.endswith(left)) and (right.startswith(b) or b.startswith(right)) for a, b in halves
        )

    for literal in ENDS:
        cuts = prover.safe_cuts(literal, follows_slot=True, precedes_slot=True)
        assert all(0 < c < len(literal) for c in cuts)
        assert cuts == sorted(set(cuts))
        for cut in cuts:
            assert not [e for e in entries if lies_across(e, literal[:cut], literal[cut:])], (literal, cut)


@pytest.mark.parametrize("name", ["qwen", "llama3", "gpt2"])
@settings(deadline=None, max_examples=60)
@given(left=ANY_TEXT, right=ANY_TEXT)
def test_splitting_always_ends_a_match_at_a_cut(name, left, right):
    tok = tokenizer(name).backend_tokenizer

    def normal(text: str) -> str:
        return tok.normalizer.normalize_str(text) if tok.normalizer else text

    def pieces(text: str) -> list[tuple[str, tuple[int, int]]]:
        return tok.pre_tokenizer.pre_tokenize_str(normal(text))

    for literal, cuts in split_cuts(name):
        whole = pieces(left + literal + right)
        for cut in cuts:
            begin = len(normal(left + literal[:cut]))
            behind = [piece for piece, (start, _) in whole if start >= begin]
            # What stands before the cut changes nothing behind it: the same pieces come out without it.
            assert behind == [piece for piece, _ in pieces(literal[cut:] + right)], (literal, cut)
            assert begin in [start for _, (start, _) in whole], (literal, cut)


@functools.cache
def split_cuts(name: str) -> list[tuple[str, list[int]]]:
    prover = CutProver(tokenizer(name).backend_tokenizer)
    ends = [literal[:64] for literal in LITERALS[1:3]] + [literal[-64:] for literal in LITERALS[:2]]
    return [(literal, prover.safe_cuts(literal, follows_slot=True, precedes_slot=True)) for literal in ends]


@pytest.mark.parametrize("name", ["qwen", "llama3"])
def test_line_end_that_the_slot_can_lengthen_is_no_cut(name):
    prover = CutProver(tokenizer(name).backend_tokenizer)
    literal = "Assistant A's Answer]\n"
    cuts = prover.safe_cuts(literal, follows_slot=True, precedes_slot=True)
    assert literal.index("]") in cuts  # "Answer" ends there, whatever follows
    # "]\n" and line ends behind it are one match, so neither side of "\n" is a border.
    assert literal.index("\n") not in cuts
    # Without a slot behind it the same holds: "]\n" itself is one match.
    assert literal.index("\n") not in prover.safe_cuts(literal, follows_slot=True, precedes_slot=False)
    assert CutProver(tokenizer(name).backend_tokenizer).safe_cuts("]\n\n", False, True) == []


def test_bracket_behind_a_slot_is_no_cut():
    prover = CutProver(tokenizer("qwen").backend_tokenizer)
    # Punctuation or a line end in the slot swallows the "\n" before "[", never the "[".
    assert prover.safe_cuts("\n[The End", follows_slot=True, precedes_slot=True)[0] == 1
    # Directly behind the slot, "(((" can still join "[" to what stands before it.
    assert prover.safe_cuts("[[", follows_slot=True, precedes_slot=True) == []


def test_cut_that_depends_on_the_slot_before_is_returned_only_without_one():
    prover = CutProver(tokenizer("llama3").backend_tokenizer)
    # Digits are taken by threes from the left: a digit in the slot moves the border.
    assert prover.safe_cuts("1234", follows_slot=False, precedes_slot=False) == [3]
    assert prover.safe_cuts("1234", follows_slot=True, precedes_slot=False) == []
    qwen = CutProver(tokenizer("qwen").backend_tokenizer)
    assert qwen.safe_cuts("1234", follows_slot=True, precedes_slot=True) == [1, 2, 3]


@pytest.mark.parametrize("name", ["qwen", "llama3"])
def test_cut_that_depends_on_the_slot_behind_is_returned_only_without_one(name):
    prover = CutProver(tokenizer(name).backend_tokenizer)
    # White space goes with the line ends behind it: a line end in the slot takes the tab along.
    assert prover.safe_cuts("x\n\t", follows_slot=True, precedes_slot=False) == [1, 2]
    assert prover.safe_cuts("x\n\t", follows_slot=True, precedes_slot=True) == [1]


@pytest.mark.parametrize("literal", ["", "x", "é中", "a\0b", "ééé"])
def test_literal_without_two_ascii_neighbours_has_no_cut(literal):
    for name in ("qwen", "llama2"):
        assert CutProver(tokenizer(name).backend_tokenizer).safe_cuts(literal, True, True) == []


def test_rule_that_looks_behind_has_no_cut():
    prover = CutProver(tokenizer("lookbehind").backend_tokenizer)
    assert all(prover.safe_cuts(literal, True, True) == [] for literal in ENDS)


def test_unigram_that_does_not_split_has_no_cuts():
    # Its best path is a rounded sum over the whole text: where pieces tie, text far away decides.
    model = tokenizer("unigram").backend_tokenizer
    assert CutProver(model).safe_cuts("[The End]\n", follows_slot=True, precedes_slot=True) == []
