"""Calls from within a call of the same thing are errors, wherever its context goes; all others are not."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context

import pytest
from helpers.interruptions import interrupted_at, lines_of

from gram_fast.errors import InputError
from gram_fast.scoring.calls import Calls


def call(calls: Calls) -> str:
    with calls.open():
        return "done"


def test_calls_from_within_are_errors_in_every_copy_of_the_context_while_it_is_open() -> None:
    outer, other = Calls(), Calls()
    with ThreadPoolExecutor(1) as pool:
        with outer.open(), other.open():
            copy = copy_context()
            for run in (lambda: call(outer), lambda: pool.submit(copy.run, call, outer).result()):
                with pytest.raises(InputError, match=r"^the judge is in the middle of a call"):
                    run()
            assert pool.submit(call, outer).result() == call(Calls()) == "done"
        assert pool.submit(copy.run, call, outer).result() == call(outer) == "done"


def test_a_call_that_ends_in_another_context_or_before_an_inner_one_is_over() -> None:
    first, second = Calls(), Calls()
    one, two = first.open(), second.open()
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert call(first) == "done"
    with pytest.raises(InputError):
        call(second)
    copy_context().run(two.__exit__, None, None, None)
    assert call(second) == "done"


def test_a_call_that_is_interrupted_at_any_line_is_over() -> None:
    calls, caught = Calls(), []

    @contextmanager
    def around():
        with calls.open():
            yield

    def nested() -> None:
        with around():
            call(Calls())

    for line in range(lines_of(nested)):
        with pytest.raises(KeyboardInterrupt) as interruption:
            interrupted_at(line, nested)
        caught.append(interruption)  # the error and its frames stay alive
        assert call(calls) == "done"
