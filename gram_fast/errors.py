"""Errors that a caller can act on. Each message is one sentence that names the thing and what was expected."""


class GramFastError(Exception):
    """Base of all errors that gram_fast raises on purpose."""


class InputError(GramFastError, ValueError):
    """Prompts, responses, files or options are not what was expected."""


class UnsupportedModelError(GramFastError):
    """The checkpoint cannot be scored exactly by prefix sharing, or lacks something a judge needs."""


class BackendError(GramFastError, RuntimeError):
    """A backend or device was asked for by name and cannot be had."""


class NumericalError(GramFastError, ArithmeticError):
    """The model returned logits that are not finite."""


def first_line(error: BaseException) -> str:
    """What a foreign error says, cut to one line, with its type where that is all but a name."""
    text = str(error).strip().partition("\n")[0]
    return text if " " in text else f"{type(error).__name__} {text}".strip()
