"""Training of judges that reason and of their provers: which tokens, which loss, and what is learned."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import transformers
from helpers.small_models import tiny_model, tiny_tokenizer
from helpers.small_tokenizers import ALL, tokenizer
from helpers.small_training import SGD, STEPS, assert_same, logged, run, weights, write_checkpoint
from torch.nn import functional as F

from gram_fast.errors import InputError
from gram_fast.generating.verdicts import reader
from gram_fast.models.checkpoint import find_template, load_config
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokens import PairTokenizer
from gram_fast.training import objectives
from gram_fast.training.data.records import PairRecord, read_pair_records
from gram_fast.training.data.sequences import collate
from gram_fast.training.packed_attention import PACKED_ATTENTION
from gram_fast.training.proofs import prover_template, read_proof, write_proof
from gram_fast.training.reader import drawn_orders
from gram_fast.training.reasoning import check_ending, prove_encoder, reason_encoder

TOKENIZER = tiny_tokenizer()
SHORT = PairTemplate.load("short").text
PRESET = f"""+++
answer_prefix = "</think>\\n<answer>\\n"
answer_suffix = "\\n</answer>"
+++
{SHORT}"""
RECORDS = [
    PairRecord("Name a city.", "Oslo", "seven", "A", "row 1", "Feedback:\nOslo is a city. <|im_end|>"),
    PairRecord("And a number?", "Rome, the city of seven hills", "4", "B", "row 2", "4 is one"),
    PairRecord("", "", "x", "A", "row 3"),
]
LAMBDA = 0.7


def judge(preset, chat=TOKENIZER):
    return PairTokenizer(chat, replace(PairTemplate.load(preset), reasons=True))


def better(record):
    return record.response_a if record.preferred == "A" else record.response_b


@pytest.mark.parametrize("preset", ["gram-r2", "genrm"])
@pytest.mark.parametrize("name", ALL)
def test_the_answer_has_the_tokens_that_the_judge_reads_for_its_verdict(name, preset):
    chat = tokenizer(name)
    pairs = judge(preset, chat)
    prefix, suffix = pairs.template.answer_prefix, pairs.template.answer_suffix
    opening = "<think>\n" if preset == "gram-r2" else ""
    for record, item in zip(RECORDS, reason_encoder(pairs, chat)(RECORDS), strict=True):
        thought = "" if record.rationale is None else f"{opening}{record.rationale}\n"
        [prompt] = pairs.whole_ids([(record.prompt, record.response_a, record.response_b)])
        [answer, begin] = map(list, pairs.answer_ids([thought + prefix + record.preferred + suffix, thought + prefix]))
        asked = item.labels.tolist()
        assert asked[: len(answer)] == answer
        # The second step of a judge reads two logits behind the prefix.
        assert asked[: len(begin) + 1] == [*begin, pairs.label_ids["AB".index(record.preferred)]]
        assert [*item.input_ids, asked[-1]] == [*prompt, *asked]
        assert item.label_positions.tolist() == list(range(len(prompt) - 1, len(prompt) - 1 + len(asked)))
        assert item.lengths.tolist() == [len(item.input_ids)]
        assert chat.eos_token_id in asked[len(answer) :]
        assert not len(item.next_positions)


def test_what_the_chat_template_writes_behind_the_answer_is_learned_too():
    [item, _, bare] = reason_encoder(judge("gram-r2"), TOKENIZER)(RECORDS)
    answer = "<think>\nFeedback:\nOslo is a city. <|im_end|>\n</think>\n<answer>\nA\n</answer>"
    assert TOKENIZER.decode(item.labels) == f"{answer}<|im_end|>\n"
    # Text of a special token in a rationale stays text.
    assert (item.labels == TOKENIZER.convert_tokens_to_ids("<|im_end|>")).sum() == 1
    assert TOKENIZER.decode(bare.labels) == "</think>\n<answer>\nA\n</answer><|im_end|>\n"


def test_a_prompt_that_opens_the_thought_leaves_no_tag_to_write(tmp_path):
    frame = "<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n<think>\n"
    template = replace(PairTemplate.load("gram-r2"), frame=frame)
    [item, *_] = reason_encoder(PairTokenizer(TOKENIZER, template), TOKENIZER)(RECORDS[1:])
    assert TOKENIZER.decode(item.labels).startswith("4 is one\n</think>\n")


@pytest.mark.parametrize("turn", ["", "<think>\n\n</think>\n\n"], ids=["a turn without a thought", "an empty one"])
def test_the_better_response_stands_in_no_thought_that_the_chat_template_opens(turn):
    chat = tiny_tokenizer()
    chat.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}" + turn + "{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    record = replace(RECORDS[0], prompt="Name a city.", rationale=None)
    [item] = reason_encoder(judge("genrm", chat), chat, LAMBDA)([record])
    beside = item.input_ids[item.lengths[0] :]
    asked = f"<|im_start|>user\nName a city.<|im_end|>\n<|im_start|>assistant\n{turn}"
    assert chat.decode(beside) == f"{asked}Oslo<|im_end|>\n"
    predicted = item.next_positions - item.lengths[0] + 1
    assert chat.decode(beside[predicted]) == "Oslo<|im_end|>\n"


def test_the_prover_reads_the_label_and_writes_the_proof():
    pairs = judge("gram-r2")
    for record, item in zip(RECORDS[:2], prove_encoder(pairs, TOKENIZER)(RECORDS[:2]), strict=True):
        prover = PairTokenizer(TOKENIZER, prover_template(pairs.template, record.preferred))
        [prompt] = prover.whole_ids([(record.prompt, record.response_a, record.response_b)])
        assert item.input_ids[: len(prompt)].tolist() == prompt.tolist()
        assert len(item.labels) == len(item.input_ids) - len(prompt) + 1
        assert TOKENIZER.decode(item.labels) == write_proof(record.rationale, record.preferred) + "<|im_end|>\n"
    with pytest.raises(InputError, match=r"^row 3: expected a rationale, of which a proof is made, found none"):
        prove_encoder(pairs, TOKENIZER)(RECORDS)


def nll(model, before, said):
    """-log P of each token behind a beginning, by a plain forward."""
    ids = torch.tensor([*before, *said])
    log_p = F.log_softmax(model(input_ids=ids[None]).logits[0], dim=-1)
    return -log_p[len(before) - 1 : -1].gather(1, ids[len(before) :, None])[:, 0]


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("weight", [0.0, LAMBDA])
def test_loss_and_gradients_are_those_of_plain_forwards(weight, shares):
    """sum of n (mean over the answer + lambda mean over the better response) / sum of n, n the answers' tokens."""
    pairs = judge("genrm")
    model, other = (tiny_model("qwen3", vocab_size=len(TOKENIZER)).requires_grad_(True) for _ in range(2))
    model.set_attn_implementation(PACKED_ATTENTION)
    objectives.set_objective(model, objectives.language_modelling(model))
    ours = model(**collate(reason_encoder(pairs, TOKENIZER, weight)(RECORDS), shares))["loss"]
    losses, counts = [], []
    end = "<|im_end|>\n"
    for record in RECORDS:
        thought = "" if record.rationale is None else f"{record.rationale}\n"
        [prompt] = pairs.whole_ids([(record.prompt, record.response_a, record.response_b)])
        [answer] = pairs.answer_ids([f"{thought}[[{record.preferred}]]"])
        closing = TOKENIZER.encode(end, add_special_tokens=False)
        of_answer = nll(other, prompt, [*answer, *closing])
        turns = [{"role": "user", "content": record.prompt}]
        asked = TOKENIZER.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        said = TOKENIZER.encode(better(record) + end, add_special_tokens=False)
        of_response = nll(other, TOKENIZER.encode(asked, add_special_tokens=False), said)
        counts.append(len(of_answer))
        losses.append(len(of_answer) * (of_answer.mean() + weight * of_response.mean()))
    plain = torch.stack(losses).sum() / sum(counts)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    ours.backward()
    plain.backward()
    expected = {name: p.grad for name, p in other.named_parameters()}
    scale = max(grad.abs().max().item() for grad in expected.values())
    for name, p in model.named_parameters():
        # Sums of float32 products in another order; a wrong term would show at 1e-2.
        torch.testing.assert_close(p.grad, expected[name], rtol=0, atol=1e-5 * scale, msg=name)


def test_orders_of_pairs_without_a_rationale_are_drawn_and_balanced():
    records = [PairRecord(f"q{n}", "good", "bad", "A", f"row {n}") for n in range(40)]
    named = PairRecord("q", "bad", "good", "B", "row", "good is better")
    mixed = [named, *records[:7], named, *records[7:], named]
    orders = [list(drawn_orders(mixed, seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    for shown in orders:
        assert [r for r in shown if r.rationale] == [named] * 3
        assert all(better(r) == "good" for r in shown)
        labels = [r.preferred for r in shown if not r.rationale]
        assert all(set(labels[n : n + 2]) == {"A", "B"} for n in range(0, 40, 2))
        assert len(set(labels[::2])) == 2


def reasoned(n, label):
    responses = [f"good {n}", f"bad {n}"] if label == "A" else [f"bad {n}", f"good {n}"]
    return {
        "prompt": f"Question {n}?",
        "responses": responses,
        "label": label,
        "rationale": f"{responses[0].split()[0]}, {responses[1].split()[0]}",
    }


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    path = tmp_path_factory.mktemp("preset") / "mine.txt"
    path.write_text(PRESET)
    return str(path)


@pytest.fixture(scope="module")
def rationales(tmp_path_factory):
    """Rows with a rationale that says what the responses are, and each third without one."""
    path = tmp_path_factory.mktemp("rationales") / "rows.jsonl"
    rows = [reasoned(n, "AB"[n % 2]) for n in range(24)]
    bare = [{"prompt": f"Question {n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(24, 36)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows + bare))
    return path


def written(model, ids, count=60):
    """What a model writes behind a prompt: the most likely tokens."""
    ids = torch.from_numpy(ids).long()[None]
    end = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=0,
    )
    return TOKENIZER.decode(out[0, ids.shape[1] :])


def test_a_tiny_judge_learns_to_reason_and_to_decide(rationales, preset, tmp_path):
    base = write_checkpoint(tmp_path / "base")
    rows = [json.loads(line) for line in rationales.read_text().splitlines()][:24]
    data = tmp_path / "reasoned.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = run("reason", base, data, tmp_path / "out", preset=preset, num_train_epochs=12)
    template = find_template("auto", load_config(str(out)))
    assert template.reasons
    assert template == replace(PairTemplate.load(preset), reasons=True)
    pairs = PairTokenizer(TOKENIZER, template)
    model = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    for row in rows[:6]:
        text = written(model, pairs.whole_ids([(row["prompt"], *row["responses"])])[0])
        assert text == f"<think>\n{row['rationale']}\n</think>\n<answer>\n{row['label']}\n</answer><|im_end|>"
        assert reader(template).read(text).label == "AB".index(row["label"])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "more",
    [{}, {"lambda_correct": 0.5}, {"streaming": True}, {"lora": {"r": 4}}],
    ids=["plain", "correct", "streaming", "lora"],
)
def test_a_run_goes_on_to_the_same_weights(more, base, rationales, preset, tmp_path):
    more = {**STEPS, **more, "preset": preset}
    whole = run("reason", base, rationales, tmp_path / "whole", **more)
    assert all(name in (tmp_path / "whole" / "config.json").read_text() for name in ('"reasons": true', "<answer>"))
    again = tmp_path / "again"
    run("reason", base, rationales, again, resume_from_checkpoint=str(whole / "checkpoint-2"), **more)
    assert_same(whole, again)
    assert len(logged(whole, "loss")) == 4


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_pairs_of_one_prompt_share_it(weight, base, rationales, preset, tmp_path):
    rows = [json.loads(line) for line in rationales.read_text().splitlines()]
    data = tmp_path / "grouped.jsonl"
    data.write_text("".join(json.dumps({**row, "prompt": f"Question {n % 3}?"}) + "\n" for n, row in enumerate(rows)))
    more = {"preset": preset, "lambda_correct": weight, "per_device_train_batch_size": 36, "max_steps": 2, **SGD}
    plain = run("reason", base, data, tmp_path / "plain", **more)
    tree = run("reason", base, data, tmp_path / "tree", pairs_together=12, pad_to_multiple_of=64, **more)
    start, after = weights(base), weights(plain)
    assert max((after[name] - start[name]).abs().max().item() for name in after) > 1e-3
    assert_same(plain, tree, tolerance=1e-5)


def test_the_loss_of_a_run_is_the_answers_alone(base, rationales, preset, tmp_path):
    out = run(
        "reason", base, rationales, tmp_path / "out", preset=preset, max_steps=1, save_strategy="steps", save_steps=1,
        eval_data=str(rationales), eval_on_start=True, per_device_eval_batch_size=36,
    )  # fmt: skip
    pairs = PairTokenizer(TOKENIZER, replace(PairTemplate.load(preset), reasons=True))
    read = read_pair_records(str(rationales), template=pairs.template)
    encoded = reason_encoder(pairs, TOKENIZER)(list(drawn_orders(read, 42)))
    model = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        losses = [
            nll(model, item.input_ids[: len(item.input_ids) - len(item.labels) + 1], item.labels) for item in encoded
        ]
    assert logged(out, "eval_loss")[0] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


def test_a_prover_learns_to_prove_what_it_is_told(preset, tmp_path, caplog):
    base, data = write_checkpoint(tmp_path / "base"), tmp_path / "rows.jsonl"
    told = {"A": "first", "B": "second"}
    rows = [
        {"prompt": f"Question {n}?", "responses": ["one", "two"], "label": label, "rationale": f"the {told[label]}"}
        for n in range(12)
        for label in told
    ]
    bare = {"prompt": "p", "chosen": "a", "rejected": "b"}
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, bare]))
    fast = {"num_train_epochs": 18, "lr_scheduler_type": "constant", "adam_beta2": 0.98}
    out = run("prove", base, data, tmp_path / "out", preset=preset, **fast)
    assert "train_data: 1 pairs without a rationale left out" in caplog.text
    template = find_template("auto", load_config(str(out)))
    assert template == replace(PairTemplate.load(preset), reasons=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    for row in rows[:6]:
        prover = PairTokenizer(TOKENIZER, prover_template(template, row["label"]))
        text = written(model, prover.whole_ids([(row["prompt"], *row["responses"])])[0], count=120)
        assert text.endswith("<|im_end|>")
        assert read_proof(text.removesuffix("<|im_end|>"), row["label"]) == row["rationale"]


def test_rows_of_every_kind_are_learned_from_or_counted(base, preset, tmp_path, caplog):
    tie = {"context": "p", "response1": "a", "response2": "b", "overall_preference": 0}
    rows = [reasoned(0, "A"), reasoned(1, "B"), tie, {**tie, "overall_preference": 3}, {"prompt": "p"}]
    rows.append({**reasoned(2, "A"), "rationale": "long " * 300})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = {"preset": preset, "max_steps": 1, "skip_bad": True, "cutoff_len": 400}
    for stage, left_out in (("reason", 1), ("prove", 1), ("pretrain", 0)):
        caplog.clear()
        run(stage, base, data, tmp_path / stage, **more)
        assert ("pairs longer than cutoff_len=400 left out" in caplog.text) == bool(left_out)
        assert "train_data: 1 ties left out" in caplog.text
        assert "train_data: 1 bad rows left out" in caplog.text
        reasons = {"bad rows": 1, "ties": 1, **({"pairs longer than cutoff_len=400": 1} if left_out else {})}
        reasons |= {"pairs without a rationale": 1} if stage == "prove" else {}
        counts = json.loads((tmp_path / stage / "run.json").read_text("utf-8"))["counts"]
        assert counts == {"train_data": {"pairs": 6 - sum(reasons.values()), "left_out": reasons}}
    for stage in ("finetune", "scalar"):
        run(stage, base, data, tmp_path / stage, **{**more, "preset": "short"})


def test_what_a_stage_cannot_learn_from_is_said(base, unlabeled, rationales, tmp_path):
    with pytest.raises(InputError, match=r"unlabeled.jsonl line 1: reason wants labeled pairs, this one has no label"):
        run("reason", base, unlabeled, tmp_path / "a", preset="genrm", max_steps=1)
    with pytest.raises(InputError, match=r"rows.jsonl line 1: preset: expected an answer_prefix, which stands between"):
        run("reason", base, rationales, tmp_path / "b", preset="short", max_steps=1)
    with pytest.raises(InputError, match=r"^preset: finetune trains the label right behind the prompt: expected one"):
        run("finetune", base, rationales, tmp_path / "c", preset="gram-r2", max_steps=1)
    verifier = tmp_path / "verifier.txt"
    verifier.write_text("Question: {input}\nAnswer: {response}\nIs it right?")
    with pytest.raises(InputError, match="preset: expected a prompt that shows a pair, got a verifier's"):
        run("reason", base, rationales, tmp_path / "d", preset=str(verifier), max_steps=1)
    more = {"load_best_model_at_end": True, "save_strategy": "epoch", "metric_for_best_model": "accuracy"}
    with pytest.raises(InputError, match=r"^metric_for_best_model: expected loss in reason, got 'accuracy'"):
        run("reason", base, rationales, tmp_path / "e", eval_data=str(rationales), **more)


@pytest.mark.parametrize("stage", ["reason", "prove"])
def test_a_chat_template_that_ends_no_answer_is_refused(stage, rationales, preset, tmp_path):
    base = write_checkpoint(tmp_path / "base")
    path = base / "chat_template.jinja"
    path.write_text(path.read_text("utf-8").replace("<|im_end|>", ""), "utf-8")
    with pytest.raises(InputError) as raised:
        run(stage, base, rationales, tmp_path / "out", preset=preset, max_steps=1)
    assert str(raised.value) == (
        f"checkpoint {str(base)!r}: expected a chat template that writes a token behind the assistant's text which "
        "ends an answer, '<|im_end|>', found '\\n': the answers of a model that is trained on it would not end"
    )


def test_a_token_of_the_generation_configuration_ends_answers_too(tmp_path):
    base = write_checkpoint(tmp_path / "base")
    chat, config = tiny_tokenizer(), load_config(str(base))
    chat.chat_template = "{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}"
    end = chat.convert_tokens_to_ids("<|endoftext|>")
    for known, refused in (([end, 5], False), (end, False), (5, True), (None, True)):
        (base / "generation_config.json").write_text(json.dumps({"eos_token_id": known}), "utf-8")
        with pytest.raises(InputError, match="ends an answer") if refused else nullcontext():
            check_ending(str(base), config, judge("genrm").template, chat)
