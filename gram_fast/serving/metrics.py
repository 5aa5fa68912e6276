"""Metrics of a server, for Prometheus."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gram_fast.comparing.comparer import Comparer, Session
from gram_fast.comparing.modes import Mode, in_mode
from gram_fast.comparing.orders import Orders
from gram_fast.results import ForwardStats, Stats
from gram_fast.scoring.clients import as_client
from gram_fast.text.group import Group

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "gram_fast_requests", "Requests that were answered or refused", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "gram_fast_request_seconds",
            "Seconds from a request to its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.open = Gauge("gram_fast_requests_open", "Requests that are judged or wait for it", registry=self.registry)
        self.waiting = Gauge(
            "gram_fast_requests_waiting", "Requests that wait for the others of their group", registry=self.registry
        )
        self.calls = Gauge(
            "gram_fast_calls", "Calls of the judge under way, those of whole groups too", registry=self.registry
        )
        self.gone = Counter(
            "gram_fast_requests_gone", "Requests whose client went away before the answer", registry=self.registry
        )
        self.comparisons = Counter("gram_fast_comparisons", "Presentations that were judged", registry=self.registry)
        self.tokens = Counter(
            "gram_fast_tokens",
            "Tokens of presentations: unshared, of all; distinct, each prefix of a turn once; computed, by the model; "
            "cached, distinct ones that were read from the cache",
            ["kind"],
            registry=self.registry,
        )

    @property
    def num_calls(self) -> float:
        """Calls of the judge that are under way."""
        return self.registry.get_sample_value("gram_fast_calls") or 0.0

    def count(self, stats: Stats) -> None:
        """Counts what a call cost."""
        self.comparisons.inc(stats.comparisons)
        if isinstance(stats, ForwardStats):
            self.tokens.labels("unshared").inc(stats.tokens_unshared)
            self.tokens.labels("distinct").inc(stats.tokens_tree)
            self.tokens.labels("computed").inc(stats.tokens_computed)
            self.tokens.labels("cached").inc(max(0, stats.tokens_tree - stats.tokens_computed))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class CountedComparer:
    """A comparer whose calls are counted, those that fail or are given up too."""

    def __init__(self, comparer: Comparer, metrics: Metrics, client: Hashable = None) -> None:
        """`client`: whose calls they are; None: whose context says so."""
        self._comparer, self._metrics, self._client = comparer, metrics, client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comparer, name)

    def __repr__(self) -> str:
        return repr(self._comparer)

    def in_mode(self, mode: Mode) -> "CountedComparer":
        """The comparer in another mode, whose calls are counted, too."""
        return CountedComparer(in_mode(self._comparer, mode), self._metrics, self._client)

    @contextmanager
    def open(
        self, groups: Sequence[Group], orders: Orders, *, num_pairs: Sequence[int], has_one_round: bool
    ) -> Iterator[Session]:
        """Opens a call of the comparer."""
        with (
            self._metrics.calls.track_inprogress(),
            nullcontext() if self._client is None else as_client(self._client),
            self._comparer.open(groups, orders, num_pairs=num_pairs, has_one_round=has_one_round) as session,
        ):
            try:
                yield session
            finally:
                self._metrics.count(session.stats)
