"""A judge at work for requests: whom it takes, how many at once, and what ends a call early."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from gram_fast import PairwiseJudge, to_thread
from gram_fast.errors import GramFastError, InputError, shown_value
from gram_fast.ranking.tournament import find_strategy
from gram_fast.scoring.clients import as_client
from gram_fast.serving.bodies import Bodies
from gram_fast.serving.keys import ApiKeys
from gram_fast.serving.limits import Limits
from gram_fast.serving.metrics import CountedComparer, Metrics
from gram_fast.serving.places import Places
from gram_fast.serving.refusal import ClientGoneError, RefusedError

logger = logging.getLogger(__name__)

R = TypeVar("R")
# Candidates whose pairs are counted in a thread: those of a tournament are found by playing it.
_MANY = 64


class Service:
    """One judge, which requests share."""

    def __init__(self, judge: PairwiseJudge, model: str, limits: Limits, keys: ApiKeys, replicas: int = 1) -> None:
        """`model`: the name under which clients know it; `replicas`: as of `make_app`."""
        self.model, self.limits, self.keys, self.replicas = model, limits, keys, replicas
        self.metrics, self.bodies = Metrics(), Bodies(limits)
        self._comparer = judge.comparer
        counted: Any = CountedComparer(judge.comparer, self.metrics)
        self.judge = PairwiseJudge(counted, include_reasoning=judge.include_reasoning)
        self.open = Places(limits.max_requests, "are open", self.metrics.open)
        self.waiting = Places(limits.max_waiting, "wait for their groups", self.metrics.waiting)
        self.is_closing = False
        self.is_broken = False
        """Whether its GPU computes nothing more in this process."""

    def client_of(self, request: Request) -> Hashable:
        """For whom a request is: the key that it has, else the address that it comes from.

        Raises RefusedError where there are keys and it has none of them.
        """
        if self.keys:
            number = self.keys.number_of(request.headers.get("authorization"))
            if number is None:
                raise RefusedError("key", "expected a valid API key in the header Authorization: Bearer KEY")
            return ("key", number)
        return ("address", request.client.host if request.client else None)

    def space_of(self, request: Request) -> Hashable:
        """Within what keys of groups have a meaning: those of one API key or, without keys, all."""
        return self.client_of(request) if self.keys else None

    def judge_for(self, client: Hashable) -> PairwiseJudge:
        """The judge, whose calls are those of a client wherever they are made."""
        comparer: Any = CountedComparer(self._comparer, self.metrics, client)
        return PairwiseJudge(comparer, include_reasoning=self.judge.include_reasoning)

    def check_model(self, name: str | None) -> None:
        """Raises RefusedError on the name of another model; none is any."""
        if name and name != self.model:
            raise RefusedError("model", f"there is no model {name[:80]!r} here, expected {self.model!r}", "model")

    def check_items(self, count: int, name: str) -> None:
        """Raises RefusedError on more responses than a request may have; `name` is their field."""
        if count > self.limits.max_items:
            raise RefusedError("field", f"{name}: expected at most {self.limits.max_items} in all, got {count}", name)

    def check_comparisons(self, count: int) -> None:
        """Raises RefusedError on more comparisons than a request may ask for."""
        if count > self.limits.max_comparisons:
            raise RefusedError(
                "field",
                f"expected at most {self.limits.max_comparisons} comparisons, got {count}; other strategies need fewer",
                "strategy",
            )

    async def check_work(
        self, sizes: Sequence[int], name: str, strategy: str, k: int | None, orders: str, rejudge: int | None = None
    ) -> None:
        """Raises RefusedError on groups of more responses or comparisons than a request may have.

        `sizes`: responses of each group; `name`: their field. `knockouts` plays `k` brackets, however few pairs are
        left that are new. `rejudge`: candidates that are compared again, all with each other. Raises InputError on a
        strategy that is none.
        """
        self.check_items(sum(max(size, 1) for size in sizes), name)  # groups of nothing are some work, too
        if k is not None and k > self.limits.max_items:
            raise RefusedError("field", f"k: expected at most {self.limits.max_items}, got {shown_value(k)}", "k")
        found, num_orders = find_strategy(strategy, k), 2 if orders == "both" else 1
        if strategy == "knockouts" and k is not None:
            self.check_comparisons(sum(k * (size - 1) for size in sizes) * num_orders)

        def again(size: int) -> int:
            best = min(size, rejudge or 0)
            return best * (best - 1) // 2

        def count(sizes: Sequence[int]) -> int:
            pairs = {size: found.num_pairs(size) + again(size) for size in set(sizes) if size > 1}
            return sum(pairs.get(size, 0) for size in sizes)

        is_large = max(sizes, default=0) > _MANY
        self.check_comparisons((await to_thread(count, sizes) if is_large else count(sizes)) * num_orders)

    async def judged(self, request: Request, call: Callable[[], R], timeout: float | None = None) -> R:
        """Runs a call of the judge in a thread, for the client of a request.

        `timeout`: seconds, where the request has fewer than the server's. Raises RefusedError where too many requests
        are open, when the time is over, and where the judge fails; ClientGoneError when the client has gone. The call
        then ends before its next pass.
        """
        client, most = self.client_of(request), self.limits.timeout
        with self.open.taken(client), as_client(client):
            return await self.unless_gone(request, to_thread(call), min(timeout or most, most))

    async def unless_gone(self, request: Request, work: Coroutine[Any, Any, R], seconds: float) -> R:
        """Awaits work for as long as the client waits, and for so many seconds. Raises as `judged`."""
        working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({working, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if gone.done():
                raise ClientGoneError
            raise RefusedError("late", f"the answer was not there within {seconds:g} seconds")
        except InputError:
            raise
        except GramFastError as error:
            logger.error("the judge failed: %s", error)
            raise RefusedError("failed", "the judge failed on this request") from error
        except Exception as error:
            from gram_fast.devices import is_lost

            self.is_broken = self.is_broken or is_lost(error)
            raise
        finally:
            for task in (working, gone):
                task.cancel()


async def _gone(request: Request) -> None:
    """Waits until the client closes its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


Answer = Callable[[Service, Request, Any], Awaitable[Any]]
"""Answers a request: what it asks, read and checked -> the JSON of the response."""
