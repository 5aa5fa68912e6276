"""Which proofs can be used, which is chosen, and what becomes of pairs without one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.generators import ScriptedGenerator
from helpers.small_models import tiny_model
from helpers.small_tokenizers import tokenizer

from gram_fast.errors import InputError, ServerError
from gram_fast.generating.generator import Generation, Sampling
from gram_fast.generating.verdicts import OVER_THE_LIMIT
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokens import PairTokenizer
from gram_fast.training.data.records import PairRecord
from gram_fast.training.proofs import prover_template, write_proof
from gram_fast.training.self_training import prover as module
from gram_fast.training.self_training.prover import (
    LABELS,
    NO_PROOF,
    NO_SCORE,
    OTHER_LABEL,
    Proven,
    Prover,
    choose,
    read_rationale,
)

TEMPLATE = PairTemplate.parse("Q: {input}\nA: {response_a}\nB: {response_b}\nBetter?", answer_prefix="</think>\n")
PAIR = PairRecord("What is 2 + 2?", "4", "5", "A", "row 1")


def prover_of(answer, **more):
    qwen = tokenizer("qwen")
    values = {
        "generator": ScriptedGenerator(answer),
        "model": tiny_model("qwen3", vocab_size=len(qwen), max_position_embeddings=1024),
        "template": TEMPLATE,
        "tokenizers": {label: PairTokenizer(qwen, prover_template(TEMPLATE, label)) for label in LABELS},
        "sampling": Sampling(100, 1.0),
        "proofs": 6,
        "separator": 3,
        "max_length": 1024,
        "max_length_reason": "max_position_embeddings",
    }
    return Prover(**{**values, **more})


def cycle(answers):
    """Answers in their order, whatever is asked."""
    left = list(answers) * 10
    return lambda content, rng: left.pop(0)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (write_proof("4 is right.", "A"), ("4 is right.", "")),
        ("\n" + write_proof("  two\n\nlines ", "A") + "\n", ("two\n\nlines", "")),
        (write_proof("5 is right.", "B"), ("", OTHER_LABEL)),
        (write_proof(" \n ", "A"), ("", NO_PROOF)),
        (write_proof("so </think> it ends", "A"), ("", NO_PROOF)),
        ("A is better.", ("", NO_PROOF)),
        ("Thus, Response B is better.", ("", NO_PROOF)),
        (write_proof("it goes on", "A") + " Or not?", ("", NO_PROOF)),
        ("", ("", NO_PROOF)),
    ],
)
def test_what_can_be_used_of_a_proof(text, found):
    assert read_rationale(Generation(text, 9, False), "A", TEMPLATE) == found
    assert read_rationale(Generation(text, 9, True), "A", TEMPLATE) == ("", OVER_THE_LIMIT)


def test_a_proof_with_a_verdict_of_the_judge_s_form_cannot_be_used():
    genrm = PairTemplate.load("genrm")
    for body, found in (("so [[B]] it is", ("", NO_PROOF)), ("of [[1, 2]]", ("of [[1, 2]]", ""))):
        assert read_rationale(Generation(write_proof(body, "A"), 9, False), "A", genrm) == found


def test_the_highest_score_is_chosen_and_the_first_of_equal_ones():
    assert choose(["a", "b", "c", "d"], [-0.3, -0.1, -0.2, -0.1]) == ("b", -0.1)
    assert choose(["a", "b"], [-float("inf"), -5.0]) == ("b", -5.0)
    assert choose(["a"], [-float("inf")]) is None
    assert choose([], []) is None


def plain_score(prover, proof):
    """-log pi(proof | s, label) / log pi(proof), of plain forwards."""
    pairs = prover.tokenizers["A"]
    (prompt,), (ids,) = pairs.whole_ids([(PAIR.prompt, PAIR.response_a, PAIR.response_b)]), pairs.answer_ids([proof])
    sums = []
    for before in (prompt, np.array([prover.separator])):
        whole = torch.from_numpy(np.concatenate([before, ids])).long()
        log_p = prover.model(input_ids=whole[None]).logits[0].log_softmax(-1)
        sums.append(float(log_p[torch.arange(len(before) - 1, len(whole) - 1), whole[len(before) :]].sum()))
    return -sums[0] / sums[1]


def test_the_best_of_several_proofs_by_plain_forwards():
    bodies = ["4 is right.", "B says 5.", "2 and 2 are 4, and A says that."]
    proofs = [write_proof(body, "A") for body in bodies]
    bad = [write_proof("4", "B"), "no", Generation("4", 100, True)]
    prover = prover_of(cycle([proofs[0], bad[0], proofs[1], bad[1], proofs[2], bad[2]]))
    seen = []
    [found] = prover.prove([PAIR], [17], seen.append)
    scores = [plain_score(prover, proof) for proof in proofs]
    assert found.rationale == bodies[int(np.argmax(scores))]
    assert found.score == pytest.approx(max(scores), abs=1e-4)
    assert -float("inf") < found.score <= 0
    assert found.recorded["proofs"] == {"written": 6, "usable": 3, NO_PROOF: 1, OVER_THE_LIMIT: 1, OTHER_LABEL: 1}
    assert seen == [1]
    [request] = prover.generator.requests
    assert (request.n, request.seed) == (6, 17)
    assert "Response A is better. Do not judge again" in request.content


def test_a_pair_without_a_usable_proof_says_why():
    [found] = prover_of(cycle(["no"])).prove([PAIR], [1])
    assert found == Proven(None, None, 6, {NO_PROOF: 6})


def test_proofs_without_a_score_are_counted(monkeypatch):
    monkeypatch.setattr(module, "score_proofs", lambda *_: [SimpleNamespace(score=s) for s in (-float("inf"), -2.0)])
    answers = [write_proof("one", "A"), write_proof("two", "A")]
    [found] = prover_of(cycle(answers), proofs=2).prove([PAIR], [1])
    assert (found.rationale, found.score, found.unusable) == ("two", -2.0, {NO_SCORE: 1})


def test_a_proof_that_does_not_fit_when_it_is_read_again_is_over_the_limit():
    pairs = prover_of(cycle([])).tokenizers["A"]
    (ids,) = pairs.whole_ids([(PAIR.prompt, PAIR.response_a, PAIR.response_b)])
    long = write_proof("4 " * 60, "A")
    prover = prover_of(cycle([long]), proofs=1, max_length=len(ids) + 50, sampling=Sampling(20, 1.0))
    assert prover.prove([PAIR], [1]) == [Proven(None, None, 1, {OVER_THE_LIMIT: 1})]


def test_pairs_that_are_too_long_or_refused_have_errors_and_the_others_proofs():
    class Refusing(ScriptedGenerator):
        def generate(self, requests, sampling):
            for number, found in super().generate(requests, sampling):
                yield number, ServerError("refused") if "bad" in requests[number].content else found

    proof = write_proof("4 is right.", "A")
    prover = prover_of(None, generator=Refusing(cycle([proof])), proofs=2)
    pairs = [
        PAIR,
        PairRecord("why? " * 500, "4", "5", "A", "row 2"),
        PairRecord("bad", "4", "5", "A", "row 3"),
        PairRecord("x" * 10**6, "4", "5", "A", "row 4"),
        PairRecord("And 3 + 3?", "6", "7", "A", "row 5"),
    ]
    found = prover.prove(pairs, range(5))
    assert [one.rationale for one in (found[0], found[4])] == ["4 is right."] * 2
    for error, kind, message in (
        (found[1], InputError, r"row 2: the prover's prompt has \d+ tokens: expected at most 1024 \(max_position_emb"),
        (found[2], ServerError, "row 3: refused"),
        (found[3], InputError, r"row 4: the prover's prompt has at least \d+ tokens"),
    ):
        assert type(error) is kind
        with pytest.raises(kind, match=message):
            raise error
