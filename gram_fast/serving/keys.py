"""API keys: who may ask, checked in constant time."""

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from gram_fast.errors import InputError, one_line


class ApiKeys:
    """The keys that a server takes; none: it takes everybody. Only their digests are kept."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """Raises InputError on a key that is empty, or that a header cannot hold."""
        self._digests = []
        for number, key in enumerate(keys, start=1):
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise InputError(
                    f"API key {number}: expected printable ASCII without spaces, got {len(key)} characters"
                )
            self._digests.append(_digest(key))

    @classmethod
    def read(cls, path: str) -> "ApiKeys":
        """Reads a file with one key a line; empty lines and those that begin with # are no keys.

        Raises InputError on a file that cannot be read, and on one without keys, which would let everybody in.
        """
        try:
            lines = Path(path).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: expected a file of API keys, one a line: {one_line(error)}") from None
        keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not keys:
            raise InputError(f"{path}: expected one API key a line, found none")
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def number_of(self, authorization: str | None) -> int | None:
        """The number of the key in an Authorization header, from 0 on, or None where it is missing or wrong.

        Every key is compared, each in constant time.
        """
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        digest, found = _digest(key.strip()), None
        for number, known in enumerate(self._digests):
            if hmac.compare_digest(digest, known):
                found = number
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
