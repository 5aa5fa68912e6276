"""Scores rows with judges on a Ray cluster, one an accelerator; rows are read and written here, in order.

Ray Data is not used here (docs/design/running.md says why); for data sets that it reads, see integrations/ray_data.py.
"""

import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gram_fast.commands.jobs import Job, JobRow, Scored, score_job_chunk
from gram_fast.commands.options import ModelOptions
from gram_fast.errors import GramFastError, InputError, ServerError

log = logging.getLogger(__name__)

# Chunks that a judge has: one that it scores, and one that is there when it is done.
_AT_ONCE = 2
# Chunks for each judge that are read and not written: those behind one that takes long.
_AHEAD = 8
# Judges that may end on one chunk, or in one place without having scored any.
_LIVES = 3
# Seconds after which somebody may wonder why nothing happens.
_PATIENCE = 30.0
# Seconds between looks at an input whose next row is not there yet.
_GLANCE = 0.1

Found = list[tuple[Any, int] | GramFastError]


class Judge:
    """A judge in a process of its own."""

    def __init__(self, options: ModelOptions, job: Job) -> None:
        self._options, self._job = options, job
        self._comparer: Any = None
        self._said = _Said()
        logging.root.addHandler(self._said)
        logging.captureWarnings(True)

    def load(self) -> tuple[tuple[int, dict[str, Any]] | GramFastError, list[str]]:
        """Loads the judge -> its tokens at once and what its answers depend on, or an error; and warnings."""
        try:
            self._comparer, recorded = self._options.load_comparer(self._job.strategy.verifies)
        except GramFastError as error:
            return error, self._said.taken()
        return (self._comparer.tokens_at_once, recorded), self._said.taken()

    def score(self, chunk: list[JobRow]) -> tuple[Found, list[str]]:
        """Scores a chunk -> the result or the error of each row, and warnings."""
        return [found for _, found in score_job_chunk(chunk, self._job, self._comparer)], self._said.taken()


class _Said(logging.Handler):
    """Keeps what a judge warns of, for the process that started it: Ray would print it among that one's output."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())

    def taken(self) -> list[str]:
        """The warnings since the last look."""
        messages, self._messages = self._messages, []
        return messages


@dataclass(eq=False)
class _Chunk:
    rows: list[JobRow]
    found: Found | None = None
    ended: int = 0
    """Judges that ended on it."""


@dataclass(eq=False)
class _Place:
    """Where a judge runs; when it ends, another takes its place."""

    actor: Any = None
    ended: int = 0
    """Judges that ended here since the last chunk was scored."""
    running: dict[Any, _Chunk | None] = field(default_factory=dict)
    """By what Ray gives for its result: None for loading."""
    is_loaded: bool = False


class RayJudges:
    """Scores chunks with judges in processes of their own, on any machine of a Ray cluster.

    A judge whose process or machine ends is started anew, where Ray has room for it, and what it had is scored by
    others.
    """

    def __init__(self, make: Callable[[], Any], count: int) -> None:
        """Starts `count` judges, each of which `make` gives, and waits until the first has been loaded."""
        self._make = make
        self._places = [_Place() for _ in range(count)]
        self._again: deque[_Chunk] = deque()
        """Chunks of judges that ended."""
        self._said: set[str] = set()
        """Warnings of judges, each of which is logged once."""
        self.tokens_at_once = 0
        self.recorded: dict[str, Any] = {}
        """What answers depend on."""
        for place in self._places:
            self._start(place)
        self._wait(_PATIENCE)
        if not self.recorded:
            log.warning("waiting for a judge that Ray has room for and has loaded")
        while not self.recorded:
            self._wait(None)

    def close(self) -> None:
        """Ends all judges."""
        import ray

        for place in self._places:
            ray.kill(place.actor)

    def score(self, chunks: Iterator[list[JobRow]], is_waiting: Callable[[], bool]) -> Iterator[Iterable[Scored]]:
        """Yields the rows of each chunk with their results, in order, as a `Scorer`."""
        under_way: deque[_Chunk] = deque()
        has_ended = False
        while True:
            while (place := self._free()) is not None:
                if self._again:
                    chunk = self._again.popleft()
                elif has_ended or len(under_way) >= _AHEAD * len(self._places) or (under_way and is_waiting()):
                    break
                elif (rows := next(chunks, None)) is None:
                    has_ended = True
                    break
                else:
                    under_way.append(chunk := _Chunk(rows))
                place.running[place.actor.score.remote(chunk.rows)] = chunk
            while under_way and under_way[0].found is not None:
                chunk = under_way.popleft()
                yield zip(chunk.rows, chunk.found or (), strict=True)
            if under_way:
                self._wait(_GLANCE if not has_ended and is_waiting() else None)
            elif has_ended:
                return

    def _free(self) -> _Place | None:
        """The place with the fewest chunks that takes another."""
        loaded = [place for place in self._places if place.is_loaded]
        place = min(loaded, key=lambda place: len(place.running), default=None)
        return place if place is not None and len(place.running) < _AT_ONCE else None

    def _start(self, place: _Place) -> None:
        place.actor, place.is_loaded = self._make(), False
        place.running = {place.actor.load.remote(): None}

    def _wait(self, seconds: float | None) -> None:
        """Waits for something to happen at one of the places, for so many seconds if given."""
        import ray

        place_of = {result: place for place in self._places for result in place.running}
        done, _ = ray.wait(list(place_of), timeout=seconds)
        for result in done:
            self._done(place_of[result], result)

    def _done(self, place: _Place, result: Any) -> None:
        import ray

        try:
            found, said = ray.get(result)
        except ray.exceptions.RayTaskError:
            raise  # of a judge that goes on
        except ray.exceptions.RayError as error:
            return self._replace(place, error)
        for message in said:
            if message not in self._said:
                self._said.add(message)
                log.warning("a judge on Ray: %s", message)
        chunk = place.running.pop(result)
        if chunk is not None:
            place.ended, chunk.found = 0, found
        elif isinstance(found, GramFastError):
            raise found
        else:
            self._loaded(place, *found)
        return None

    def _loaded(self, place: _Place, tokens_at_once: int, recorded: dict[str, Any]) -> None:
        self.tokens_at_once, self.recorded = self.tokens_at_once or tokens_at_once, self.recorded or recorded
        for name, value in recorded.items():
            if self.recorded[name] != value:
                raise InputError(
                    f"--ray: expected equal judges, {name} of one is {self.recorded[name]!r}, of another {value!r}"
                )
        place.is_loaded = True

    def _replace(self, place: _Place, error: Exception) -> None:
        """Starts a judge in place of one that ended."""
        import ray

        place.ended += 1
        for chunk in place.running.values():
            if chunk is None:
                continue
            chunk.ended += 1
            if chunk.ended >= _LIVES:
                where = f"{chunk.rows[0].where} to {chunk.rows[-1].where}"
                raise ServerError(f"{where}: {_LIVES} judges on Ray ended on these rows, the last: {_reason(error)}")
            self._again.append(chunk)
        if place.ended >= _LIVES:
            raise ServerError(f"{_LIVES} judges on Ray ended one after the other, the last: {_reason(error)}")
        log.warning("a judge on Ray ended, another is started (%s)", _reason(error))
        ray.kill(place.actor)  # one that cannot be reached would keep its GPU
        self._start(place)


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


@contextmanager
def ray_judges(options: ModelOptions, job: Job, count: int | None) -> Iterator[RayJudges]:
    """Judges for the duration of the context, on the cluster that RAY_ADDRESS names, that runs here, or a new one.

    `count`: how many; None: one for each GPU, or for each machine where there is none or `options` says CPU. Raises
    InputError without Ray, on a cluster that has no GPU where one is wanted, and where a judge cannot be loaded.
    """
    try:
        import ray
    except ImportError:
        raise InputError("--ray needs Ray: pip install gram_fast[ray]") from None
    with _cluster():
        number, needs = _places(options, count, ray.cluster_resources(), sum(node["Alive"] for node in ray.nodes()))
        actor = ray.remote(Judge).options(max_restarts=0, max_concurrency=1, **needs)
        judges = RayJudges(partial(actor.remote, options.for_other_folders(), job), number)
        try:
            yield judges
        finally:
            judges.close()


@contextmanager
def _cluster() -> Iterator[None]:
    """Connects to a cluster for the duration of the context, in which `sys.stdout` is standard error.

    Ray prints on standard output when a process of its ends, whatever it is asked, and results may go there.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that starts here tells nobody of it
    with redirect_stdout(sys.stderr):
        try:
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ServerError(f"--ray: expected a Ray cluster: {_reason(error)}") from None
        try:
            yield
        finally:
            ray.shutdown()


def _places(
    options: ModelOptions, count: int | None, cluster: dict[str, float], machines: int
) -> tuple[int, dict[str, Any]]:
    """How many judges, and what Ray is to reserve for each."""
    gpus, cpus = int(cluster.get("GPU", 0)), int(cluster.get("CPU", 1))
    device = str(options.device)
    if device == "cpu" or (device == "auto" and not gpus):
        number = count or machines
        return number, {"num_cpus": max(1, cpus // number)}
    if not gpus:
        raise InputError(f"--device {device}: expected a Ray cluster with GPUs, this one has none")
    return count or gpus, {"num_gpus": 1}
