"""Validates arguments of calls with many prompts; errors name the argument ("groups[3]")."""

from collections.abc import Sequence
from typing import Any

from gram_fast.errors import InputError
from gram_fast.text.group import Group
from gram_fast.text.messages import Prompt


def check_list(name: str, values: Any, count: int | None = None, of: str = "groups") -> None:
    """Raises InputError unless `values` is a list, of length `count` if that is given; `of` names what is counted."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InputError(f"{name}: expected a list, got {type(values).__name__}")
    if count is not None and len(values) != count:
        raise InputError(f"{name}: expected one for each of {count} {of}, got {len(values)}")


def read_pair(k: int, prompt: Prompt, pair: Sequence[Prompt], include_reasoning: bool = False) -> Group:
    """Makes the group of pair k of a batch. Raises InputError on anything but two texts."""
    where = f"pairs[{k}]"
    check_list(where, pair)
    if len(pair) != 2:
        raise InputError(f"{where}: expected 2 responses, got {len(pair)}")
    name = (where + "[{}]").format
    return Group.of(prompt, pair, prompt_name=f"prompts[{k}]", name=name, include_reasoning=include_reasoning)


def read_group(
    g: int,
    prompt: Prompt,
    responses: Sequence[Prompt],
    reference: Sequence[Prompt] = (),
    include_reasoning: bool = False,
) -> Group:
    """Makes group g of a batch; `reference`, at most one response, becomes its first candidate.

    Raises InputError on fewer than two responses (one with a reference) and on anything that is not text.
    """
    where = f"groups[{g}]"
    check_list(where, responses)
    least = 1 if reference else 2
    if len(responses) < least:
        raise InputError(f"{where}: expected at least {least} responses, got {len(responses)}")

    def name(index: int) -> str:
        number = index - len(reference)
        return f"references[{g}]" if number < 0 else f"{where}[{number}]"

    return Group.of(
        prompt,
        [*reference, *responses],
        prompt_name=f"prompts[{g}]",
        name=name,
        at_least=1,
        include_reasoning=include_reasoning,
    )
