"""Modes in which a judge reads a pair: one response after the other, or each by itself."""

from typing import Literal, get_args

from gram_fast.comparing.comparer import Comparer
from gram_fast.errors import InputError, shown_value

Mode = Literal["full", "factored"]
"""How a pair is read. "full": response B after response A, as every GRAM judge does. "factored": each response after
the prompt alone, and only the text behind them reads both (docs/design/factored.md)."""


def check_mode(mode: str) -> None:
    """Raises InputError on anything but a mode."""
    if not isinstance(mode, str) or mode not in get_args(Mode):
        raise InputError(f"mode: expected {' or '.join(get_args(Mode))}, got {shown_value(mode)}")


def in_mode(comparer: Comparer, mode: str) -> Comparer:
    """The comparer, reading pairs in this mode.

    Raises InputError on an unknown mode, on a comparer that has no other mode than "full", and on one whose checkpoint
    was not trained for it; UnsupportedModelError where its model or tokenizer cannot have it.
    """
    check_mode(mode)
    find = getattr(comparer, "in_mode", None)
    if find is not None:
        found: Comparer = find(mode)
        return found
    if mode != "full":
        raise InputError(
            f"mode {mode!r}: expected a judge that reads label logits of a model which is loaded here, got "
            f"{type(comparer).__name__}"
        )
    return comparer
