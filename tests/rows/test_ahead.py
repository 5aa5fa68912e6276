"""Reading ahead: order, errors in their place, a bound on what is held, and pauses that are seen."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.rows.ahead import ReadAhead


def until(condition):
    """Waits for the other thread."""
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.005)
    raise AssertionError("waited in vain")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5)), st.integers(1, 8), st.booleans())
def test_items_come_in_order_and_an_error_behind_those_before_it(sizes, limit, fails):
    def items():
        yield from sizes
        if fails:
            raise ValueError("broken")

    ahead = ReadAhead(items(), int, limit)
    assert [next(ahead) for _ in sizes] == sizes
    with pytest.raises(ValueError if fails else StopIteration):
        next(ahead)
    assert (ahead.has_ended, ahead.count) == (True, len(sizes))


def test_no_more_is_held_than_the_limit_and_one_item():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    ahead = ReadAhead(items(), lambda _: 10, 35)
    ahead.settle(None)
    until(lambda: len(taken) == 5)  # four are held, and one waits for room
    assert ahead.count == 4
    assert next(ahead) == 0
    until(lambda: len(taken) == 6)
    assert not ahead.has_ended
    ahead.close()
    assert ahead.has_ended
    assert [*ahead] == [1, 2, 3, 4]


def test_an_item_that_is_not_there_yet_is_waited_for_or_seen_to_be_missing():
    go = threading.Event()

    def items():
        yield "first"
        go.wait(60)
        yield "second"

    ahead = ReadAhead(items(), len, 100)
    ahead.settle(0.05)
    assert (ahead.count, ahead.has_ended) == (1, False)
    assert not ahead.is_waiting
    assert next(ahead) == "first"
    assert ahead.is_waiting
    threading.Timer(0.05, go.set).start()
    assert [*ahead] == ["second"]
    assert not ahead.is_waiting


def test_a_source_without_an_end_or_a_pause_is_waited_for_no_longer_than_was_said():
    def items():
        for number in range(1000):  # ten seconds, so that a wait for its end fails
            threading.Event().wait(0.01)
            yield number

    ahead = ReadAhead(items(), lambda _: 1, 1000)
    ahead.settle(0.2)
    assert 0 < ahead.count < 500
    assert next(ahead) == 0
    ahead.close()


def test_what_ends_in_time_is_read_whole_however_it_comes():
    def items():
        for number in range(5):
            threading.Event().wait(0.02)
            yield number

    ahead = ReadAhead(items(), lambda _: 1, 1000)
    ahead.settle(60)
    assert (ahead.count, ahead.has_ended) == (5, True)


def test_closing_does_not_wait_for_what_never_comes():
    go = threading.Event()

    def items():
        go.wait(60)
        yield "too late"

    ahead = ReadAhead(items(), len, 100)
    ahead.close()
    assert not ahead.has_ended
    go.set()
    assert [*ahead] == []


def test_an_error_is_known_before_its_turn():
    def items():
        yield "first"
        raise ValueError("broken")

    ahead = ReadAhead(items(), len, 100)
    ahead.settle(None)
    assert str(ahead.error) == "broken"
    assert next(ahead) == "first"
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            next(ahead)
