"""The texts of a call as pieces: the ids of the whole text, whatever the template looks like around its slots."""

import itertools

import numpy as np
import pytest
from helpers.small_models import tiny_tokenizer
from helpers.small_tokenizers import ALL, COMPOSED, tokenizer
from helpers.texts import AWKWARD

from gram_fast.text.encoded import EncodedTexts
from gram_fast.text.prompts import SLOTS, PairTemplate
from gram_fast.text.tokens import PairTokenizer

PROMPTS, GROUPS = ["Why?", "Say hi."], [["x", "y\n"], ["hi", "Why?", ""]]
BORDER = "\n\n=== item ===\n\n"


@pytest.mark.parametrize("order", list(itertools.permutations(SLOTS)), ids="-".join)
def test_prompts_and_responses_with_the_same_text_around_them_keep_their_own_pieces(order):
    template = PairTemplate.parse("Which?" + BORDER + "".join(f"{{{slot}}}{BORDER}" for slot in order) + "Answer: ")
    tokenizer = PairTokenizer(tiny_tokenizer(), template)
    assert len({frame.key for frame in tokenizer.frames}) == 1
    encoded = EncodedTexts.of(tokenizer, PROMPTS, GROUPS)
    presentations = [(g, i, j) for g, group in enumerate(GROUPS) for i in range(len(group)) for j in range(len(group))]
    found = encoded.round(presentations, 0)
    whole = tokenizer.whole_ids([(PROMPTS[g], GROUPS[g][i], GROUPS[g][j]) for g, i, j in presentations])
    for numbers, ids in zip(found.sequences, whole, strict=True):
        np.testing.assert_array_equal(np.concatenate([encoded.head_ids, *(found.segments[k] for k in numbers)]), ids)


@pytest.mark.filterwarnings("ignore:.*tokenized whole")
@pytest.mark.parametrize("name", ALL)
def test_lengths_are_those_of_the_whole_texts(name):
    for text in (
        "Which?\n{input}\n\n=> {response_a}\n\n=> {response_b}\n\nA or B?",
        "Is it right?\n{input}\n\n=> {response}\n\nYes?",
    ):
        pairs = PairTokenizer(tokenizer(name), PairTemplate.parse(text))
        encoded = EncodedTexts.of(pairs, AWKWARD[:2], [AWKWARD, AWKWARD[3:6]])
        for g, group in enumerate((AWKWARD, AWKWARD[3:6])):
            count = len(group)
            shown = np.array([(i, (3 * i + 1) % count)[: len(pairs.text.slots) - 1] for i in range(count)], np.int64)
            whole = pairs.whole_ids([(AWKWARD[g], *(group[k] for k in numbers)) for numbers in shown])
            assert encoded.lengths(g, shown).tolist() == [len(ids) for ids in whole]
            assert len(encoded.lengths(g, shown[:0])) == 0


@pytest.mark.filterwarnings("ignore:.*tokenized whole")
@pytest.mark.parametrize(
    "text", ["Is it right?\n{input}\n\n=> {response}\n\nYes?", "Of «{response}»\n\nto: {input} (x)."]
)
@pytest.mark.parametrize("name", ALL)
def test_presentations_of_one_response_are_the_whole_text(name, text):
    pairs = PairTokenizer(tokenizer(name), PairTemplate.parse(text))
    assert pairs.frames is not None or name not in COMPOSED
    prompts, groups = AWKWARD[::9], [AWKWARD, AWKWARD[::-1], AWKWARD[:3], [""], AWKWARD[5:9]]
    encoded = EncodedTexts.of(pairs, prompts, groups)
    presentations = [(g, i) for g, group in enumerate(groups) for i in range(len(group))]
    found = encoded.round(presentations, 0)
    assert found.reusable == found.sequences.shape[1] - 1 == (1 if pairs.frames else 0)
    for numbers, (g, i) in zip(found.sequences, presentations, strict=True):
        ids = np.concatenate([encoded.head_ids, *(found.segments[k] for k in numbers)])
        np.testing.assert_array_equal(ids, pairs.whole_ids([(prompts[g], groups[g][i])])[0])
