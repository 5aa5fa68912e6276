"""Limits of a server: what a request may ask, how many may be open, how long they may take."""

from dataclasses import dataclass, fields

from gram_fast.errors import InputError, shown_value


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a server. Raises InputError on anything but numbers above 0."""

    max_requests: int = 256
    """Requests that are judged or wait for it; who has many is told to come again above (`Places`)."""
    max_waiting: int = 4096
    """Requests that wait for the others of their group, likewise."""
    max_body_bytes: int = 16 * 2**20
    """Bytes of a request's body."""
    max_items: int = 1024
    """Responses of a request, or documents."""
    max_comparisons: int = 100_000
    """Presentations that a request may ask for: pairs times orders."""
    timeout: float = 600.0
    """Seconds that a request may take, waiting included."""
    body_timeout: float = 30.0
    """Seconds within which a request's head and body have come."""

    @property
    def max_open_bytes(self) -> int:
        """Bytes of the bodies of all open requests: 1 GiB by default."""
        return 64 * self.max_body_bytes

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            is_number = type(value) is int or (field.type is float and isinstance(value, float))
            if not is_number or not 0 < value < float("inf"):
                raise InputError(f"{field.name}: expected a number above 0, got {shown_value(value)}")
