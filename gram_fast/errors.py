"""Exceptions of the package. Each message is one sentence that names the cause and what was expected."""

from collections.abc import Mapping
from itertools import islice
from types import MappingProxyType
from typing import Self

# Of many things that are wrong, as many are in a message with their reasons, and as many more by name.
_WITH_REASONS, _NAMED = 4, 16


class GramFastError(Exception):
    """Base class of the exceptions that gram_fast raises on purpose."""


class InputError(GramFastError, ValueError):
    """Invalid prompt, response, file or option."""

    reasons: Mapping[str, str] = MappingProxyType({})
    """What is wrong with each prompt and response of the call that cannot be judged, by name ("groups[3][1]")."""
    by_group: Mapping[int, Mapping[str, str]] = MappingProxyType({})
    """The same by number of the group in the call, where all that is wrong is known to be of some groups alone."""

    @classmethod
    def of(cls, reasons: Mapping[str, str]) -> Self:
        """Makes the error of one or more things that are wrong; the message has the first ones and counts the rest."""
        names = iter(reasons)
        message = "; ".join(f"{name}: {reasons[name]}" for name in islice(names, _WITH_REASONS))
        if (left := len(reasons) - _WITH_REASONS) > 0:
            more = [*islice(names, _NAMED), *(["..."] if left > _NAMED else [])]
            message += f"; and {left} more: {', '.join(more)}"
        error = cls(message)
        error.reasons = reasons
        return error

    @classmethod
    def of_groups(cls, by_group: Mapping[int, Mapping[str, str]]) -> Self:
        """Makes the error of one or more groups, which may have the same names."""
        error = cls.of({name: reason for reasons in by_group.values() for name, reason in reasons.items()})
        error.by_group = by_group
        return error


class UnsupportedModelError(GramFastError):
    """A checkpoint that prefix sharing cannot score exactly, or that lacks something a judge needs."""


class BackendError(GramFastError, RuntimeError):
    """A requested backend or device is not available."""


class ServerError(GramFastError, RuntimeError):
    """A server that cannot be reached, fails, or is not what was expected."""


class NumericalError(GramFastError, ArithmeticError):
    """Numbers that are not finite, or others than they should be."""


class InterruptedRunError(GramFastError):
    """A user's interruption of a command; the message says how to go on."""


# Characters that are kept of another library's message: at its beginning, and at its end, where remedies stand. It may
# list hundreds of tensors between them.
_BEGIN, _END = 400, 300
_LONGEST_VALUE = 80


def one_line(error: BaseException) -> str:
    """Another library's error message on one line, with the error's type where the message is a single word."""
    text = " ".join(str(error).split())
    if len(text) > _BEGIN + _END:
        text = f"{text[:_BEGIN].rstrip()} ... {text[-_END:].lstrip()}"
    return text if " " in text else f"{type(error).__name__} {text}".strip()


def shown_value(value: object) -> str:
    """A value in a message: as Python writes it, or its type alone where that would be long or of several lines."""
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE and "\n" not in text else type(value).__name__
