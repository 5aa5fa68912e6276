"""What a response gets that could not be judged, in hosts that need a number for each."""

import logging
from collections.abc import Sequence

from gram_fast.integrations.grouped import RowRewards


def filled(rows: RowRewards, instead: Sequence[float], logger: logging.Logger) -> list[float]:
    """Puts the number of `instead` for each reward that is None, with one warning that counts them and has a reason."""
    reasons = [reason for value, reason in zip(rows.values, rows.reasons, strict=True) if value is None]
    if reasons:
        logger.warning("%d of %d responses were not judged: %s", len(reasons), len(rows.values), reasons[0])
    return [other if value is None else value for value, other in zip(rows.values, instead, strict=True)]
