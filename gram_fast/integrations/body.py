"""Lists in the body of a request."""

from typing import Any

from gram_fast import InputError


def lists(body: Any, *names: str) -> list[list[Any]]:
    """The lists of these names in a body of JSON. Raises InputError where one is no list."""
    found = [body.get(name) if isinstance(body, dict) else None for name in names]
    for name, value in zip(names, found, strict=True):
        if not isinstance(value, list):
            raise InputError(f"{name}: expected a list in the body of the request, got {type(value).__name__}")
    return [value for value in found if isinstance(value, list)]
