"""What transformers has chosen for a function of its modeling files: its own torch code, or that of a package."""

import inspect
from collections.abc import Callable
from typing import Any


def is_reference(function: Callable[..., Any]) -> bool:
    """Whether it runs transformers' own torch code."""
    return _closure(function).get("is_new_implementation") is False


def takes_packed(function: Callable[..., Any]) -> bool:
    """Whether it takes sequences one behind the other, with their bounds as `cu_seqlens`."""
    implementation = _closure(function).get("implementation")
    return implementation is not None and "cu_seqlens" in inspect.signature(implementation).parameters


def is_chosen(function: Any) -> bool:
    """Whether transformers chooses what it runs."""
    return hasattr(function, "__wrapped__") and "implementation" in _closure(function)


def _closure(function: Any) -> dict[str, Any]:
    """What transformers' decorator has in its closure; nothing where something else wraps the function."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    cells = getattr(function, "__closure__", None) or ()
    return {name: cell.cell_contents for name, cell in zip(names, cells, strict=True)}
