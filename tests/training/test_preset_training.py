"""Training with a preset's own labels, answer prefix and frame; the judge of the result reads what was trained."""

import json

import pytest
from helpers.small_tokenizers import tokenizer
from helpers.small_training import run, write_checkpoint, write_obvious_pairs

from gram_fast import PairwiseJudge
from gram_fast.errors import InputError
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokens import PairTokenizer
from gram_fast.training.data.records import PairRecord, read_pair_records
from gram_fast.training.data.sequences import pretrain_encoder

SHORT = PairTemplate.load("short").text
FRAME = "<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("base"))


def test_a_judge_is_trained_and_read_with_the_labels_of_its_preset(base, tmp_path):
    preset = tmp_path / "mine.txt"
    preset.write_text(f"+++\nlabels = ['y', 'x']\nanswer_prefix = '[['\nframe = {json.dumps(FRAME)}\n+++\n{SHORT}")
    data = write_obvious_pairs(tmp_path / "pairs.jsonl", 24)
    out = run("finetune", base, data, tmp_path / "out", preset=str(preset), num_train_epochs=5)
    record = json.loads((out / "config.json").read_text())["gram_fast"]
    assert (record["labels"], record["answer_prefix"], record["frame"]) == (["y", "x"], "[[", FRAME)
    assert record["literals"][-1].endswith("<|im_end|>\n<|im_start|>assistant\n[[")
    judge = PairwiseJudge.from_pretrained(out)
    pairs = judge.comparer.tokenizer
    assert list(pairs.text.literals) == record["literals"]
    assert pairs.template == PairTemplate.load(str(preset))
    assert judge.compare("Question 3?", "good 3", "bad 3").p > 0.8
    # Read with the labels the other way round, the same weights prefer the worse response.
    preset.write_text(preset.read_text().replace("['y', 'x']", "['x', 'y']"))
    other = PairwiseJudge.from_pretrained(out, preset=str(preset))
    assert other.compare("Question 3?", "good 3", "bad 3").p < 0.2


def test_stage_1_is_framed_too(base, tmp_path):
    preset = tmp_path / "mine.txt"
    preset.write_text(f"+++\nframe = {json.dumps(FRAME)}\n+++\n{SHORT}")
    data = write_obvious_pairs(tmp_path / "pairs.jsonl", 8)
    out = run("pretrain", base, data, tmp_path / "out", preset=str(preset), max_steps=1)
    assert json.loads((out / "config.json").read_text())["gram_fast"]["frame"] == FRAME


def test_stage_1_of_llama_3_has_the_ids_and_labels_of_llama_factory():
    """Its template `llama3`: no system turn, and white space around the prompt is kept; the checkpoint's strips it."""
    chat = tokenizer("llama3")
    instruction = "[User Question]\n \tWhy?\n \n\n"
    output = (
        "[The Start of Assistant A's Answer]\nSo.\n\n[The End of Assistant A's Answer]\n\n"
        "[The Start of Assistant B's Answer]\n No\n[The End of Assistant B's Answer]"
    )
    turn = f"<|start_header_id|>user<|end_header_id|>\n\n{instruction}<|eot_id|>"
    before = ["<|begin_of_text|>", f"{turn}<|start_header_id|>assistant<|end_header_id|>\n\n"]
    source = [token for text in before for token in chat.encode(text, add_special_tokens=False)]
    target = chat.encode(f"{output}<|eot_id|>", add_special_tokens=False)
    encode = pretrain_encoder(PairTokenizer(chat, PairTemplate.load("gram-llama3")), chat)
    [item] = encode([PairRecord(" \tWhy?\n ", "So.\n", " No", None, "row 1")])
    assert item.input_ids.tolist() == (source + target)[:-1]
    assert item.label_positions.tolist() == list(range(len(source) - 1, len(item.input_ids)))
    assert item.labels.tolist() == target


def test_a_verifier_s_preset_is_refused(base, tmp_path):
    data = write_obvious_pairs(tmp_path / "pairs.jsonl", 8)
    with pytest.raises(InputError, match="preset: expected a prompt that shows a pair, got a verifier's"):
        list(read_pair_records(str(data), template=PairTemplate.load("verifier")))


@pytest.mark.parametrize(("output", "preferred"), [("First", "A"), (" Second\n", "B")])
def test_rows_of_gram_have_the_labels_of_the_template(tmp_path, output, preferred):
    template = PairTemplate.parse(SHORT, labels=[" First", " Second"])
    data = tmp_path / "rows.json"
    data.write_text(json.dumps([{"instruction": template.fill("q", "a", "b"), "input": "", "output": output}]))
    (record,) = read_pair_records(str(data), template=template)
    assert (record.prompt, record.response_a, record.response_b, record.preferred) == ("q", "a", "b", preferred)
    with pytest.raises(InputError, match="output: expected 'A', 'B', or two answers between lines"):
        list(read_pair_records(str(data), template=PairTemplate.load("short")))
