"""Settings of a reward function: arguments of `PairwiseJudge.rewards` that it passes on."""

import inspect
from collections.abc import Mapping
from typing import Any

from gram_fast import InputError, PairwiseJudge
from gram_fast.comparing.modes import check_mode
from gram_fast.comparing.orders import check_orders
from gram_fast.ranking.play import check_seed
from gram_fast.ranking.rewards import RewardRule, find_rule

_NOT_SETTINGS = {"self", "prompts", "groups", "references", "on_error"}


def check_settings(settings: Mapping[str, Any], *, has_references: bool) -> RewardRule:
    """Checks the settings when a reward function is made: the first step may come hours later, in a host that hides it.

    Returns the rule that they choose. Raises InputError on a name that is no such argument, and like
    `PairwiseJudge.rewards` on a value.
    """
    arguments = inspect.signature(PairwiseJudge.rewards).parameters
    known = {name: argument.default for name, argument in arguments.items() if name not in _NOT_SETTINGS}
    for name in settings:
        if name not in known:
            raise InputError(f"{name}: expected an argument of PairwiseJudge.rewards ({', '.join(sorted(known))})")
    given = {**known, **settings}
    check_orders(given["orders"])
    check_mode(given["mode"])
    check_seed(given["seed"])
    return find_rule(given["strategy"], given["scores"], given["k"], given["duplicates"], has_references)
