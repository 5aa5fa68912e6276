"""Estimates what groups cost before they are tokenized, to share them out and to cut calls."""

from collections.abc import Sequence

from gram_fast.text.group import Group

# Characters of template text after the second response of a presentation, roughly.
_TEMPLATE = 100


def costs(groups: Sequence[Group], num_pairs: Sequence[int]) -> list[int]:
    """Estimates the cost of each group in characters to compute.

    The prompt and, in slot A, every response count once; every pair adds a response of average length and the template
    text after it. Characters, because each replica tokenizes its own share later.
    """
    return [_cost(group, pairs) for group, pairs in zip(groups, num_pairs, strict=True)]


def _cost(group: Group, num_pairs: int) -> int:
    characters = sum(map(len, group.texts))
    return len(group.prompt) + characters + num_pairs * (characters // len(group.texts) + _TEMPLATE)
