"""Which pairs the strategies ask for, and who wins."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gram_fast.errors import InputError
from gram_fast.ranking.tournament import STRATEGIES, WITH_K, find_strategy, knockouts, opponents, top_k


def play(strategy, strength, seed: int = 0, prefer=lambda x, y: 0.5 + 0.5 * np.sign(x - y)):
    """Plays with P(i better) = prefer(strength[i], strength[j]), 1, 0.5 or 0 -> leaders, rounds."""
    strategy = STRATEGIES[strategy] if isinstance(strategy, str) else strategy
    tournament = strategy.start(len(strength), np.random.default_rng(seed))
    rounds, p = [], None
    while True:
        try:
            pairs = tournament.send(p)
        except StopIteration as stop:
            return stop.value, rounds
        rounds.append(pairs)
        p = np.array([prefer(strength[i], strength[j]) for i, j in pairs])


def strengths(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).permutation(count).tolist()


@pytest.mark.parametrize("count", [2, 3, 5, 8, 13])
@pytest.mark.parametrize("strategy", ["linear", "knockout"])
def test_eliminations_find_the_strongest_in_n_minus_1_pairs(strategy, count):
    for seed in range(5):
        strength = strengths(count, seed)
        (winner,), rounds = play(strategy, strength, seed)
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
    assert play("reference", [0, 1, 2]) == ([], [[(0, 1), (0, 2)]])
    assert play("round_robin", [0, 1, 2]) == ([], [[(0, 1), (0, 2), (1, 2)]])


def test_a_draw_goes_to_the_first():
    assert play("linear", [1, 1, 1])[0] == [0]


def test_the_seed_draws_the_bracket():
    strength = list(range(9))
    assert play("knockout", strength, 3) == play("knockout", strength, 3)
    assert any(play("knockout", strength, seed)[1] != play("knockout", strength, 3)[1] for seed in range(5))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 32, 33])
def test_sort_orders_all_in_n_log_n_pairs(count):
    levels = int(np.ceil(np.log2(count)))
    for seed in range(5):
        strength = strengths(count, seed)
        order, rounds = play("sort", strength)
        assert [strength[c] for c in order] == list(range(count))[::-1]
        assert sum(map(len, rounds)) <= count * levels - 2**levels + 1  # merge sort's bound
        assert len(rounds) <= count + levels  # both ends of all merges of a level at once


def test_sort_merges_all_of_a_level_in_one_round():
    assert play("sort", [7, 6, 5, 4, 3, 2, 1, 0])[1] == [
        [(0, 1), (2, 3), (4, 5), (6, 7)],
        [(0, 2), (1, 3), (4, 6), (5, 7)],
        [(1, 2), (5, 6)],
        [(0, 4), (3, 7)],
        [(1, 4), (3, 6)],
        [(2, 4), (3, 5)],
        [(3, 4)],
    ]


@pytest.mark.parametrize("count", [1, 2, 5, 11])
def test_sort_leaves_draws_in_order(count):
    assert play("sort", [0] * count)[0] == list(range(count))
    strength = [c % 3 for c in range(count)]
    assert play("sort", strength)[0] == sorted(range(count), key=lambda c: -strength[c])


@pytest.mark.parametrize("count", [1, 2, 3, 8, 13, 32, 33])
def test_top_k_costs_a_knockout_and_log_n_pairs_for_each_place(count):
    for seed in range(3):
        strength = strengths(count, seed)
        for k in range(1, count + 2):
            leaders, rounds = play(top_k(k), strength, seed)
            assert [strength[c] for c in leaders] == list(range(count))[::-1][:k]
            pairs = sum(map(len, rounds))
            assert pairs <= count - 1 + (min(k, count) - 1) * int(np.ceil(np.log2(count)))


def test_top_k_begins_with_the_knockout():
    for seed in range(5):
        strength = strengths(13, seed)
        (winner,), rounds = play("knockout", strength, seed)
        leaders, more = play(top_k(3), strength, seed)
        assert leaders[0] == winner
        assert more[: len(rounds)] == rounds
        assert play(top_k(1), strength, seed) == ([winner], rounds)


def test_top_k_is_the_repeated_best_without_repeated_questions():
    """Takes the best out of a fixed bracket again and again, and counts only pairs that were not asked before."""

    def best_of(bracket, strength, out, asked):
        if isinstance(bracket, int):
            return None if bracket in out else bracket
        x, y = (best_of(half, strength, out, asked) for half in bracket)
        if x is None or y is None:
            return y if x is None else x
        asked.add((x, y))
        return x if strength[x] > strength[y] else y

    def bracket_of(candidates):
        middle = len(candidates) // 2
        return candidates[0] if not middle else (bracket_of(candidates[:middle]), bracket_of(candidates[middle:]))

    ours, theirs = 0, 0
    for seed in range(30):
        strength, k = strengths(32, seed), 5
        leaders, rounds = play(top_k(k), strength, seed)
        out: list[int] = []
        asked: set = set()
        for _ in range(k):
            out.append(best_of(bracket_of(strengths(32, seed + 100)), strength, out, asked))
        assert leaders == out
        ours, theirs = ours + sum(map(len, rounds)), theirs + len(asked)
    assert ours == pytest.approx(theirs, rel=0.06)  # 48.6 and 46.8 pairs in the mean


def degrees(count: int, pairs) -> list[int]:
    return np.bincount(np.array(pairs, int).ravel(), minlength=count).tolist()


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 9, 16, 31, 32, 33])
def test_opponents_are_as_many_as_asked_for(count):
    for k in range(2, count + 2):
        leaders, (pairs,) = play(opponents(k), range(count), seed=k)
        assert leaders == []
        found = degrees(count, pairs)
        if k >= count - 1:
            assert pairs == play("round_robin", range(count))[1][0]
        else:
            assert len(pairs) == (count * k + 1) // 2
            assert sorted(found) == [k] * (count - 1) + [k + count * k % 2]
        if k % 2 == 0 and k < count - 1:  # in slot A as often as in slot B
            assert np.bincount([i for i, _ in pairs], minlength=count).tolist() == [k // 2] * count


def test_opponents_are_drawn_by_the_seed():
    assert play(opponents(4), range(16), 1) == play(opponents(4), range(16), 1) != play(opponents(4), range(16), 2)


@pytest.mark.parametrize(
    ("count", "k", "most"), [(16, 4, 1.25), (32, 4, 1.4), (32, 6, 1.2), (256, 4, 2), (256, 6, 1.4)]
)
def test_opponents_leave_differences_of_strengths_little_variance(count, k, most):
    """Against 2 (n - 1) / n k, where all eigenvalues of the Laplacian are equal: the mean over pairs cannot be less."""
    _, (pairs,) = play(opponents(k), range(count))
    laplacian = np.diag(np.array(degrees(count, pairs), float))
    i, j = np.array(pairs).T
    np.subtract.at(laplacian, (np.r_[i, j], np.r_[j, i]), 1)
    mean_variance = 2 / (count - 1) * np.trace(np.linalg.pinv(laplacian))
    assert mean_variance < most * 2 * (count - 1) / (count * k)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 13])
def test_knockouts_are_knockouts_in_brackets_of_their_own(count):
    strength = strengths(count, 5)
    leaders, rounds = play(knockouts(4), strength, 7)
    assert leaders == []
    rng = np.random.default_rng(7)
    brackets: list[list] = []
    for _ in range(4):
        tournament = STRATEGIES["knockout"].start(count, rng)
        pairs, bracket = next(tournament, None), []
        while pairs is not None:
            bracket.append(pairs)
            try:
                pairs = tournament.send(np.array([float(strength[i] > strength[j]) for i, j in pairs]))
            except StopIteration:
                pairs = None
        brackets.append(bracket)
    for number, pairs in enumerate(rounds):
        theirs = [pair for bracket in brackets for pair in bracket[number]]
        assert list(map(frozenset, pairs)) == list(map(frozenset, theirs))
    asked = [pair for pairs in rounds for pair in pairs]
    assert len(asked) == 4 * (count - 1)
    assert len(set(asked)) == len(set(map(frozenset, asked)))  # who meets again is asked for in the same order


NAMES = [*STRATEGIES, *WITH_K]


@given(st.integers(1, 12), st.randoms(use_true_random=False), st.sampled_from(NAMES))
def test_whatever_the_judge_says_no_pair_is_compared_twice_and_all_are_connected(count, random, name):
    strategy = WITH_K[name][0](4) if name in WITH_K else STRATEGIES[name]
    said = [[random.choice((0.0, 0.5, 1.0)) for _ in range(count)] for _ in range(count)]
    leaders, rounds = play(strategy, range(count), 3, lambda i, j: said[i][j])
    assert play(strategy, range(count), 3, lambda i, j: said[i][j]) == (leaders, rounds)
    assert len(set(leaders)) == len(leaders) == {"sort": count, "top_k": min(4, count)}.get(name, len(leaders))
    asked = [pair for pairs in rounds for pair in pairs]
    pairs = list(map(frozenset, asked if name != "knockouts" else dict.fromkeys(asked)))
    assert len(set(pairs)) == len(pairs)
    component = list(range(count))
    for i, j in pairs:
        component = [component[i] if c == component[j] else c for c in component]
    assert len(set(component)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_num_pairs_is_exact_where_results_do_not_matter(name):
    strategy = WITH_K[name][0](2) if name in WITH_K else STRATEGIES[name]
    for count in (1, 2, 7, 16):
        pairs = len({pair for pairs in play(strategy, strengths(count, 1))[1] for pair in pairs})
        near = {"sort": count // 4, "top_k": 3, "knockouts": 2}.get(name, 0)
        assert strategy.num_pairs(count) == pytest.approx(pairs, abs=near)


def test_unknown_strategies_are_named():
    names = "linear, knockout, reference, round_robin, sort, top_k, opponents, knockouts"
    expected = f"no strategy 'nope': expected one of {names}"
    with pytest.raises(InputError, match=expected):
        find_strategy("nope")
    with pytest.raises(InputError, match=r"there is no strategy \['sort'\]"):
        find_strategy(["sort"])


@pytest.mark.parametrize("k", [None, 0, -1, 1.5, True, "3"])
@pytest.mark.parametrize("name", WITH_K)
def test_k_is_a_number(name, k):
    least = WITH_K[name][1]
    expected = f"k: expected an integer of at least {least} for strategy '{name}' of rank and rewards, got {k!r}"
    with pytest.raises(InputError, match=expected):
        find_strategy(name, k)


def test_one_opponent_would_connect_nobody():
    with pytest.raises(InputError, match="at least 2 for strategy 'opponents'"):
        find_strategy("opponents", 1)


def test_k_is_for_strategies_that_have_it():
    with pytest.raises(
        InputError, match="k: expected it beside strategy top_k or opponents or knockouts alone, got 3 with 'sort'"
    ):
        find_strategy("sort", 3)
