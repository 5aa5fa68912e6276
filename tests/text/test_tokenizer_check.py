"""Tokenizers that lose text, and those that change it as normalizers may."""

import json
import warnings

import pytest
from helpers.small_tokenizers import ALL, INST, MAKE, PLAIN_CHATML, TEXTS, sentencepiece_bpe, tokenizer, wrap
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from gram_fast.errors import UnsupportedModelError
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokenizer_check import check_round_trip, is_panic, tokenizer_errors
from gram_fast.text.tokens import PairTokenizer


def changes(tok) -> str | None:
    return check_round_trip(tok.backend_tokenizer, tok.backend_tokenizer)


def normalized(name: str, *parts):
    tok = MAKE[name]()
    before = [tok.backend_tokenizer.normalizer] if tok.backend_tokenizer.normalizer else []
    tok.backend_tokenizer.normalizer = normalizers.Sequence([*parts, *before])
    return tok


def wordpiece():
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tok.normalizer, tok.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=900, special_tokens=["[UNK]"], show_progress=False)
    tok.train_from_iterator(TEXTS, trainer)
    return wrap(tok, PLAIN_CHATML, unk_token="[UNK]")


def without_bytes():
    """A SentencePiece BPE of English alone: what it does not know is <unk>."""
    english = [*"".join(map(chr, range(33, 127))), "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    spec = json.loads(sentencepiece_bpe(english, 400, by_word=True).to_str())
    spec["model"]["byte_fallback"] = False
    spec["model"]["vocab"]["\n"] = len(spec["model"]["vocab"])
    return wrap(Tokenizer.from_str(json.dumps(spec)), INST, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def byte_level_vocabulary_as_sentencepiece():
    """What transformers' class of Llama makes of a byte-level vocabulary: spaces and newlines are in no entry."""
    tok = MAKE["gpt2"]()
    tok.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tok.backend_tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return tok


@pytest.mark.parametrize("name", ALL)
def test_text_comes_back_from_tokenizers_that_keep_it(name):
    backend = tokenizer(name).backend_tokenizer
    assert check_round_trip(backend, backend) is None


@pytest.mark.parametrize(
    ("make", "came_back"),
    [
        (byte_level_vocabulary_as_sentencepiece, "Sampletext:It's3.14,"),
        (wordpiece, "sample text : it"),
        # SentencePiece's default rule: white space is a space.
        (lambda: normalized("unigram", normalizers.Replace(Regex(r"\s+"), " ")), r"\*ok\* Yes"),
        (lambda: normalized("qwen", normalizers.Replace("7", "")), "not 123456 - is"),
        (lambda: normalized("qwen", normalizers.Replace("k", "")), r"\*o\*"),
    ],
)
def test_tokenizer_that_loses_plain_text_is_refused_with_what_came_back(make, came_back):
    with pytest.raises(UnsupportedModelError, match=f"does not keep text: .* comes back as .*{came_back}"):
        changes(make())


@pytest.mark.parametrize(
    "parts",
    [(normalizers.NFKC(),), (normalizers.Lowercase(),), (normalizers.NFD(), normalizers.StripAccents())],
)
def test_case_accents_and_compatible_forms_may_change(parts):
    assert changes(normalized("qwen", *parts)) is None


def test_other_text_that_changes_is_a_warning():
    with pytest.warns(UserWarning, match="changes .* of .* samples of text, first 'a  b' to 'a b'$"):
        PairTokenizer(normalized("qwen", normalizers.Replace(Regex(" +"), " ")), PairTemplate.load("gram"))
    assert "<unk>" in changes(without_bytes())


def test_judge_with_a_tokenizer_that_loses_text_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"comes back as .*Sampletext"):
        PairTokenizer(byte_level_vocabulary_as_sentencepiece(), PairTemplate.load("short"))


def test_tokenizer_that_lacks_its_unknown_token_is_one_sentence():
    tok = Tokenizer(models.WordLevel({"A": 0, "B": 1}))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UnsupportedModelError, match=r"^the tokenizer cannot read text: .*Missing \[UNK\]"):
        PairTokenizer(wrap(tok, PLAIN_CHATML), PairTemplate.load("gram"))


def test_panic_of_the_library_is_one_sentence():
    tok = MAKE["gpt2"]()
    # A rule that takes exponential time on some texts alone: the library gives up by a panic, which is no Exception.
    tok.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("(z+)+$"), "isolated"), tok.backend_tokenizer.pre_tokenizer]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pairs = PairTokenizer(tok, PairTemplate.load("gram"))
    with pytest.raises(UnsupportedModelError, match=r"^the tokenizer cannot read text: Onig: \S+ ") as raised:
        pairs.whole_ids([("q", "z" * 40 + "b", "c")])
    assert is_panic(raised.value.__cause__)
    assert not isinstance(raised.value.__cause__, Exception)


def test_errors_of_others_pass():
    with pytest.raises(KeyError), tokenizer_errors("read text"):
        raise KeyError("x")
    with pytest.raises(KeyboardInterrupt), tokenizer_errors("read text"):
        raise KeyboardInterrupt
