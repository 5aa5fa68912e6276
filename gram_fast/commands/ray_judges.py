"""Scores rows with judges on a Ray cluster, one an accelerator; rows are read and written here, in order.

Ray Data is not used here (docs/design/running.md says why); for data sets that it reads, see integrations/ray_data.py.
"""

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
# Judges that may end on one chunk, or in one place without having scored any: the place is given up then.
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
            self._job.check_judge(self._comparer)
        except GramFastError as error:
            return error, self._said.taken()
        return (self._comparer.tokens_at_once, recorded), self._said.taken()

    def score(self, chunk: list[JobRow]) -> tuple[Found, list[str]]:
        """Scores a chunk -> the result or the error of each row, and warnings."""
        from gram_fast.devices import is_lost

        try:
            return [found for _, found in score_job_chunk(chunk, self._job, self._comparer)], self._said.taken()
        except Exception as error:
            if is_lost(error):
                os._exit(1)  # so that another judge takes its place
            raise


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
    error: ServerError | None = None
    """Why no more judges are tried on it."""


@dataclass(eq=False)
class _Place:
    """Where a judge runs; when it ends, another takes its place."""

    actor: Any = None
    ended: int = 0
    """Judges that ended here since the last chunk was scored."""
    running: dict[Any, _Chunk | None] = field(default_factory=dict)
    """By what Ray gives for its result: None for loading."""
    is_loaded: bool = False

    @property
    def is_given_up(self) -> bool:
        """Whether no more judges are started here."""
        return self.ended >= _LIVES


class RayJudges:
    """Scores chunks with judges in processes of their own, on any machine of a Ray cluster.

    A judge whose process or machine ends is started anew, where Ray has room for it, and what it had is scored by
    others.
    """

    def __init__(self, make: Callable[[], Any], count: int) -> None:
        """Starts `count` judges, each of which `make` gives, and waits until the first has been loaded."""
        self._make, self._began = make, time.monotonic()
        self._has_told = False
        """Whether it was said that judges are waited for."""
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
        while not self.recorded:
            self._wait(_PATIENCE)

    def close(self) -> None:
        """Ends all judges."""
        import ray

        for place in self._places:
            ray.kill(place.actor)

    def score(self, chunks: Iterator[list[JobRow]], is_waiting: Callable[[], bool]) -> Iterator[Iterable[Scored]]:
        """Yields the rows of each chunk with their results, in order, as a `Scorer`."""
        under_way: deque[_Chunk] = deque()
        has_ended, error = False, None
        while True:
            has_to_wait = False
            while (place := self._free()) is not None:
                if self._again:
                    chunk = self._again.popleft()
                elif has_ended or len(under_way) >= _AHEAD * len(self._places):
                    break
                else:
                    has_to_wait = bool(under_way) and is_waiting()
                    if has_to_wait:
                        break
                    try:
                        under_way.append(chunk := _Chunk(next(chunks)))
                    except StopIteration:
                        has_ended = True
                        break
                    except GramFastError as bad:  # what was read before it is scored and written
                        has_ended, error = True, bad
                        break
                place.running[place.actor.score.remote(chunk.rows)] = chunk
            while under_way and (under_way[0].found is not None or under_way[0].error is not None):
                chunk = under_way.popleft()
                if chunk.error is not None:  # what was read before it is written
                    raise chunk.error
                yield zip(chunk.rows, chunk.found or (), strict=True)
            if under_way:
                self._wait(_GLANCE if has_to_wait else _PATIENCE)
            elif error is not None:
                raise error
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

    def _wait(self, seconds: float) -> None:
        """Waits for something to happen at one of the places, for so many seconds at most."""
        import ray

        missing = sum(not place.is_loaded for place in self._places)
        if missing and not self._has_told and time.monotonic() > self._began + _PATIENCE:
            self._has_told = True
            log.warning("%d of %d judges are waited for: Ray has no room, or loads them", missing, len(self._places))
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
        elif not isinstance(found, GramFastError):
            self._loaded(place, *found)
        elif self.recorded:  # others have loaded it: this machine lacks something
            self._replace(place, found)
        else:
            raise found
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
        place.is_loaded = False
        chunks = [chunk for chunk in place.running.values() if chunk is not None]
        for chunk in chunks[:1]:  # the others waited for it
            chunk.ended += 1
            if chunk.ended >= _LIVES:
                where = f"{chunk.rows[0].where} to {chunk.rows[-1].where}"
                chunk.error = ServerError(
                    f"{where}: {_LIVES} judges on Ray ended on these rows, the last: {_reason(error)}"
                )
        self._again.extend(chunk for chunk in chunks if chunk.error is None)
        place.running = {}
        ray.kill(place.actor)  # one that cannot be reached would keep its GPU
        if not place.is_given_up:
            log.warning("a judge on Ray ended, another is started (%s)", _reason(error))
            self._start(place)
        elif all(other.is_given_up for other in self._places):
            raise ServerError(f"{_LIVES} judges on Ray ended one after the other, the last: {_reason(error)}")
        else:
            log.warning("%d judges on Ray ended one after the other, fewer go on (%s)", _LIVES, _reason(error))


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
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        number, needs = find_places(options, count, machines)
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


def find_places(
    options: ModelOptions, count: int | None, machines: Sequence[Mapping[str, float]]
) -> tuple[int, dict[str, Any]]:
    """How many judges, and what Ray is to reserve for each; `machines`: what each has."""
    gpus = int(sum(machine.get("GPU", 0) for machine in machines))
    cores = [int(cpus) for machine in machines if (cpus := machine.get("CPU", 0)) >= 1]  # a head may offer none
    device = str(options.device) if options.loads_model else "cpu"
    if device == "cpu" or (device == "auto" and not gpus):
        number = count or max(1, len(cores))
        # As many cores for each as there are places with.
        fitting = (k for k in range(max(cores, default=1), 1, -1) if sum(cpus // k for cpus in cores) >= number)
        return number, {"num_cpus": next(fitting, 1)}
    if not gpus:
        raise InputError(f"--device {device}: expected a Ray cluster with GPUs, this one has none")
    return count or gpus, {"num_gpus": 1}
