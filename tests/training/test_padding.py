"""Scalar reward models: scored in padded batches, with the reward of each text by itself."""

import pytest
import torch
from helpers.small_models import tiny_tokenizer
from helpers.small_training import run, write_checkpoint, write_obvious_pairs
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gram_fast.text.prompts import render_chat
from gram_fast.training.padding import set_pad_token

# Llama's: the turn's end, which is also the text's end, closes the answer, and nothing follows.
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = [("Question 1?", "good"), ("Question 2, which is the longer one?", "bad, and long"), ("Q", "")]


def write_base(folder, pad_token):
    write_checkpoint(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token, tokenizer.chat_template = pad_token, CHAT
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("pad_token", [None, "<|im_end|>", "<|endoftext|>"])
def test_a_batch_has_the_rewards_of_its_texts(pad_token, lora, tmp_path):
    base = write_base(tmp_path / "base", pad_token)
    data = write_obvious_pairs(tmp_path / "pairs.jsonl", 8)
    out = run("scalar", base, data, tmp_path / "out", max_steps=2, lora=lora)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    chats = [[{"role": "user", "content": prompt}, {"role": "assistant", "content": said}] for prompt, said in TEXTS]
    texts = [render_chat(tokenizer, chat, add_generation_prompt=False) for chat in chats]
    with torch.no_grad():
        one_by_one = []
        for text in texts:
            hidden = model.model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).last_hidden_state
            one_by_one.append(model.score(hidden[0, -1]))
        for side in ("left", "right"):
            batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side=side, add_special_tokens=False)
            torch.testing.assert_close(model(**batch).logits, torch.stack(one_by_one), rtol=0, atol=1e-5)


def test_a_token_of_the_vocabulary_that_does_not_end_a_text_is_padding(caplog):
    tokenizer = tiny_tokenizer()
    end, turn = (tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>"))
    cases = [(turn, 600, "<|im_start|>"), (end, 600, "<|im_end|>"), (end, turn, "<|im_start|>"), (end, end, None)]
    for last_id, vocab_size, expected in cases:
        tokenizer = tiny_tokenizer()
        tokenizer.pad_token = None
        set_pad_token(tokenizer, last_id, vocab_size)
        assert tokenizer.pad_token == expected
    assert caplog.text.count("no special token that could be padding") == 1
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|finetune_right_pad_id|>"]})
    set_pad_token(tokenizer, end, 1000)
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>"
