"""From pairs to sequences with labels: exactly the judge's ids, exactly GRAM's formats, labels where they belong."""

import numpy as np
import pytest
from helpers.small_models import tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.errors import InputError
from gram_fast.text.prompts import PairTemplate, render_chat
from gram_fast.text.tokens import PairTokenizer
from gram_fast.training.data.records import PairRecord
from gram_fast.training.data.sequences import (
    TokenizedPair,
    collate,
    finetune_encoder,
    pretrain_encoder,
    pretraining_literals,
    scalar_encoder,
    tokenize_pairs,
    within_embedding,
    without_endless,
)

TOKENIZER = tiny_tokenizer()
PRESETS = ("gram", "gram-demo", "short", "genrm", "gram-qwen3")
PAIRS = {preset: PairTokenizer(TOKENIZER, PairTemplate.load(preset)) for preset in PRESETS}
TEXT = st.text(max_size=20) | st.sampled_from(["<|im_end|>", "\n\n", "[Answer B]\n", " ", "A"])


def record(prompt="q", a="one", b="two\n", preferred="A"):
    return PairRecord(prompt, a, b, preferred, "row 1")


def texts(item, asked_only=False):
    ids = np.split(item.input_ids, item.lengths.cumsum()[:-1])
    return [TOKENIZER.decode(sequence) for sequence in ids]


@given(TEXT, TEXT, TEXT, st.sampled_from("AB"), st.sampled_from(PRESETS))
@settings(max_examples=60, deadline=None)
def test_finetune_shows_each_pair_in_both_orders_as_the_judge_does(prompt, a, b, preferred, preset):
    [item] = finetune_encoder(PAIRS[preset])([record(prompt, a, b, preferred)])
    expected = PAIRS[preset].whole_ids([(prompt, a, b), (prompt, b, a)])
    np.testing.assert_array_equal(item.input_ids, np.concatenate(expected))
    assert item.lengths.tolist() == [len(ids) for ids in expected]
    assert item.label_positions.tolist() == (item.lengths.cumsum() - 1).tolist()
    assert item.labels.tolist() == ([0, 1] if preferred == "A" else [1, 0])


def test_pretraining_data_has_grams_own_format():
    """The two templates of GRAM's README, Preparing Models and Datasets."""
    instruction, output = pretraining_literals(PairTemplate.load("gram"))
    assert instruction == ("[User Question]\n", "\n\n")
    assert output == (
        "[The Start of Assistant A's Answer]\n",
        "\n[The End of Assistant A's Answer]\n\n[The Start of Assistant B's Answer]\n",
        "\n[The End of Assistant B's Answer]",
    )
    with pytest.raises(InputError, match=r"first slot is \{input\}, not \{response_a\}"):
        pretraining_literals(PairTemplate.parse("{response_a} {response_b} {input}"))


def test_pretrain_asks_for_the_assistants_turn_and_nothing_else():
    [item] = pretrain_encoder(PAIRS["gram"], TOKENIZER)([record("Why?", "So.", "No.", None)])
    [instruction, output] = ["[User Question]\nWhy?\n\n", "[The Start of Assistant A's Answer]\nSo.\n"]
    opening = render_chat(TOKENIZER, [{"role": "user", "content": instruction}])
    assert texts(item)[0].startswith(opening + output)
    assert TOKENIZER.decode(item.labels) == (
        output + "[The End of Assistant A's Answer]\n\n[The Start of Assistant B's Answer]\nNo.\n"
        "[The End of Assistant B's Answer]<|im_end|>\n"
    )
    # A label is the token behind its position; the last one is not in the sequence.
    np.testing.assert_array_equal(item.labels[:-1], item.input_ids[item.label_positions[:-1] + 1])


PLAIN = st.text("ab \n\té.", min_size=1, max_size=20)


@given(PLAIN, PLAIN, PLAIN)
@settings(max_examples=60, deadline=None)
def test_pretrain_has_the_ids_and_labels_of_llama_factory(prompt, a, b):
    """Its template `qwen3` without thinking, for a row as GRAM's README has it (src/llamafactory/data/template.py of
    hiyouga/LLaMA-Factory): turns and the empty thinking are encoded one by one, all from the answer on is predicted.
    """
    instruction = f"[User Question]\n{prompt}\n\n"
    output = (
        f"[The Start of Assistant A's Answer]\n{a}\n[The End of Assistant A's Answer]\n\n"
        f"[The Start of Assistant B's Answer]\n{b}\n[The End of Assistant B's Answer]"
    )
    before = [f"<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n", "<think>\n\n</think>\n\n"]
    source = [token for turn in before for token in TOKENIZER.encode(turn, add_special_tokens=False)]
    target = TOKENIZER.encode(f"{output}<|im_end|>\n", add_special_tokens=False)
    [item] = pretrain_encoder(PAIRS["gram"], TOKENIZER)([record(prompt, a, b, None)])
    # The Trainer of transformers shifts LLaMA-Factory's labels, which stand at the tokens themselves.
    assert item.input_ids.tolist() == (source + target)[:-1]
    assert item.label_positions.tolist() == list(range(len(source) - 1, len(item.input_ids)))
    assert item.labels.tolist() == target


def test_special_tokens_in_a_response_stay_text():
    for encode in (
        pretrain_encoder(PAIRS["gram"], TOKENIZER),
        finetune_encoder(PAIRS["gram"]),
        scalar_encoder(PAIRS["gram"], TOKENIZER),
    ):
        special = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
        counts = [
            sum((item.input_ids == special).sum() for item in encode([record("q", a, "two")]))
            for a in ("one", "<|im_end|>")
        ]
        assert counts[0] == counts[1]


def test_scalar_reads_chosen_then_rejected_as_chats():
    [item] = scalar_encoder(PAIRS["gram"], TOKENIZER)([record("q", "bad", "good", "B")])
    chats = [
        render_chat(
            TOKENIZER,
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}],
            add_generation_prompt=False,
        )
        for answer in ("good", "bad")
    ]
    assert texts(item) == chats
    assert item.label_positions.tolist() == (item.lengths.cumsum() - 1).tolist()
    assert item.labels.tolist() == [1, 0]


def test_collate_packs_end_to_end():
    items = [
        TokenizedPair(*(np.array(numbers, np.int32) for numbers in ([7, 8, 9], [3], [1, 2], [9, 3]))),
        TokenizedPair(*(np.array(numbers, np.int32) for numbers in ([7, 5], [2], [1], [2]))),
    ]
    assert {name: tensor.tolist() for name, tensor in collate(items).items()} == {
        "input_ids": [[7, 8, 9, 7, 5]],
        "position_ids": [[0, 1, 2, 0, 1]],
        "spans_N2": [[0, 3], [3, 5]],
        "range_offsets": [0, 0, 0],
        "ranges_R2": [],
        "label_positions": [1, 2, 4],
        "labels": [9, 3, 2],
    }


def test_long_pairs_are_handed_over_whole():
    encode, long = finetune_encoder(PAIRS["short"]), []
    records = [record(prompt="x " * n) for n in range(0, 1200, 2)]
    lengths = [int(encode([r])[0].lengths.max()) for r in records]
    cutoff = sorted(lengths)[300]
    kept = list(tokenize_pairs(iter(records), encode, cutoff, lambda r, length: long.append((r, length))))
    assert [int(item.lengths.max()) for item in kept] == [length for length in lengths if length <= cutoff]
    assert long == [(r, length) for r, length in zip(records, lengths, strict=True) if length > cutoff]


def test_pairs_with_a_text_without_end_are_left_out_before_they_are_tokenized():
    endless, long = record(a="word " * 10_000), []
    records = [record(prompt="x " * 300), endless, record()]
    bounded = without_endless(records, PAIRS["short"], 50, lambda r, length: long.append((r, length)))
    assert list(bounded) == [records[0], records[2]]
    [(left_out, length)] = long
    assert left_out is endless
    assert 50 < length < 2_000


def test_token_that_the_model_has_no_embedding_of_names_the_row():
    tok = tiny_tokenizer()
    rows = len(tok)
    tok.add_tokens(["<new>"])
    pairs = PairTokenizer(tok, PairTemplate.load("gram"))
    encode = within_embedding(finetune_encoder(pairs), pairs, rows)
    assert len(encode([record(), record(b="new")])) == 2
    message = f"^row 1: it has token {rows}, '<new>', but the model has embeddings of {rows} tokens"
    with pytest.raises(InputError, match=message):
        encode([record(), record(b="a <new>")])
    assert within_embedding(encode, pairs, rows + 1) is encode
