"""Reads the arguments of calls about many prompts: one Group a prompt, errors by the names that the caller knows."""

from collections.abc import Sequence
from typing import Any

from gram_fast.errors import InputError
from gram_fast.text.group import Group
from gram_fast.text.prompts import Prompt


def check_list(name: str, values: Any, count: int | None = None, of: str = "groups") -> None:
    """Raises InputError unless `values` is a list, of one for each of `count` things called `of`."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InputError(f"{name}: expected a list, got {type(values).__name__}")
    if count is not None and len(values) != count:
        raise InputError(f"{name}: expected one for each of {count} {of}, got {len(values)}")


def read_pair(k: int, prompt: Prompt, pair: Sequence[Prompt]) -> Group:
    """Pair k of a batch. Raises InputError on what is not two texts."""
    where = f"pairs[{k}]"
    check_list(where, pair)
    if len(pair) != 2:
        raise InputError(f"{where}: expected 2 responses, got {len(pair)}")
    return Group.of(prompt, pair, prompt_name=f"prompts[{k}]", name=(where + "[{}]").format)


def read_group(g: int, prompt: Prompt, responses: Sequence[Prompt], reference: Sequence[Prompt] = ()) -> Group:
    """Group g of a batch; a reference, one at most, goes before its candidates.

    Raises InputError on fewer than two candidates, or one with a reference, and on what is not text.
    """
    where = f"groups[{g}]"
    check_list(where, responses)
    least = 1 if reference else 2
    if len(responses) < least:
        raise InputError(f"{where}: expected at least {least} responses, got {len(responses)}")

    def name(index: int) -> str:
        number = index - len(reference)
        return f"references[{g}]" if number < 0 else f"{where}[{number}]"

    return Group.of(prompt, [*reference, *responses], prompt_name=f"prompts[{g}]", name=name, at_least=1)
