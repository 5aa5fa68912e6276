"""Settings of a reward function: arguments of `PairwiseJudge.rewards` that it passes on."""

import inspect
from collections.abc import Mapping
from typing import Any

from gram_fast import InputError, PairwiseJudge

_NOT_SETTINGS = {"self", "prompts", "groups", "references", "on_error"}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises InputError on a name that is no such argument, when a reward function is made: hosts hide later errors."""
    known = sorted(set(inspect.signature(PairwiseJudge.rewards).parameters) - _NOT_SETTINGS)
    for name in settings:
        if name not in known:
            raise InputError(f"{name}: expected an argument of PairwiseJudge.rewards ({', '.join(known)})")
