"""Stops a call from outside, between two passes: Python can interrupt its main thread, and no other."""

import functools
import threading
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from typing import ParamSpec, TypeVar

from gram_fast.errors import GramFastError

P = ParamSpec("P")
R = TypeVar("R")

_STOPS: ContextVar[tuple[threading.Event, ...]] = ContextVar("gram_fast_stops", default=())


class StoppedError(GramFastError):
    """The call was stopped by whoever waited for it; nobody is left to read this."""


def stopped_by(stop: threading.Event) -> Context:
    """A copy of the current context for a thread to run in, whose calls end at their next pass once `stop` is set.

    Nothing is set in the thread that will wait for it, so that no interruption can leave it there.
    """
    context = copy_context()
    context.run(_STOPS.set, (*_STOPS.get(), stop))
    return context


def stop_of_call() -> Callable[[], bool]:
    """Makes a function that says, in any thread, whether the call that runs here now is to stop."""
    stops = _STOPS.get()
    return lambda: any(stop.is_set() for stop in stops)


async def to_thread(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Awaits a judge's method that runs in a thread, as `asyncio.to_thread` does; who cancels it frees the judge.

    rewards = await gram_fast.to_thread(judge.rewards, prompts, groups)

    The event loop goes on meanwhile. Where the task is cancelled (`task.cancel()`, `asyncio.wait_for`), the await ends
    at once, and the method ends before its next pass of the model, so that other calls need not wait for it. Passes of
    a judge that is divided among processes run to the end of the call: the other processes take part in them.
    """
    import asyncio  # not every process has an event loop

    stop = threading.Event()
    call = functools.partial(stopped_by(stop).run, function, *args, **kwargs)
    try:
        return await asyncio.get_running_loop().run_in_executor(None, call)
    finally:
        stop.set()
