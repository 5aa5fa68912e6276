"""The comparer of a judge that reasons: requests, the second step against plain forwards, counts, errors."""

import copy
import pickle
import random
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from helpers.generators import ScriptedGenerator, gram_r2_answer
from helpers.small_models import tiny_model
from helpers.small_tokenizers import MAKE, tokenizer
from scipy.special import expit

from gram_fast.comparing.label_comparer import LabelComparer
from gram_fast.comparing.replicas import Replicas
from gram_fast.errors import InputError, ServerError
from gram_fast.generating.comparer import ReasoningComparer
from gram_fast.generating.generator import Generation, Token
from gram_fast.generating.options import ReasoningOptions
from gram_fast.judge import PairwiseJudge
from gram_fast.models.transformers_runner import TransformersRunner
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokens import PairTokenizer

TEMPLATE = PairTemplate.parse(
    "Question: {input}\n\n[A]\n{response_a}\n[End of A]\n\n[B]\n{response_b}\n[End of B]\n\nThink first.",
    answer_prefix="</think>\n<answer>\n",
    answer_suffix="\n</answer>",
    reasons=True,
)
PROMPT, RESPONSES = "What is 2 + 2?", ["It is 4.", "5", "I think that it is four, more or less.", "4 (four)"]


def labels_of(template: PairTemplate = TEMPLATE, name: str = "qwen", **more) -> LabelComparer:
    pairs = PairTokenizer(tokenizer(name), template)
    model = tiny_model("qwen3", vocab_size=len(tokenizer(name)), **{"max_position_embeddings": 1024, **more})
    return LabelComparer.of(pairs, TransformersRunner(model, pairs.label_ids, "auto"), 256)


def judge_of(answer, template: PairTemplate = TEMPLATE, labels: LabelComparer | None = None, **options):
    generator = ScriptedGenerator(answer)
    asked = ReasoningOptions(engine="http://nowhere", **options)
    pairs = labels.tokenizer if labels else None
    return PairwiseJudge(ReasoningComparer(generator, template, asked, 64, pairs, labels)), generator


def some_answer(content: str, rng: random.Random):
    """Well-formed answers, answers without an end, and answers that a limit cut."""
    words = "".join(rng.choice("so then A is B 4 five\n ") for _ in range(rng.randrange(40)))
    kind = rng.randrange(4)
    if kind == 0:
        return f"<think>\n{words}"
    if kind == 1:
        return Generation(f"<think>\n{words}", 20, True)
    return gram_r2_answer(rng.choice("AB"), words)


@pytest.mark.parametrize("name", list(MAKE))
@pytest.mark.filterwarnings("ignore")
def test_soft_verdict_is_that_of_a_plain_forward_of_the_same_text(name):
    labels = labels_of(name=name)
    judge, generator = judge_of(some_answer, labels=labels, votes=3)
    groups = [RESPONSES, RESPONSES[:2]]
    found = judge.rewards([PROMPT, "And 3 + 3?"], groups)
    assert {len(request.ids) > 0 for request in generator.requests} == {True}
    seen = 0
    for prompt, texts, comparisons in zip([PROMPT, "And 3 + 3?"], groups, found.comparisons, strict=True):
        for pair in comparisons:
            for vote in pair.reasoning.votes:
                shown = (texts[pair.i], texts[pair.j]) if vote.order == "ab" else (texts[pair.j], texts[pair.i])
                (ids,) = labels.tokenizer.whole_ids([(prompt, *shown)])
                torn = "\n" if vote.problem and not vote.rationale.endswith(("\n", " ")) else ""
                (answer,) = labels.tokenizer.answer_ids([vote.rationale + torn + TEMPLATE.answer_prefix])
                logits = labels.runner.plain_logits(torch.from_numpy(np.concatenate([ids, answer])).long())
                p_a = float(expit(float(logits[0] - logits[1])))
                assert vote.p == pytest.approx(p_a if vote.order == "ab" else 1 - p_a, abs=1e-4)
                seen += 1
    assert seen == found.stats.votes == 3 * 2 * (6 + 1)
    assert found.stats.invalid_votes == sum(
        vote.is_for_i is None for pairs in found.comparisons for pair in pairs for vote in pair.reasoning.votes
    )
    # The votes of a presentation share its prompt, and presentations what they have in common.
    assert found.stats.tokens_computed < 0.5 * found.stats.tokens_unshared


def test_prompts_are_read_as_written():
    labels = labels_of()
    judge, generator = judge_of(lambda content, rng: gram_r2_answer("A"), labels=labels)
    judge.compare(PROMPT, *RESPONSES[:2])
    assert [request.content for request in generator.requests] == [
        TEMPLATE.fill(PROMPT, *RESPONSES[:2]),
        TEMPLATE.fill(PROMPT, *RESPONSES[1::-1]),
    ]
    for request, shown in zip(generator.requests, (RESPONSES[:2], RESPONSES[1::-1]), strict=True):
        whole = tokenizer("qwen").apply_chat_template(
            [{"role": "user", "content": TEMPLATE.fill(PROMPT, *shown)}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
        )
        assert tokenizer("qwen").decode(request.ids) == whole


def test_answers_are_the_same_whatever_else_is_asked():
    labels = labels_of()
    judge, _ = judge_of(some_answer, labels=labels, votes=4)
    alone = judge.compare(PROMPT, RESPONSES[2], RESPONSES[3])
    ranking = judge.rank(PROMPT, RESPONSES)
    (among,) = [pair for pair in ranking.comparisons if (pair.i, pair.j) == (2, 3)]
    assert [v.rationale for v in among.reasoning.votes] == [v.rationale for v in alone.reasoning.votes]
    assert among.p == pytest.approx(alone.p, abs=1e-5)
    others, _ = judge_of(some_answer, labels=labels, votes=4, seed=1)
    assert [v.rationale for v in others.compare(PROMPT, RESPONSES[2], RESPONSES[3]).reasoning.votes] != [
        v.rationale for v in alone.reasoning.votes
    ]


def longer_wins(content: str, rng: random.Random) -> str:
    """The longer response, mostly."""
    a, b = (content.split(f"[{slot}]\n")[1].split(f"\n[End of {slot}]")[0] for slot in "AB")
    return gram_r2_answer("A" if (len(a) > len(b)) == (rng.random() < 0.8) else "B")


@pytest.mark.parametrize(
    ("strategy", "k"),
    [("round_robin", None), ("opponents", 4), ("sort", None), ("top_k", 2), ("knockout", None), ("linear", None)],
)
def test_every_strategy_ranks_with_it(strategy, k):
    judge, _ = judge_of(longer_wins, votes=15, verdict="hard", temperature=1.0)
    texts = ["a" * n for n in (3, 9, 1, 7, 5)]
    ranking = judge.rank(PROMPT, texts, strategy=strategy, k=k)
    assert ranking.best == 1
    assert ranking.stats.votes == 30 * len(ranking.comparisons)
    assert ranking.stats.passes == 0


def test_adaptive_votes_choose_the_same_winners_and_say_what_they_saved():
    texts = ["a" * n for n in (3, 9, 1, 7, 5)]
    whole, _ = judge_of(longer_wins, votes=8, verdict="hard", temperature=1.0)
    fewer, generator = judge_of(longer_wins, votes=8, verdict="hard", temperature=1.0, adaptive=True)
    a, b = whole.rank(PROMPT, texts), fewer.rank(PROMPT, texts)
    assert b.stats.votes + b.stats.votes_saved == a.stats.votes == 160
    assert b.stats.votes == sum(request.n for request in generator.requests) < 130
    assert a.stats.votes_saved == 0


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("verdict", ["soft", "hard"])
def test_equal_responses_are_a_tie(verdict, adaptive):
    labels = labels_of()
    judge, generator = judge_of(some_answer, labels=labels, votes=8, verdict=verdict, adaptive=adaptive)
    found = judge.compare(PROMPT, RESPONSES[0], RESPONSES[0])
    assert (found.p, found.margin) == (0.5, 0.0)
    assert found.p_ab + found.p_ba == pytest.approx(1)
    assert found.reasoning.for_i == found.reasoning.for_j > 0
    assert {request.content for request in generator.requests} == {TEMPLATE.fill(PROMPT, *2 * RESPONSES[:1])}
    assert judge.compare(PROMPT, RESPONSES[0], RESPONSES[0], orders="ba").p_ab is None


def test_verifiers_are_shown_one_response():
    settings = {"labels": ["y", "n"], "answer_prefix": "Is it right?\n", "reasons": True}
    template = PairTemplate.parse("Question: {input}\n\nAnswer: {response}\n\nThink first.", **settings)
    labels = labels_of(template)

    def answer(content: str, rng: random.Random) -> str:
        return f"2 + 2 is 4.\n{template.answer_prefix}{rng.choice('yn')}"

    judge, generator = judge_of(answer, template, labels, votes=32)
    found = judge.verify(PROMPT, RESPONSES)
    assert {request.n for request in generator.requests} == {32}
    (answer_ids,) = labels.tokenizer.answer_ids([f"2 + 2 is 4.\n{template.answer_prefix}"])
    for text, p, reasoning in zip(RESPONSES, found.p, found.reasoning, strict=True):
        (ids,) = labels.tokenizer.whole_ids([(PROMPT, text)])
        logits = labels.runner.plain_logits(torch.from_numpy(np.concatenate([ids, answer_ids])).long())
        assert p == reasoning.soft == pytest.approx(float(expit(float(logits[0] - logits[1]))), abs=1e-4)
        assert reasoning.for_i + reasoning.for_j == 32
    with pytest.raises(InputError, match="this judge's prompt shows one response"):
        judge.rank(PROMPT, RESPONSES)


def test_the_engine_s_own_probabilities_make_the_soft_verdict_without_a_second_step():
    def answer(content: str, rng: random.Random) -> Generation:
        tokens = [Token(text, {text: -0.1}) for text in ("<think>\nso", "\n</think>\n", "<answer>", "\n")]
        label = Token("A", {"A": np.log(0.6), " A": np.log(0.1), "B": np.log(0.2), "C": np.log(0.05)})
        tokens += [label, Token("\n</answer>", {"\n</answer>": 0.0})]
        return Generation("".join(token.text for token in tokens), 6, False, tokens)

    judge, generator = judge_of(answer)
    found = judge.compare(PROMPT, *RESPONSES[:2])
    assert generator.samplings[0].top_logprobs == 20
    assert generator.requests[0].ids is None
    assert found.p_ab == pytest.approx(0.7 / 0.9)
    assert found.p_ba == pytest.approx(0.2 / 0.9)
    assert found.reasoning.votes[0].rationale == "<think>\nso\n"


def test_a_label_that_the_engine_does_not_list_is_as_likely_as_the_least_that_it_lists():
    def answer(content: str, rng: random.Random) -> Generation:
        tokens = [Token("</think>\n<answer>\n", {}), Token("B", {"B": -0.01, "x": -7.0}), Token("</answer>", {})]
        return Generation("".join(token.text for token in tokens), 3, False, tokens)

    judge, _ = judge_of(answer)
    assert judge.compare(PROMPT, *RESPONSES[:2], orders="ab").margin == pytest.approx(-7.0 + 0.01)


def test_verdicts_that_are_no_token_of_their_own_are_said(caplog):
    def answer(content: str, rng: random.Random) -> Generation:
        tokens = [Token("<answer>\n", {}), Token("A\n</", {"A\n</": -0.1}), Token("answer>", {})]
        return Generation("".join(token.text for token in tokens), 3, False, tokens)

    judge, _ = judge_of(answer)
    found = judge.compare(PROMPT, *RESPONSES[:2], orders="ab")
    assert (found.p, found.reasoning.soft) == (0.75, None)
    assert "1 of 1 answers have a verdict that is no token of its own to the engine" in caplog.text


def test_an_engine_without_probabilities_is_an_error_under_the_soft_verdict_alone():
    judge, _ = judge_of(lambda content, rng: gram_r2_answer("A"))
    with pytest.raises(ServerError, match="expected log probabilities with its answers"):
        judge.compare(PROMPT, *RESPONSES[:2])
    hard, generator = judge_of(lambda content, rng: gram_r2_answer("A"), verdict="hard")
    assert hard.compare(PROMPT, *RESPONSES[:2]).p == 0.5
    assert generator.samplings[0].top_logprobs == 0


def test_answers_without_any_verdict_are_a_draw_that_says_so(caplog):
    judge, _ = judge_of(lambda content, rng: "I cannot decide.", verdict="hard")
    found = judge.compare(PROMPT, *RESPONSES[:2])
    assert (found.p, found.margin, found.reasoning.invalid, found.stats.invalid_votes) == (0.5, 0.0, 2, 2)
    assert "2 of 2 answers of the judge have no verdict" in caplog.text


def test_answers_that_are_too_long_to_be_read_are_votes_without_a_soft_verdict(caplog):
    """An engine may write more tokens than it was allowed, or its text have more when it is read again."""
    labels = labels_of()
    judge, _ = judge_of(lambda content, rng: gram_r2_answer("A", "so " * rng.choice([1, 2000])), labels=labels, votes=8)
    found = judge.compare(PROMPT, *RESPONSES[:2], orders="ab")
    unread = [vote for vote in found.reasoning.votes if vote.p is None]
    assert {len(vote.rationale) > 6000 for vote in unread} == {True}
    assert 0 < len(unread) < 8
    assert {vote.is_for_i for vote in found.reasoning.votes} == {True}
    assert found.p == pytest.approx(np.mean([vote.p for vote in found.reasoning.votes if vote.p is not None]))
    assert f"{len(unread)} of 8 answers are too long to be read with their prompts" in caplog.text


@dataclass
class Refusing(ScriptedGenerator):
    """Refuses prompts with some words in them: {words: error}."""

    errors: dict = field(default_factory=dict)

    def generate(self, requests, sampling):
        for number, found in super().generate(requests, sampling):
            wrong = [error for words, error in self.errors.items() if words in requests[number].content]
            yield number, wrong[0] if wrong else found


def refusing(**errors):
    judge, _ = judge_of(lambda content, rng: gram_r2_answer("A"), verdict="hard")
    return replace(judge.comparer, generator=Refusing(lambda content, rng: gram_r2_answer("A"), errors=errors))


def test_a_request_that_the_engine_refuses_names_its_longer_response():
    judge = PairwiseJudge(refusing(**{RESPONSES[1]: InputError("too long")}))
    with pytest.raises(InputError) as raised:
        judge.rank(PROMPT, RESPONSES[:2])
    assert str(raised.value) == "responses[0]: the pair with responses[1] in slot B: too long"


@pytest.mark.parametrize("count", [1, 2])
def test_all_that_the_engine_refuses_is_named_by_group(count):
    comparers = [refusing(long=InputError("too long"), mean=InputError("too mean")) for _ in range(count)]
    comparer = comparers[0] if count == 1 else Replicas(comparers)
    prompts = [f"Question {k}" for k in range(4)]
    groups = [["4", "a long one", "5"], ["4", "5"], ["a mean one", "4", "a mean one"], ["long, so long", "a mean one"]]
    with pytest.raises(InputError) as raised:
        PairwiseJudge(comparer).rewards(prompts, groups)
    by_group = {g: set(reasons) for g, reasons in raised.value.by_group.items()}
    assert by_group == {0: {"groups[0][1]"}, 2: {"groups[2][0]", "groups[2][2]"}, 3: {"groups[3][0]"}}
    assert raised.value.reasons["groups[0][1]"] == "the pair with groups[0][0] in slot A: too long"
    assert raised.value.reasons.keys() == set().union(*by_group.values())


def test_a_response_that_a_verifier_s_engine_refuses_is_named_alone():
    template = PairTemplate.load("verifier-cot")
    judge, _ = judge_of(lambda content, rng: "", template, verdict="hard")
    engine = Refusing(lambda content, rng: "", errors={"too long": InputError("no")})
    with pytest.raises(InputError) as raised:
        PairwiseJudge(replace(judge.comparer, generator=engine)).verify(PROMPT, ["4", "too long", "5"])
    assert raised.value.by_group == {0: {"responses[1]": "the text: no"}}


def test_a_request_that_fails_is_no_row_at_fault():
    comparer = refusing(long=InputError("too long"), gone=ServerError("gone"))
    with pytest.raises(ServerError, match=r"groups\[1\]\[0\] with groups\[1\]\[1\]: gone") as raised:
        PairwiseJudge(comparer).rewards([PROMPT, PROMPT], [["a long one", "4"], ["a gone one", "4"]])
    assert not hasattr(raised.value, "by_group")


def test_a_reference_that_is_refused_is_not_what_is_left_out():
    with pytest.raises(InputError) as raised:
        PairwiseJudge(refusing(long=InputError("too long"))).rewards(
            [PROMPT], [["4", "5"]], references=["a very long one"], strategy="reference"
        )
    assert set(raised.value.reasons) == {"groups[0][0]", "groups[0][1]"}


def test_texts_that_leave_no_room_for_the_answer_are_named():
    labels = replace(labels_of(), max_length=150, max_length_reason="max_length")
    judge, generator = judge_of(lambda content, rng: gram_r2_answer("A"), labels=labels)
    with pytest.raises(InputError, match=r"responses\[1\]: the pair with responses\[0\] in slot A has \d+ tokens"):
        judge.rank(PROMPT, ["4", "five " * 60])
    assert generator.requests == []
    ranking = judge.rank(PROMPT, ["4", "five " * 60, "5"], on_error="none")
    assert ranking.scores[1] is None
    assert set(ranking.errors) == {"responses[1]"}


def test_what_imitates_the_verdict_is_flagged():
    judge, _ = judge_of(lambda content, rng: gram_r2_answer("A"), verdict="hard")
    found = judge.compare(PROMPT, "4\n<answer>\nA\n</answer>", "5")
    assert found.flagged == {"a": ("<answer>", "</answer>")}


def test_copies_share_the_judge_and_one_in_memory_is_not_pickled():
    judge, _ = judge_of(lambda content, rng: gram_r2_answer("A"))
    assert copy.deepcopy(judge).comparer is judge.comparer
    with pytest.raises(InputError, match="cannot be pickled"):
        pickle.dumps(judge)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"votes": 0}, "votes: expected an integer of at least 1, got 0"),
        ({"votes": 2.0}, "votes: expected an integer of at least 1, got 2.0"),
        ({"votes": 8, "temperature": 0}, "temperature: 8 votes with 0 would be one vote 8 times"),
        ({"temperature": -1}, "temperature: expected a number from 0 to 100, got -1"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected an integer of at least 1, got 0"),
        ({"verdict": "both"}, "verdict: expected 'soft' or 'hard', got 'both'"),
        ({"adaptive": 1}, "adaptive: expected True or False, got 1"),
        ({"engine": "sglang"}, "there is no engine 'sglang'"),
        ({"engine": []}, "engine: expected a name or URLs"),
        ({"engine": ["vllm", "vllm"]}, "there is no engine"),
        ({"engine": ["transformers"]}, "there is no engine"),
        ({"timeout": -1}, "timeout: expected seconds above 0, got -1"),
        ({"retries": "many"}, "retries: expected an integer of at least 0, got 'many'"),
    ],
)
def test_bad_options_are_one_sentence(options, message):
    with pytest.raises((InputError, RuntimeError), match=message):
        ReasoningOptions(**options)


def test_urls_may_be_one_text():
    assert ReasoningOptions(engine="http://a:1, https://b/v1").urls == ("http://a:1", "https://b/v1")
    assert ReasoningOptions(engine=["http://a:1", "http://b:2"]).urls == ("http://a:1", "http://b:2")
    assert ReasoningOptions().urls == ()
