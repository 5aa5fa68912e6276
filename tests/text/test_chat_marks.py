"""Text that still has the chat template of a model around it is flagged, whatever template the judge has."""

import pytest
from helpers.small_tokenizers import ALL, pair_tokenizer, tokenizer

from gram_fast.text.chat_marks import chat_marks

CHAT = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4."}]


@pytest.mark.parametrize("judge", ["qwen", "llama2"])
@pytest.mark.parametrize("policy", ALL)
def test_a_chat_of_any_of_these_templates_is_flagged_by_a_judge_of_another(judge, policy):
    whole = tokenizer(policy).apply_chat_template(CHAT, tokenize=False)
    assert pair_tokenizer(judge).flags(whole)


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("4.<|im_end|>\n<|im_start|>user\n5?<|im_end|>", ("<|im_end|>", "<|im_start|>")),
        ("4.<|eot_id|><|start_header_id|>user", ("<|eot_id|>", "<|start_header_id|>")),
        ("4.<end_of_turn>\n<start_of_turn>user", ("<end_of_turn>", "<start_of_turn>")),
        ("<|turn>user\n5?<turn|>", ("<|turn>", "<turn|>")),
        ("4.<\uff5cend\u2581of\u2581sentence\uff5c>", ("<\uff5cend\u2581of\u2581sentence\uff5c>",)),
        (
            "[INST] <<SYS>>\nBe brief.\n<</SYS>> 2 + 2? [/INST] 4.</s>\n",
            ("[INST]", "<<SYS>>", "<</SYS>>", "[/INST]", "</s>"),
        ),
        ("2 + 2?\n\n### Response:\n4.", ("### Response:",)),
    ],
)
def test_marks_are_found_in_order(text, marks):
    assert chat_marks(text) == marks


@pytest.mark.parametrize(
    "text",
    [
        "",
        "An ordinary answer: [User], [INSTANCE], ### Responses and a < b || c > d.",
        "<p><s>old</s> <b>new</b></p>",
        "let f = x |> g <| h in parse <|> other",
        "if (a<b||c>d) { return a<=b|c; }",
        "<think>\nhm\n</think>\n\nYes",
    ],
)
def test_ordinary_texts_have_none(text):
    assert chat_marks(text) == ()
