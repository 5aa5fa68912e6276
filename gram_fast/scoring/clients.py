"""Clients: for whom a call is made, where calls of several clients share a judge fairly."""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_CLIENT: ContextVar[Hashable] = ContextVar("gram_fast_client", default=None)


@contextmanager
def as_client(name: Hashable) -> Iterator[None]:
    """Makes calls within the context, and in threads that run in a copy of it, calls of one client."""
    token = _CLIENT.set(name)
    try:
        yield
    finally:
        _CLIENT.reset(token)


def client_of_call() -> Hashable:
    """The client of the call that runs here now; of a call outside of `as_client` one of its own."""
    name = _CLIENT.get()
    return object() if name is None else name
