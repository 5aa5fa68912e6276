"""What becomes of responses that cannot be judged, in hosts that need a number for each."""

import logging
from collections.abc import Hashable, Sequence
from typing import Any

from gram_fast import InputError, Rendezvous
from gram_fast.integrations.grouped import RowRewards


def filled(rows: RowRewards, instead: Sequence[float], logger: logging.Logger) -> list[float]:
    """Puts the number of `instead` for each reward that is None, with a warning of `warn_of_unjudged`."""
    warn_of_unjudged(rows, logger)
    return [other if value is None else value for value, other in zip(rows.values, instead, strict=True)]


def warn_of_unjudged(rows: RowRewards, logger: logging.Logger) -> None:
    """Logs one warning, where rewards are None, that counts them and has the reason of the first."""
    reasons = [reason for value, reason in zip(rows.values, rows.reasons, strict=True) if value is None]
    if reasons:
        logger.warning("%d of %d responses were not judged: %s", len(reasons), len(rows.values), reasons[0])


async def reward_or_none(
    meeting: Rendezvous,
    key: Hashable,
    prompt: Any,
    response: Any,
    logger: logging.Logger,
    reason: str | None = None,
) -> float | None:
    """Awaits a reward; None, with a warning, for a response that cannot be judged, and where the rendezvous has none.

    `reason`: why there is no response, where that is None, which is met all the same so that its group is full. Raises
    the other errors of `Rendezvous.reward`, such as two prompts under one key.
    """
    try:
        return await meeting.reward_async(key, prompt, response)
    except InputError as error:
        if not error.reasons:
            raise
        logger.warning("a response was not judged: %s", reason or error)
        return None
