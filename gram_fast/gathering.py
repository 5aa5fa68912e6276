"""Groups whose members come one at a time; they know neither clock nor threads, which a Rendezvous brings."""

from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field

from gram_fast.errors import InputError, shown_value
from gram_fast.text.messages import Prompt, is_same


@dataclass(eq=False)
class Member:
    """One response, and its place among those that wait for each other."""

    group: "GatheredGroup"
    response: Prompt
    reward: "Future[float | None]" = field(default_factory=Future)


@dataclass(eq=False)
class GatheredGroup:
    """Responses to one prompt that came under one key."""

    key: Hashable
    prompt: Prompt
    closes: float
    """Time at which it is judged, full or not."""
    members: list[Member] = field(default_factory=list)


class Gathering:
    """Groups whose members are coming. The caller tells the time, in seconds."""

    def __init__(self, size: int, timeout: float) -> None:
        """`size`: members of a full group. `timeout`: seconds that a group waits from its first member on."""
        self.size, self.timeout = size, timeout
        self.open: dict[Hashable, GatheredGroup] = {}
        """Groups that are not full by their key, the first to close in front."""
        self.full: list[GatheredGroup] = []
        """Groups that wait to be taken."""

    def join(self, key: Hashable, prompt: Prompt, response: Prompt, now: float) -> Member:
        """Adds a response to the open group of its key, or opens one.

        Raises InputError where the open group has another prompt, and on a key that is not hashable.
        """
        try:
            group = self.open.get(key)
        except TypeError:
            raise InputError(f"key: expected something hashable, got {type(key).__name__}") from None
        if group is None:
            group = self.open[key] = GatheredGroup(key, prompt, now + self.timeout)
        elif not is_same(prompt, group.prompt):
            raise InputError(
                f"key {shown_value(key)}: expected the prompt of the {len(group.members)} that wait under it, got "
                "another prompt; every group needs a key of its own"
            )
        member = Member(group, response)
        group.members.append(member)
        if len(group.members) == self.size:
            self.full.append(self.open.pop(key))
        return member

    def leave(self, member: Member) -> None:
        """Takes a member out of its group, so that another can have its place; of a full group it stays one."""
        group = member.group
        if self.open.get(group.key) is group:
            group.members.remove(member)
            if not group.members:
                del self.open[group.key]

    def take(self, now: float) -> list[GatheredGroup]:
        """Takes out the groups that are full, and those whose time is over."""
        over = [group for group in self.open.values() if group.closes <= now]
        for group in over:
            del self.open[group.key]
        taken, self.full = [*self.full, *over], []
        return taken

    @property
    def next_close(self) -> float | None:
        """Time at which an open group closes; None where there is none."""
        return next((group.closes for group in self.open.values()), None)

    @property
    def num_waiting(self) -> int:
        """Members whose groups are not taken yet."""
        return sum(len(group.members) for group in (*self.full, *self.open.values()))
