"""Batches: the groups of a call that are judged, and the reasons of what is not."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gram_fast.results import Flagged
from gram_fast.text.group import Group

Result = TypeVar("Result")


@dataclass(frozen=True)
class Batch:
    """Groups of a call that are judged, each of two candidates or more, and their places among those given."""

    groups: list[Group]
    places: list[int]
    sizes: list[int]
    """Number of candidates in each group that was given."""
    errors: Mapping[str, str]
    """What is not judged: the reason by name of the candidate, the prompt, the reference or the group."""

    @classmethod
    def of(cls, groups: Sequence[Group | None], sizes: Sequence[int], errors: Mapping[str, str]) -> "Batch":
        """Makes a batch of groups that were read, None for those that could not be; `errors` has the reasons.

        Groups with fewer than two candidates, their reference included, are left out with a reason.
        """
        found = [(g, group) for g, group in enumerate(groups) if group]
        large = [(g, group) for g, group in found if len(group.numbers) > 1]
        few = {group.name: _too_few(group) for _, group in found if len(group.numbers) < 2}
        return cls([group for _, group in large], [g for g, _ in large], list(sizes), {**errors, **few})

    def without(self, reasons: Mapping[str, str]) -> "Batch":
        """Leaves out the prompts and candidates that are named, and the groups that this leaves too small."""
        groups: list[Group | None] = [None] * len(self.sizes)
        for g, group in zip(self.places, self.groups, strict=True):
            groups[g] = group.without(reasons)
        return Batch.of(groups, self.sizes, {**self.errors, **reasons})

    def restored(self, results: Iterable[Result], instead: Callable[[int], Result]) -> list[Result]:
        """Results of the groups that are judged -> of all that were given; `instead`: size -> that of another group."""
        found = [instead(size) for size in self.sizes]
        for g, result in zip(self.places, results, strict=True):
            found[g] = result
        return found

    def flags(self, flags_of: Callable[[str], tuple[str, ...]]) -> Flagged:
        """Flags of the prompts and candidates that are judged, by name."""
        return {name: flags for group in self.groups for name, flags in group.flags(flags_of).items()}


def _too_few(group: Group) -> str:
    least, found = (1, 0) if -1 in group.numbers else (2, len(group.numbers))
    return f"expected at least {least} responses that can be judged, found {found}"
