"""What all clients of servers share: checks of addresses, keys and times, and how long to wait before another try."""

import random
import re

from gram_fast.errors import InputError, shown_value

FIRST_WAIT, LONGEST_WAIT = 0.25, 30.0
"""Seconds before the first try after a failure, at most, twice as many before each further one; and at most ever."""
CONNECT_TIMEOUT = 10.0
"""Seconds to reach a host, at most."""

# An address whose host, with its port, ends before any @: one that stands behind it is of a path or query.
_HOST_ALONE = re.compile(r"https?://(\[[^\]@/?#]*\]|[^:@/?#]*)(:\d*)?([/?#]|$)")


def wait_before_try(failures: int, retry_after: str | None) -> float:
    """Seconds to wait before another try.

    Args:
        failures: tries that have failed before the last one.
        retry_after: what the server said in its header Retry-After, if anything; dates are not understood.
    """
    # Many may have failed together.
    wait: float = min(FIRST_WAIT * 2**failures, LONGEST_WAIT) * random.uniform(0.5, 1.0)
    return max(wait, min(float(retry_after), LONGEST_WAIT)) if retry_after and retry_after.isdecimal() else wait


def check_url(url: str) -> None:
    """Raises InputError on anything but an address of HTTP, and on one with a user or password, not shown."""
    if isinstance(url, str) and "@" in url and not _HOST_ALONE.match(url):
        raise InputError(
            "url: expected http://HOST:PORT without a user or password: a server's key is given as api_key"
        )
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise InputError(f"url: expected http://HOST:PORT or https://HOST:PORT, got {shown_value(url)}")


def check_timeout(timeout: float) -> None:
    """Raises InputError on anything but seconds above 0, a year at most."""
    if not isinstance(timeout, int | float) or not 0 < timeout < 4e7:
        raise InputError(f"timeout: expected seconds above 0, got {shown_value(timeout)}")


def check_retries(retries: int) -> None:
    """Raises InputError on anything but a number of tries after the first."""
    if type(retries) is not int or retries < 0:
        raise InputError(f"retries: expected an integer of at least 0, got {shown_value(retries)}")


def authorization(api_key: str | None) -> dict[str, str]:
    """The header that shows a key, or none. Raises InputError on a key that no header can hold."""
    if api_key is None:
        return {}
    if not (isinstance(api_key, str) and api_key.isascii() and api_key.isprintable()):
        raise InputError("api_key: expected printable ASCII, without a line's end")
    return {"Authorization": f"Bearer {api_key}"}
