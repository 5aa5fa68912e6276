"""Labels as tokens: one each, the next one of the whole text, told apart."""

import pytest
from helpers.small_tokenizers import ALL, MAKE, pair_tokenizer, tokenizer, wrap
from helpers.texts import TEMPLATES
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from gram_fast.errors import UnsupportedModelError
from gram_fast.text.prompts import LABELS, PairTemplate
from gram_fast.text.tokens import PairTokenizer


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ALL)
def test_labels_are_the_next_ids_of_the_whole_text(name, template):
    pairs = pair_tokenizer(name, template)
    text = pairs.text.fill("q", "a", "b")
    before = tokenizer(name)(text, add_special_tokens=False)["input_ids"]
    for label, label_id in zip(LABELS, pairs.label_ids, strict=True):
        assert tokenizer(name)(text + label, add_special_tokens=False)["input_ids"] == [*before, label_id]
    assert pairs.label_ids[0] != pairs.label_ids[1]


def test_label_that_merges_with_the_text_before_it_is_refused():
    tok = MAKE["gpt2"]()
    # The prompt ends in a space, which " A" swallows: the model never saw the prompt's last token before a label.
    tok.chat_template = "{{ messages[0].content }}"
    with pytest.raises(UnsupportedModelError, match=r"^label 'A' is not one token after the prompt"):
        PairTokenizer(tok, TEMPLATES["gram"])


@pytest.mark.parametrize("label", LABELS)
def test_label_of_several_tokens_is_named(label):
    tok = MAKE["llama2"]()
    spelled = normalizers.Replace(label, "\u0301\u0302")
    tok.backend_tokenizer.normalizer = normalizers.Sequence([tok.backend_tokenizer.normalizer, spelled])
    with pytest.raises(UnsupportedModelError, match=rf"^label '{label}' is not one token after .* got \["):
        PairTokenizer(tok, TEMPLATES["gram"])


def test_label_spelled_as_its_byte():
    # "A" is not in the vocabulary, its byte is: still one token.
    model = models.BPE(
        vocab={token: k for k, token in enumerate(["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))])},
        merges=[],
        unk_token="<unk>",
        byte_fallback=True,
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.add_special_tokens(["<s>", "<unk>"])
    tok = wrap(backend, "<s>{{ messages[0].content }}\n", bos_token="<s>")
    pairs = PairTokenizer(tok, TEMPLATES["gram"])
    assert pairs.label_ids == (2 + ord("A"), 2 + ord("B"))
    assert pairs.frames is not None


def test_labels_that_are_one_unknown_token_are_refused():
    vocab = {"<unk>": 0, **{char: index for index, char in enumerate(" abcdefg\n", 1)}}
    model = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tok = PreTrainedTokenizerFast(tokenizer_object=model, chat_template="{{ messages[-1].content }}\n")
    with pytest.raises(UnsupportedModelError, match="are the same token 0"):
        PairTokenizer(tok, PairTemplate.parse("{input} a {response_a} b {response_b} c"))
