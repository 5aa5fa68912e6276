"""Places of requests: so many, of which others find some however many one client takes."""

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from prometheus_client import Gauge

from gram_fast.serving.refusal import RefusedError


def with_spare(most: int) -> int:
    """Places that there are where anybody may take so many: a quarter more, for those who have few."""
    return most + -(-most // 4)


class Places:
    """Places that requests hold.

    One client may take `most` of them. Who has fewer than a sixteenth of that finds some even then, among a quarter
    more: four clients are let in with a sixteenth each, or sixty-four with a few, whoever came first. Nobody is sent
    away who has a place.
    """

    def __init__(self, most: int, what: str, gauge: Gauge) -> None:
        """`what` the requests do, and the gauge that counts them."""
        self._most, self._what, self._gauge = most, what, gauge
        self._held: Counter[Hashable] = Counter()
        self.count = 0
        """Places that are held."""

    @contextmanager
    def taken(self, client: Hashable) -> Iterator[None]:
        """Holds a place for a client within the context. Raises RefusedError where there is none for it."""
        has_few = self._held[client] < -(-self._most // 16)
        if self.count >= (with_spare(self._most) if has_few else self._most):
            raise RefusedError("busy", f"{self.count} requests {self._what}, try again later")
        self.count += 1
        self._held[client] += 1
        try:
            with self._gauge.track_inprogress():
                yield
        finally:
            self.count -= 1
            self._held[client] -= 1
            if not self._held[client]:
                del self._held[client]
