"""Token ids that a model has no embedding of: at load, and in a text of a call."""

import json

import pytest
from helpers.small_models import tiny_model, tiny_tokenizer, write_judge
from helpers.small_tokenizers import MAKE
from tokenizers import Tokenizer

from gram_fast.errors import InputError, UnsupportedModelError
from gram_fast.judge import PairwiseJudge
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokens import PairTokenizer


def judge_of(tok, rows: int) -> PairwiseJudge:
    return PairwiseJudge.from_model(tiny_model("llama", vocab_size=rows, max_position_embeddings=4096), tok)


@pytest.mark.parametrize("runner", ["dense", "transformers"])
def test_labels_beyond_the_output_embedding_are_refused_at_load(tmp_path, runner):
    with pytest.raises(UnsupportedModelError, match=r"^the labels are tokens 32 and 33, but .* logits of 33 tokens"):
        PairwiseJudge.from_pretrained(write_judge(tmp_path, vocab_size=33), runner=runner)


@pytest.mark.parametrize("runner", ["dense", "transformers"])
def test_tokens_of_the_prompt_beyond_the_embedding_are_refused_at_load(tmp_path, runner):
    rows = tiny_tokenizer().convert_tokens_to_ids("<|im_end|>")
    with pytest.raises(UnsupportedModelError, match=rf"^the prompt has token \d+, '.*', but .* of {rows} tokens"):
        PairwiseJudge.from_pretrained(write_judge(tmp_path, vocab_size=rows), runner=runner)


@pytest.mark.parametrize("name", ["gpt2", "lookbehind"])  # composed of pieces, and encoded whole
@pytest.mark.filterwarnings("ignore:this tokenizer has no safe place")
def test_token_of_a_text_beyond_the_embedding_names_the_text(name):
    tok = MAKE[name]()
    rows = len(tok)
    tok.add_tokens(["<new>"])
    judge = judge_of(tok, rows)
    message = f"it has token {rows}, '<new>', but the model has embeddings of {rows} tokens$"
    with pytest.raises(InputError, match=rf"^responses\[2\]: {message}"):
        judge.rank("q", ["a", "b", "c <new> d"])
    with pytest.raises(InputError, match=rf"^prompt: {message}"):
        judge.compare("q <new>", "a", "b")
    with pytest.raises(InputError, match=rf"^pairs\[1\]\[0\]: {message}"):
        judge.compare_many(["p", "q"], [("a", "b"), ("<new>", "b")])
    # The judge goes on, with what a tokenizer without the token gives.
    assert judge.compare("q", "a", "new").p == judge_of(MAKE[name](), rows).compare("q", "a", "new").p


def test_more_embeddings_than_tokens_are_fine():
    tok = MAKE["gpt2"]()
    assert 0 < judge_of(tok, len(tok) + 60).compare("q", "a", "b").p < 1


@pytest.mark.parametrize("where", ["vocab", "added_tokens"])
@pytest.mark.parametrize("token_id", [2**24, 2**31, 2**32 - 1])
def test_ids_out_of_all_proportion_are_refused_before_the_tokenizer_is_loaded(tmp_path, where, token_id):
    write_judge(tmp_path)
    path = tmp_path / "tokenizer.json"
    spec = json.loads(path.read_text())
    if where == "vocab":
        spec["model"]["vocab"]["new"] = token_id
    else:
        spec["added_tokens"].append({**spec["added_tokens"][0], "id": token_id, "content": "<new>"})
    path.write_text(json.dumps(spec))
    message = rf"^the tokenizer has token id {token_id}: expected ids below 16777216$"
    with pytest.raises(UnsupportedModelError, match=message):
        PairwiseJudge.from_pretrained(tmp_path)
    if where == "vocab":
        tok = MAKE["gpt2"]()
        tok._tokenizer = Tokenizer.from_str(json.dumps(spec))
        with pytest.raises(UnsupportedModelError, match=message):
            PairTokenizer(tok, PairTemplate.load("gram"))
