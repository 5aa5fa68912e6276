"""Whether the Hugging Face hub can be reached, so that a name that is found nowhere is an error at once.

Without a connection huggingface_hub tries again for 23 seconds for each file that is not in its cache.
"""

import time
from typing import Literal

from gram_fast.errors import one_line

# Seconds for which an answer holds, and a failure, which may be a moment's: loading a judge asks several times.
_ANSWER_HOLDS, _FAILURE_HOLDS = 60, 5

# A file that is asked for first wherever one of the kind is loaded: a mirror may serve no other paths than of files.
_FILE = {"model": "config.json", "dataset": "README.md"}

# By endpoint: the problem, and the time until which it holds.
_known: dict[str, tuple[str | None, float]] = {}


def hub_problem(name: str, kind: Literal["model", "dataset"] = "model") -> str | None:
    """Why the hub cannot be reached, on one line; None where it can, which any answer about `name` says.

    None as well for what cannot be a name on the hub: whoever loads it says so without a connection.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.errors import HFValidationError

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    try:
        url = hf_hub_url(name, _FILE[kind], repo_type=kind)
    except HFValidationError:
        return None
    endpoint = constants.ENDPOINT
    problem, until = _known.get(endpoint, (None, 0.0))
    if time.monotonic() >= until:
        problem = _problem(url)
        _known[endpoint] = problem, time.monotonic() + (_FAILURE_HOLDS if problem else _ANSWER_HOLDS)
    return problem and f"{endpoint}: {problem}"


def _problem(url: str) -> str | None:
    from huggingface_hub import constants, get_session

    try:
        get_session().head(url, timeout=constants.HF_HUB_ETAG_TIMEOUT, follow_redirects=False)
    except Exception as error:  # of whatever carries the request
        return one_line(error)
    return None
