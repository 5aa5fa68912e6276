"""Turns: several threads use what works for one at a time; those who wait at the same time have a turn together."""

import threading
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from gram_fast.scoring.clients import client_of_call

Asker = TypeVar("Asker")

# Seconds after which who waits looks again who has left: an interruption may have met a call that was just leaving.
_LOOK_AGAIN = 1.0


class RunApartError(Exception):
    """What `run` raises that can only answer the askers of a turn one by one."""


@dataclass(eq=False)
class _Place(Generic[Asker]):
    """An asker's place, in line or in a turn, for as long as its call is open."""

    asker: Asker
    changed: threading.Condition
    """Says that it is answered, or is to run."""
    client: Hashable
    """For whom the call is made."""
    is_open: threading.Lock = field(default_factory=threading.Lock)
    """Locked while the call is open: a `with` gives it back whatever interrupts the call."""


class Turns(Generic[Asker]):
    """Runs what is asked, for all of a turn together, in the thread of one of them.

    A turn begins with all who wait by then, in the order in which they came, as many as fit. It runs when each of them
    has asked or left, again and again until all have left; who comes meanwhile waits for the next. No thread is
    started: a lone asker runs what it asks itself, at once.

    Where turns give way, a turn also ends after a run, and between two rounds of one of it, while somebody waits who
    comes first: whose client has had the least time so far. Each client that goes on asking has about as much as any
    other, however much one asks and however many come and go. While one of the turn comes first it waits for the rest
    of it, with which it shares passes: of 26 seconds of six tournaments beside six pairs, not a millisecond.

    An interruption may end a call at any line, also of this file. What it leaves behind is found by whoever looks next,
    since its place is not open any more; what it has run but not told is run again, which must do no harm.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Asker]], Collection[Asker]],
        end: Callable[[], None],
        fits: Callable[[Sequence[Asker]], bool],
        is_stopped: Callable[[Asker], bool],
        gives_way: Callable[[], bool] = lambda: False,
    ) -> None:
        """Takes what is done in a turn, and how askers behave.

        `run` answers askers of a turn and returns those that it is to run again, `end` ends a turn, `fits` says whether
        two or more may have one together, `is_stopped` whether nobody wants an asker's answer any more, and `gives_way`
        whether a turn ends after a run while others wait.
        """
        self._run, self._end, self._fits, self._is_stopped, self._gives_way = run, end, fits, is_stopped, gives_way
        self._lock = threading.Lock()
        self._open: list[_Place[Asker]] = []
        self._asked: dict[_Place[Asker], None] = {}  # who waits for an answer, in order
        self._members: list[_Place[Asker]] = []  # of the turn; none between turns
        self._has_begun = False  # whether the turn is to be ended
        self._runner: _Place[Asker] | None = None  # in whose thread `run` runs
        self._is_apart = False  # whether `run` failed for all of this turn together
        self._unexplained: tuple[_Place[Asker], Exception] | None = (
            None  # the error of that, and in whose thread it was
        )
        self._had: dict[Hashable, float] = {}  # seconds that the clients of open calls have had
        self._run_began = 0.0
        self._share = 0.0  # seconds that a client would have had that was always here

    @property
    def is_to_give_way(self) -> bool:
        """Whether the turn is to end after its run; `run` reads it to run no longer than it has to."""
        with self._lock:
            return self._is_to_give_way()

    @contextmanager
    def place(self, asker: Asker) -> Iterator[Callable[[], None]]:
        """Opens a call of an asker -> what it calls to ask, any number of times; the end of the context leaves.

        It returns when `run` has answered the asker, in this thread or in another's, or when the asker is stopped and
        has no turn yet. An error of `run` for several is raised by those who have it when they are run one by one; one
        that nobody has then is of the thread in which it came, such as the error of an alarm's handler. An interruption
        is raised in the thread that it meets, and the others are run again.
        """
        place = _Place(asker, threading.Condition(self._lock), client_of_call())
        try:
            with place.is_open:
                with self._lock:
                    self._open.append(place)
                    # A newcomer stands level: it owes nobody, and nobody owes it. The least of those who are here would
                    # not do: one that waits keeps it low, and would be passed by newcomers for ever.
                    self._had.setdefault(place.client, self._share)
                yield lambda: self._ask(place)
        finally:
            with self._lock:
                self._clear_up()
                self._wake_next()

    def _ask(self, place: _Place[Asker]) -> None:
        with self._lock:
            self._asked[place] = None
            self._wake_next()
        while together := self._wait(place):
            self._run_for(place, together)
        if self._unexplained is not None and self._unexplained[0] is place:
            error, self._unexplained = self._unexplained[1], None
            raise error

    def _wait(self, place: _Place[Asker]) -> list[_Place[Asker]]:
        """Waits until the asker is to run -> for whom, or until it has been answered -> nobody."""
        with self._lock:
            while place in self._asked:
                self._clear_up()
                if self._runner is None and self._members and self._is_to_give_way():
                    self._give_way()  # one of the turn is between two of its rounds
                    self._wake_next()
                if place not in self._members and self._is_stopped(place.asker):
                    del self._asked[place]
                    self._wake_next()
                    break
                if self._next() is place:
                    self._runner = place
                    return self._together(place)
                place.changed.wait(_LOOK_AGAIN)
            return []

    def _clear_up(self) -> None:
        """Lets go of those who have left; the last of a turn ends it."""
        if all(place.is_open.locked() for place in self._open):
            return
        self._asked = {place: None for place in self._asked if place.is_open.locked()}
        self._members = [place for place in self._members if place.is_open.locked()]
        if self._runner is not None and not self._runner.is_open.locked():
            self._runner = None
        if self._has_begun and not self._members:
            self._end()
            self._has_begun = False
        clients = {place.client for place in self._open if place.is_open.locked()}
        self._had = {client: seconds for client, seconds in self._had.items() if client in clients}
        self._open = [place for place in self._open if place.is_open.locked()]  # at last: now all is done

    def _next(self) -> _Place[Asker] | None:
        """Who is to run next; nobody while somebody runs, or while one of the turn has not asked."""
        if self._runner is not None:
            return None
        if not self._members:
            return next(iter(self._line()), None)
        if not self._is_apart and not all(member in self._asked for member in self._members):
            return None
        return next((place for place in self._asked if place in self._members), None)

    def _together(self, place: _Place[Asker]) -> list[_Place[Asker]]:
        """For whom an asker runs; between turns, begins one with those who wait."""
        if not self._members:
            self._has_begun, self._is_apart, self._unexplained = True, False, None
            for other in self._line():
                if not self._members or self._fits([member.asker for member in (*self._members, other)]):
                    self._members.append(other)
        return [place] if self._is_apart else list(self._members)

    def _line(self) -> list[_Place[Asker]]:
        """Those who wait: whose clients have had least first, then in the order in which they came."""
        return sorted(self._asked, key=self._seconds_of)

    def _seconds_of(self, place: _Place[Asker]) -> float:
        """Seconds that the client of a place has had, in the run that is under way too."""
        now = 0.0 if self._runner is None or place not in self._members else time.monotonic() - self._run_began
        return self._had.get(place.client, 0.0) + now / max(1, len(self._members))

    def _is_to_give_way(self) -> bool:
        """Whether somebody waits who comes before all of the turn."""
        first = next(iter(self._line()), None) if self._gives_way() and not self._is_apart else None
        return first is not None and first not in self._members

    def _give_way(self) -> None:
        """Ends the turn; those who are not done wait behind all others."""
        members, self._members = self._members, []
        self._end()
        self._has_begun = False
        # At once: an interruption must not leave one out.
        self._asked = dict.fromkeys(sorted(self._asked, key=lambda place: place in members))

    def _run_for(self, place: _Place[Asker], together: list[_Place[Asker]]) -> None:
        is_answered = False
        not_done: Collection[Asker] = ()
        self._run_began = time.monotonic()
        try:
            not_done = self._run([place.asker for place in together])
            is_answered = True
        except Exception as error:
            # Whose it is, is found by running them one by one.
            self._unexplained = None if len(together) == 1 or isinstance(error, RunApartError) else (place, error)
            if len(together) == 1:
                raise
            self._is_apart = True
        finally:
            with self._lock:
                self._runner = None
                seconds = time.monotonic() - self._run_began
                for member in together:
                    self._had[member.client] = self._had.get(member.client, 0.0) + seconds / len(together)
                self._share += seconds / max(1, len(self._had))
                for member in together if is_answered or len(together) == 1 else ():
                    if not any(asker is member.asker for asker in not_done):
                        self._asked.pop(member, None)
                        member.changed.notify()
                if is_answered and self._is_to_give_way():
                    self._give_way()
                if self._unexplained is not None and self._unexplained[0] is place and place in self._asked:
                    self._asked[place] = self._asked.pop(place)  # the last to be run, when others have had their own
                self._wake_next()

    def _wake_next(self) -> None:
        if (place := self._next()) is not None:
            place.changed.notify()
