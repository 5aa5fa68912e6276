"""Reads the arguments of calls; errors name the argument ("groups[3]")."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from gram_fast.errors import InputError, shown_value
from gram_fast.text.batch import Batch
from gram_fast.text.group import Group, Names
from gram_fast.text.lists import as_list
from gram_fast.text.messages import Prompt

OnError = Literal["raise", "none"]
"""What becomes of prompts and responses that cannot be judged: an error that names all of them, or no result and a
reason for each of them, while the others are judged."""


def read_responses(
    prompt: Prompt, responses: Sequence[Prompt], on_error: OnError, include_reasoning: bool = False
) -> Batch:
    """Makes the batch of one group. Raises InputError on what is no list and, unless `on_error` is "none", no text."""
    check_on_error(on_error)
    errors: dict[str, str] = {}
    group = Group.read(prompt, responses, errors, include_reasoning=include_reasoning)
    return _batch([group], [len(responses)], errors, on_error)


def read_groups(
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Prompt]],
    references: Sequence[Prompt] | None,
    on_error: OnError,
    include_reasoning: bool = False,
) -> Batch:
    """Makes the batch of many groups; a reference becomes the first candidate of its group.

    Raises InputError on what is no list and on lists of different lengths; and unless `on_error` is "none" on fewer
    than two responses (one with a reference) and on what is no text.
    """
    check_on_error(on_error)
    groups = _list("groups", groups)
    prompts = _list("prompts", prompts, len(groups))
    of_groups = (
        [()] * len(groups) if references is None else [(r,) for r in _list("references", references, len(groups))]
    )
    errors: dict[str, str] = {}
    read = [
        Group.read(
            prompt,
            responses,
            errors,
            _names_of_group(g),
            reference=reference,
            at_least=2 - len(reference),
            include_reasoning=include_reasoning,
        )
        for g, (prompt, responses, reference) in enumerate(zip(prompts, groups, of_groups, strict=True))
    ]
    return _batch(read, [len(group) for group in groups], errors, on_error)


def read_pairs(
    prompts: Sequence[Prompt], pairs: Sequence[Sequence[Prompt]], on_error: OnError, include_reasoning: bool = False
) -> Batch:
    """Makes the batch of many pairs.

    Raises InputError on what is no list and on lists of different lengths; and unless `on_error` is "none" on pairs
    of other than two texts.
    """
    check_on_error(on_error)
    pairs = _list("pairs", pairs)
    prompts = _list("prompts", prompts, len(pairs), "pairs")
    errors: dict[str, str] = {}
    read: list[Group | None] = []
    for k, (prompt, pair) in enumerate(zip(prompts, pairs, strict=True)):
        where = f"pairs[{k}]"
        texts = as_list(pair)
        if texts is None or len(texts) != 2:
            got = f"{type(pair).__name__}" if texts is None else f"a list of {len(texts)}"
            errors[where] = f"expected a list of 2 responses, got {got}"
            read.append(None)
        else:
            names = Names(f"prompts[{k}]", where, (where + "[{}]").format)
            read.append(Group.read(prompt, texts, errors, names, include_reasoning=include_reasoning))
    return _batch(read, [2] * len(pairs), errors, on_error)


def check_on_error(on_error: str) -> None:
    """Raises InputError on anything but the values of OnError."""
    if not isinstance(on_error, str) or on_error not in get_args(OnError):
        raise InputError(f"on_error: expected one of {', '.join(get_args(OnError))}, got {shown_value(on_error)}")


def _list(name: str, values: Any, count: int | None = None, of: str = "groups") -> list[Any]:
    """The elements of a list, of length `count` if that is given; `of` names what is counted."""
    listed = as_list(values)
    if listed is None:
        raise InputError(f"{name}: expected a list, got {type(values).__name__}")
    if count is not None and len(listed) != count:
        raise InputError(f"{name}: expected one for each of {count} {of}, got {len(listed)}")
    return listed


def _names_of_group(g: int) -> Names:
    def candidate(number: int) -> str:
        return f"references[{g}]" if number < 0 else f"groups[{g}][{number}]"

    return Names(f"prompts[{g}]", f"groups[{g}]", candidate)


def _batch(read: Sequence[Group | None], sizes: Sequence[int], errors: dict[str, str], on_error: OnError) -> Batch:
    if errors and on_error == "raise":
        raise InputError.of(errors)
    return Batch.of(read, sizes, errors)
