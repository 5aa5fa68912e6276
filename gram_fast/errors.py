"""Exceptions of the package. Each message is one sentence that names the cause and what was expected."""


class GramFastError(Exception):
    """Base class of the exceptions that gram_fast raises on purpose."""


class InputError(GramFastError, ValueError):
    """Invalid prompt, response, file or option."""


class UnsupportedModelError(GramFastError):
    """A checkpoint that prefix sharing cannot score exactly, or that lacks something a judge needs."""


class BackendError(GramFastError, RuntimeError):
    """A requested backend or device is not available."""


class NumericalError(GramFastError, ArithmeticError):
    """Numbers that are not finite, or others than they should be."""


def first_line(error: BaseException) -> str:
    """First line of another library's error message, with the error's type where the message is a single word."""
    text = str(error).strip().partition("\n")[0]
    return text if " " in text else f"{type(error).__name__} {text}".strip()
