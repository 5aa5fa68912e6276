"""Whether the Hugging Face hub can be reached, so that a name that is found nowhere is an error at once.

Without a connection huggingface_hub tries again for 23 seconds for each file that is not in its cache.
"""

import time
from functools import lru_cache

from gram_fast.errors import one_line

# Seconds for which an answer holds: loading a judge asks several times.
_HOLDS = 60


def hub_problem() -> str | None:
    """Why the hub cannot be reached, on one line; None where it can."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    return _problem(constants.ENDPOINT, int(time.monotonic() // _HOLDS))


@lru_cache(maxsize=1)
def _problem(endpoint: str, time_slot: int) -> str | None:
    from huggingface_hub import constants, get_session

    try:
        get_session().head(endpoint, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # of whatever carries the request; any answer at all is one of the hub
        return f"{endpoint}: {one_line(error)}"
    return None
