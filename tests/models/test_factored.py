"""A factored verdict is that of a plain forward with a dense mask, whatever the other verdicts, passes and rounds."""

import copy

import numpy as np
import pytest
from helpers.factored import plain_factored
from helpers.small_models import CONFIGS, VOCAB, tiny_model, tiny_runner
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.scoring.engine import Engine
from gram_fast.text.encoded import EncodedRound

pytestmark = pytest.mark.usefixtures("one_thread")

RUNNERS = {name: tiny_runner(name) for name in CONFIGS}
MODELS = {name: tiny_model(name) for name in CONFIGS}

few_tokens = st.lists(st.integers(3, 5), max_size=7)
texts = few_tokens | st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20)


@st.composite
def verdicts(draw):
    """A head, segments, and rounds of verdicts: numbers of the prompt, the first and the second text, and the tail."""
    head = draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5))
    pool = draw(st.lists(texts, min_size=1, max_size=5))
    tails = draw(st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6), min_size=1, max_size=2))
    of_pool = st.integers(0, len(pool) - 1)
    verdict = st.tuples(of_pool, of_pool, of_pool, st.integers(len(pool), len(pool) + len(tails) - 1))
    return head, [*pool, *tails], draw(st.lists(st.lists(verdict, min_size=1, max_size=6), min_size=1, max_size=3))


def ask(engine, head, segments, rounds):
    """Label logits of rounds of verdicts, in one request."""
    with engine.request(np.array(head, np.int32), is_factored=True) as request:
        found = []
        for number, asked in enumerate(rounds):
            new = [] if number else [np.array(ids, np.int32) for ids in segments]
            request.add(EncodedRound(new, np.array(asked, np.int32), 3, is_factored=True))
            found.append(request.score(more_rounds=number + 1 < len(rounds)))
        return found, request.stats(0.0)


@pytest.mark.parametrize("name", RUNNERS)
@settings(max_examples=15, deadline=None)
@given(given_verdicts=verdicts(), budget=st.sampled_from([6, 7, 33, 500]), keep=st.sampled_from([1, 40, 1000]))
def test_verdicts_are_those_of_a_plain_forward_with_a_dense_mask(name, given_verdicts, budget, keep):
    head, segments, rounds = given_verdicts
    engine = Engine(RUNNERS[name], max_batch_tokens=budget)
    engine.keep_limit = keep
    ours, _ = ask(engine, head, segments, rounds)
    model = copy.deepcopy(MODELS[name])
    for logits, asked in zip(ours, rounds, strict=True):
        expected = [
            plain_factored(model, (head + segments[p], segments[a], segments[b], segments[t])) for p, a, b, t in asked
        ]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
