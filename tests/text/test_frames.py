"""Frames: text around the user message in place of the chat template, as LLaMA-Factory writes it in training."""

import pytest
from helpers.small_tokenizers import MAKE, tokenizer
from helpers.texts import AWKWARD

from gram_fast.errors import UnsupportedModelError
from gram_fast.text.prompts import ChatText, PairTemplate
from gram_fast.text.tokens import PairTokenizer

GRAM = PairTemplate.load("gram")
# What LLaMA-Factory's templates `llama3` and `qwen3` put around a user message; each part is encoded by itself there.
PARTS = {
    "gram-llama3": (
        "llama3",
        ["<|begin_of_text|>"],
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        [],
    ),
    "gram-qwen3": ("qwen", [], "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", ["<think>\n\n</think>\n\n"]),
}
ROWS = [
    ("What is 2 + 2?", "4.", "It is five!\n"),
    ("q", " x ", "{content}"),
    *zip(AWKWARD[0::3], AWKWARD[1::3], AWKWARD[2::3], strict=False),
]


@pytest.mark.parametrize("preset", PARTS)
def test_text_of_the_message_is_that_of_gram(preset):
    template = PairTemplate.load(preset)
    assert template.text == GRAM.text
    assert template.labels == GRAM.labels
    assert template.answer_prefix == ""


@pytest.mark.parametrize("preset", PARTS)
def test_frame_is_that_of_training(preset):
    """Bytes, and the ids of each part by itself, joined."""
    name, before, turn, after = PARTS[preset]
    tok, pairs = tokenizer(name), PairTokenizer(tokenizer(name), PairTemplate.load(preset))
    for row in ROWS:
        parts = [*before, turn.format(GRAM.fill(*row)), *after]
        assert pairs.text.fill(*row) == "".join(parts)
        if "<|" not in "".join(row):  # there, a special token in a response is one; here it stays text
            joined = [token for part in parts for token in tok(part, add_special_tokens=False)["input_ids"]]
            assert pairs.whole_ids([row])[0].tolist() == joined


def test_the_cue_keeps_its_space_which_the_chat_template_strips():
    framed, own = (
        ChatText.render(PairTemplate.load(preset), tokenizer("llama3")) for preset in ("gram-llama3", "gram")
    )
    assert framed.literals[-1].partition("<|eot_id|>")[0].endswith("\n\n#Preferred: ")
    assert own.literals[-1].partition("<|eot_id|>")[0].endswith("\n\n#Preferred:")


def test_qwen_s_own_chat_template_without_thinking_is_the_same_text():
    framed, own = (PairTokenizer(tokenizer("qwen"), PairTemplate.load(preset)) for preset in ("gram-qwen3", "gram"))
    assert framed.text == own.text
    for row in ROWS:
        assert framed.whole_ids([row])[0].tolist() == own.whole_ids([row])[0].tolist()


def test_frame_stands_in_for_a_missing_or_broken_chat_template():
    expected = ChatText.render(PairTemplate.load("gram-llama3"), tokenizer("llama3"))
    for chat_template in (None, "{% if %}"):
        tok = MAKE["llama3"]()
        tok.chat_template = chat_template
        assert PairTokenizer(tok, PairTemplate.load("gram-llama3")).text == expected


def test_special_tokens_of_a_response_stay_text_in_a_frame():
    pairs = PairTokenizer(tokenizer("llama3"), PairTemplate.load("gram-llama3"))
    eot = tokenizer("llama3").convert_tokens_to_ids("<|eot_id|>")
    assert pairs.whole_ids([("q", "<|eot_id|>", "b")])[0].tolist().count(eot) == 1
    assert pairs.flags("a<|eot_id|>") == ("<|eot_id|>",)


def test_added_tokens_that_a_frame_begins_with_stay_text_too():
    """As with a chat template, they need not be marked special."""
    tok = MAKE["deepseek"]()
    tok.chat_template = None
    user = next(token for token in tok.get_added_vocab() if "User" in token)
    pairs = PairTokenizer(tok, PairTemplate.parse(GRAM.text, frame=f"{user}{{content}}\n"))
    ids = pairs.whole_ids([("q", user, "b")])[0].tolist()
    assert ids.count(tok.convert_tokens_to_ids(user)) == 1


@pytest.mark.parametrize(
    ("name", "preset"), [("qwen", "gram-llama3"), ("llama3", "gram-qwen3"), ("llama2", "gram-qwen3")]
)
def test_frame_of_another_family_is_refused(name, preset):
    with pytest.raises(
        UnsupportedModelError, match=r"^the preset's frame has <\|.*\|>, which is no token of this check"
    ):
        PairTokenizer(tokenizer(name), PairTemplate.load(preset))
