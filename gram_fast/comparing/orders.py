"""The orders in which the two responses of a pair are shown to a judge."""

from typing import Literal, get_args

from gram_fast.errors import InputError, shown_value

Orders = Literal["ab", "ba", "both"]
"""Order of a pair (i, j): i in slot A ("ab"), j in slot A ("ba"), or both presentations ("both")."""


def check_orders(orders: str) -> None:
    """Raises InputError when `orders` is not one of Orders."""
    if not isinstance(orders, str) or orders not in get_args(Orders):
        raise InputError(f"there are no orders {shown_value(orders)}: expected one of {', '.join(get_args(Orders))}")


def shown(i: int, j: int, orders: str) -> list[tuple[int, int]]:
    """Lists the presentations (slot A, slot B) of a pair, "ab" before "ba"."""
    return [pair for order, pair in (("ab", (i, j)), ("ba", (j, i))) if orders in (order, "both")]
