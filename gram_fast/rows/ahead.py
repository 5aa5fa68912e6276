"""Reads ahead in a thread: rows are read and checked while others are scored, and few of them are held in memory."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

# Seconds that closing waits for the thread to see it. One that waits for a pipe does not.
_PATIENCE = 0.2

Item = TypeVar("Item")


class ReadAhead(Generic[Item]):
    """Iterator over items, which a thread reads ahead up to a limit. An error of theirs is raised in their place."""

    def __init__(self, items: Iterable[Item], size_of: Callable[[Item], int], limit: int) -> None:
        """`size_of`: size of an item. `limit`: sizes of the items held, summed, at which reading pauses."""
        self._items, self._size_of, self._limit = items, size_of, limit
        self._held: deque[tuple[Item, int]] = deque()
        self._size = 0
        self._is_closed = False
        self._changed = threading.Condition()  # guards all of these
        self.count = 0
        """Items read so far."""
        self.has_ended = False
        """Whether all items have been read, or an error has ended them."""
        self.error: BaseException | None = None
        """The error that ended the items, known before it is raised in its place."""
        # No process should wait for a pipe that nobody writes to.
        self._thread = threading.Thread(target=self._read, name="gram_fast rows", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for item in self._items:
                size = self._size_of(item)
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed or self._size < self._limit)
                    if self._is_closed:
                        break
                    self._held.append((item, size))
                    self._size += size
                    self.count += 1
                    self._changed.notify_all()
        except BaseException as error:  # __next__ raises it in the caller's thread
            self.error = error
        with self._changed:
            self.has_ended = True
            self._changed.notify_all()

    def settle(self, timeout: float | None) -> None:
        """Waits until all is read or the limit is reached, for `timeout` seconds at most, if given."""
        with self._changed:
            self._changed.wait_for(lambda: self.has_ended or self._size >= self._limit, timeout)

    @property
    def is_waiting(self) -> bool:
        """Whether the next item is not there yet."""
        return not self._held and not self.has_ended

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        with self._changed:
            self._changed.wait_for(lambda: self._held or self.has_ended)
            if self._held:
                item, size = self._held.popleft()
                self._size -= size
                self._changed.notify_all()
                return item
        if self.error is not None:
            raise self.error
        raise StopIteration

    def close(self) -> None:
        """Ends reading; what was read stays. A thread that waits for a pipe ends with the process."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(_PATIENCE)
