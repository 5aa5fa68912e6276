"""Digest of texts and settings, by which a later run tells whether they are still the same."""

import hashlib
import json
from typing import Any


def digest(value: Any) -> str:
    """Digest of a JSON value: the first 16 hexadecimal digits of the SHA-256 of its text with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
