"""Which pairs the strategies ask for, and who wins."""

import numpy as np
import pytest

from gram_fast.errors import InputError
from gram_fast.ranking.tournament import STRATEGIES, find_strategy


def play(strategy: str, strength: list[float], seed: int = 0):
    """Plays with P(i better) = 1, 0.5 or 0 by strength -> winner, rounds."""
    tournament = STRATEGIES[strategy].start(len(strength), np.random.default_rng(seed))
    rounds, p = [], None
    while True:
        try:
            pairs = tournament.send(p)
        except StopIteration as stop:
            return stop.value, rounds
        rounds.append(pairs)
        p = np.array([0.5 + 0.5 * np.sign(strength[i] - strength[j]) for i, j in pairs])


@pytest.mark.parametrize("count", [2, 3, 5, 8, 13])
@pytest.mark.parametrize("strategy", ["linear", "knockout"])
def test_eliminations_find_the_strongest_in_n_minus_1_pairs(strategy, count):
    for seed in range(5):
        strength = np.random.default_rng(seed).permutation(count).tolist()
        winner, rounds = play(strategy, strength, seed)
        assert strength[winner] == count - 1
        assert sum(map(len, rounds)) == count - 1


@pytest.mark.parametrize("count", [2, 3, 8, 13])
def test_knockout_takes_log_rounds(count):
    assert len(play("knockout", list(range(count)))[1]) == int(np.ceil(np.log2(count)))


def test_linear_keeps_the_running_best_in_slot_a():
    assert play("linear", [2, 1, 3, 0])[1] == [[(0, 1)], [(0, 2)], [(2, 3)]]


def test_knockout_leaves_a_winner_that_stood_first_there():
    for seed in range(20):
        strength = np.random.default_rng(seed).normal(size=16).tolist()
        _, rounds = play("knockout", strength, seed)
        stood_first: set[int] = set()
        for pairs in rounds:
            for i, j in pairs:
                assert not (j in stood_first and i not in stood_first)
            stood_first.update(i for i, _ in pairs)


def test_reference_and_round_robin_ask_once():
    assert play("reference", [0, 1, 2]) == (None, [[(0, 1), (0, 2)]])
    assert play("round_robin", [0, 1, 2]) == (None, [[(0, 1), (0, 2), (1, 2)]])


def test_a_draw_goes_to_the_first():
    assert play("linear", [1, 1, 1])[0] == 0


def test_the_seed_draws_the_bracket():
    strength = list(range(9))
    assert play("knockout", strength, 3) == play("knockout", strength, 3)
    assert any(play("knockout", strength, seed)[1] != play("knockout", strength, 3)[1] for seed in range(5))


def test_unknown_strategies_are_named():
    with pytest.raises(
        InputError, match="no strategy 'nope': expected one of linear, knockout, reference, round_robin"
    ):
        find_strategy("nope")
