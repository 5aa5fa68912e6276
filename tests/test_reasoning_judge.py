"""ReasoningJudge from a checkpoint, from a model in memory and of a server: the same calls as any judge."""

import json
import pickle
import shutil
import threading
import warnings
from importlib import resources

import pytest
import torch
from helpers.openai_server import MODEL, openai_server
from helpers.small_models import tiny_model, tiny_tokenizer, write_judge

import gram_fast
from gram_fast.errors import InputError, ServerError
from gram_fast.generating.server_generator import ServerGenerator
from gram_fast.reasoning_judge import ReasoningJudge

PROMPT, RESPONSES = "What is 2 + 2?", ["4", "5", "It is four."]
SAMPLED = {"votes": 2, "temperature": 1.0, "max_new_tokens": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_judge(tmp_path_factory.mktemp("judge"), max_position_embeddings=32768)


def rationales(ranking):
    return [[vote.rationale for vote in pair.reasoning.votes] for pair in ranking.comparisons]


def test_a_model_in_memory_and_its_checkpoint_write_the_same(folder):
    tokenizer = tiny_tokenizer()
    model = tiny_model("qwen3", vocab_size=len(tokenizer), max_position_embeddings=32768)
    model.train()
    of_model = ReasoningJudge.from_model(model, tokenizer, preset="gram-r2", **SAMPLED)
    of_checkpoint = ReasoningJudge.from_pretrained(folder, preset="gram-r2", device="cpu", **SAMPLED)
    one, other = (judge.rank(PROMPT, RESPONSES) for judge in (of_model, of_checkpoint))
    assert rationales(one) == rationales(other)
    assert one.scores == pytest.approx(other.scores, abs=1e-6)
    assert one.stats.votes == 12
    assert model.training
    assert "ReasoningComparer(transformers, " in repr(of_checkpoint)
    again = pickle.loads(pickle.dumps(of_checkpoint))
    assert rationales(again.rank(PROMPT, RESPONSES)) == rationales(one)


def test_all_calls_of_a_judge_take_it(folder):
    judge = ReasoningJudge.from_pretrained(folder, preset="gram-r2", max_new_tokens=6, device="cpu")
    assert isinstance(judge, gram_fast.PairwiseJudge)
    comparison = judge.compare(PROMPT, *RESPONSES[:2])
    assert judge.matrix(PROMPT, RESPONSES)[0, 1] == pytest.approx(comparison.p, abs=1e-5)
    assert judge.best_of_n(PROMPT, RESPONSES, strategy="linear").comparisons[0].reasoning is not None
    rewards = judge.rewards([PROMPT, PROMPT], [RESPONSES, RESPONSES[:2]], on_error="none")
    assert [len(group) for group in rewards] == [3, 2]
    many = judge.compare_many([PROMPT], [(RESPONSES[0], None)], on_error="none")
    assert many[0] is None
    assert "pairs[0][1]" in many.errors


def test_a_greedy_judge_s_verdict_is_that_of_the_model_s_own_generate(folder):
    judge = ReasoningJudge.from_pretrained(folder, preset="genrm", verdict="hard", max_new_tokens=12, device="cpu")
    runner, tokenizer = judge.comparer.labels.runner, judge.comparer.tokenizer
    vote = judge.compare(PROMPT, *RESPONSES[:2], orders="ab").reasoning.votes[0]
    (ids,) = tokenizer.whole_ids([(PROMPT, *RESPONSES[:2])])
    written = runner.model.generate(torch.from_numpy(ids).long()[None], max_new_tokens=12, do_sample=False)
    assert vote.rationale == tokenizer.plain.decode(written[0, len(ids) :], skip_special_tokens=False)
    assert vote.problem == "over the limit"


def test_a_call_from_within_a_call_is_an_error_and_waits_for_nothing():
    tokenizer = tiny_tokenizer()
    model = tiny_model("qwen3", vocab_size=len(tokenizer), max_position_embeddings=32768)
    judge = ReasoningJudge.from_model(model, tokenizer, preset="gram-r2", max_new_tokens=4)
    expected = judge.compare(PROMPT, *RESPONSES[:2]).p
    errors = []

    def hook(*_):
        with pytest.raises(InputError, match="the judge is in the middle of a call") as found:
            judge.compare(PROMPT, *RESPONSES[1:])
        errors.append(found)

    with_hook = model.register_forward_pre_hook(hook)
    found = []
    call = threading.Thread(target=lambda: found.append(judge.compare(PROMPT, *RESPONSES[:2]).p), daemon=True)
    call.start()
    call.join(60)
    with_hook.remove()
    assert found == [pytest.approx(expected, abs=1e-6)]
    assert errors
    assert judge.compare(PROMPT, *RESPONSES[:2]).p == pytest.approx(expected, abs=1e-6)


def test_a_judge_that_was_trained_to_decide_at_once_has_its_own_prompt(folder, tmp_path):
    """Thinking is on for presets that reason, and off for others, whoever reads what the judge writes."""
    plain = gram_fast.PairwiseJudge.from_pretrained(folder, preset="genrm", device="cpu")
    judge = ReasoningJudge.from_pretrained(folder, preset="genrm", verdict="hard", max_new_tokens=4, device="cpu")
    (ids,), (expected,) = (j.comparer.tokenizer.whole_ids([(PROMPT, *RESPONSES[:2])]) for j in (judge, plain))
    decode = judge.comparer.tokenizer.plain.decode
    assert decode(ids) + "[[" == decode(expected)
    assert decode(ids).endswith("<think>\n\n</think>\n\n")
    shutil.copytree(folder, other := tmp_path / "judge")
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}\nAnswer:\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a variable that the template does not have
        ReasoningJudge.from_pretrained(other, preset="genrm", verdict="hard", max_new_tokens=4, device="cpu")
    reasons = ReasoningJudge.from_pretrained(folder, preset="gram-r2", max_new_tokens=4, device="cpu")
    assert reasons.comparer.tokenizer.prompt_end.endswith("<|im_start|>assistant\n")
    kwargs = {"chat_template_kwargs": {"enable_thinking": True}}
    thinks = ReasoningJudge.from_pretrained(folder, preset="genrm", max_new_tokens=4, device="cpu", **kwargs)
    assert thinks.comparer.tokenizer.prompt_end.endswith("<|im_start|>assistant\n")


def test_a_judge_of_a_relative_path_is_unpickled_in_another_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "mine.txt").write_text((resources.files("gram_fast") / "presets" / "gram-r2.txt").read_text())
    judge = ReasoningJudge.from_pretrained(folder.name, preset="mine.txt", max_new_tokens=4, device="cpu")
    pickled = pickle.dumps(judge)
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(pickled).compare(PROMPT, *RESPONSES[:2]).p == judge.compare(PROMPT, *RESPONSES[:2]).p


def test_an_engine_behind_a_server_is_sent_token_ids_and_the_labels_are_read_here(folder):
    with openai_server(models=(str(folder),)) as server:
        judge = ReasoningJudge.from_pretrained(folder, preset="gram-r2", engine=server.url, device="cpu", **SAMPLED)
        ranking = judge.rank(PROMPT, RESPONSES)
        assert {path for path, _ in server.asked} == {"/v1/completions"}
        (ids,) = judge.comparer.tokenizer.whole_ids([(PROMPT, *RESPONSES[:2])])
        assert ids.tolist() in [body["prompt"] for _, body in server.asked]
        assert sorted(text for pair in rationales(ranking) for text in pair) == sorted(server.given)
        assert ranking.stats.invalid_votes == 12
        assert ranking.stats.passes > 0
        assert type(judge.comparer.labels.runner).__name__ == "DenseRunner"


def test_a_model_of_a_server_is_sent_messages():
    with openai_server() as server:
        judge = ReasoningJudge.from_server(server.url, MODEL, verdict="hard", votes=2)
        found = judge.compare(PROMPT, *RESPONSES[:2])
        assert {path for path, _ in server.asked} == {"/v1/chat/completions"}
        (first, second) = (body["messages"] for _, body in server.asked)
        assert {first[0]["role"], second[0]["role"]} == {"user"}
        assert found.reasoning.invalid == 4
        assert found.p == 0.5
        assert judge.comparer.unfit([], [], "both") == {}
        assert isinstance(pickle.loads(pickle.dumps(judge)).comparer.generator, ServerGenerator)


def test_a_server_without_log_probabilities_is_asked_once_and_the_remedy_is_named():
    with openai_server(gives_logprobs=False) as server:
        judge = ReasoningJudge.from_server(server.url, MODEL)
        with pytest.raises(ServerError, match=r"got none: the soft verdict wants them, .* verdict='hard'"):
            judge.compare(PROMPT, *RESPONSES[:2])
        assert len(server.asked) == 2


def test_a_server_that_is_not_there_is_one_sentence_before_anything_is_loaded(folder):
    with pytest.raises(ServerError, match=r"http://127.0.0.1:9: expected .*"):
        ReasoningJudge.from_pretrained(folder, preset="gram-r2", engine="http://127.0.0.1:9")
    with openai_server() as server, pytest.raises(InputError, match=f"'judge-9b'.*{MODEL}"):
        ReasoningJudge.from_server(server.url, "judge-9b")


@pytest.mark.parametrize(
    ("option", "value"), [("device", "cuda:9"), ("max_length", 5), ("tokenizer", "nowhere"), ("deterministic", True)]
)
def test_what_nothing_here_has_is_an_error_without_a_second_step(option, value):
    with pytest.raises(InputError, match=f"{option}: expected its default with second_step=False and a server"):
        ReasoningJudge.from_pretrained(MODEL, engine="http://127.0.0.1:9", second_step=False, **{option: value})


def test_a_checkpoint_s_own_prompt_is_sent_where_a_server_has_its_model(tmp_path):
    folder = write_judge(tmp_path / "judge")
    template = "Which is better?\n{input}\n\nA: {response_a}\n\nB: {response_b}\n"
    record = {"template": template, "answer_prefix": "<answer>", "answer_suffix": "</answer>", "reasons": True}
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "gram_fast": record}))
    with openai_server(models=(str(folder),)) as server:
        judge = ReasoningJudge.from_pretrained(folder, engine=server.url, second_step=False, verdict="hard")
        judge.compare(PROMPT, *RESPONSES[:2], orders="ab")
        ((_, body),) = server.asked
        filled = template.format(input=PROMPT, response_a=RESPONSES[0], response_b=RESPONSES[1])
        assert body["messages"][-1]["content"] == filled


def test_max_length_limits_what_is_shown_and_not_the_answer(folder):
    judge = ReasoningJudge.from_pretrained(folder, preset="gram-r2", max_length=1200, device="cpu", max_new_tokens=6)
    assert judge.max_length == 1200
    whole = ReasoningJudge.from_pretrained(folder, preset="gram-r2", device="cpu", max_new_tokens=6)
    assert 32768 - 100 < whole.max_length < 32768 - 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "vllm"}, "url: expected http://HOST:PORT, or several, got 'vllm'"),
        ({"url": "http://h", "preset": "gram"}, "preset gram: it has no answer_prefix"),
        ({"url": "http://h", "preset": "none"}, "there is no preset or template file 'none'"),
    ],
)
def test_bad_arguments_of_a_server_s_judge_are_one_sentence(options, message):
    with pytest.raises((InputError, gram_fast.BackendError), match=message):
        ReasoningJudge.from_server(model=MODEL, **options)


def test_unknown_arguments_are_a_type_error(folder):
    with pytest.raises(TypeError, match="temprature"):
        ReasoningJudge.from_pretrained(folder, temprature=1.0)
    # Of a checkpoint, which a model in memory is not loaded from.
    for name, value in {"device": "cpu", "dtype": "float16", "deterministic": True}.items():
        with pytest.raises(TypeError, match=name):
            ReasoningJudge.from_model(None, None, **{name: value})
