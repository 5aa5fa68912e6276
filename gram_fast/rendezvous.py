"""Rendezvous: rewards for loops that ask for one response at a time, which is compared with the others of its group.

Members come from threads and from asyncio tasks. They wait in a Gathering, which knows neither clock nor threads, until
a thread of the rendezvous takes their group out and judges it. The thread runs while somebody waits, and no longer.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Hashable, Sequence
from contextlib import suppress
from typing import Any, Literal, get_args

from gram_fast.errors import InputError, shown_value
from gram_fast.gathering import GatheredGroup, Gathering, Member
from gram_fast.judge import PairwiseJudge
from gram_fast.results import Rewards
from gram_fast.text.arguments import OnError, check_on_error
from gram_fast.text.messages import Prompt

logger = logging.getLogger(__name__)

Partial = Literal["judge", "none"]
"""What those get whose time is over before their group is full: rewards among those who came, or None."""


class Rendezvous:
    """Gives each response of a group its reward when the others of the group have come.

        rendezvous = gram_fast.Rendezvous(judge, size=8, timeout=300)
        reward = rendezvous.reward((step, row), prompt, response)              # in a thread
        reward = await rendezvous.reward_async((step, row), prompt, response)  # in a task

    Threads and tasks of any event loop may meet in one group. Groups that are full at the same time are judged in one
    packed call; those that become full meanwhile, in the next. Of groups that are not full in time the 1st, 2nd, 4th,
    8th and so on make a warning in the log.
    """

    def __init__(
        self,
        judge: PairwiseJudge,
        *,
        size: int,
        timeout: float,
        partial: Partial = "judge",
        on_error: OnError = "raise",
        **settings: Any,
    ) -> None:
        """Makes a place to meet.

        Args:
            judge: scores the groups.
            size: members of a group, two or more.
            timeout: seconds that a group waits for its members from the first one on. Nobody waits longer than that and
                the judging: of the groups that are under way, then of its own.
            partial: what the members of a group get that is not full by then: "judge", the rewards among those who came
                (None for one who is alone), or "none", None each.
            on_error: what a member gets whose response or prompt cannot be judged: "raise", an InputError, or "none",
                None. The others of its group get the rewards that they have without it.
            settings: of `PairwiseJudge.rewards`, such as `strategy`, `orders` and `scores`; no references.

        Raises InputError on an argument that is none of these.
        """
        if not isinstance(judge, PairwiseJudge):
            raise InputError(f"judge: expected a PairwiseJudge, got {type(judge).__name__}")
        if type(size) is not int or size < 2:
            raise InputError(f"size: expected an integer of at least 2, got {shown_value(size)}")
        if not isinstance(timeout, int | float) or not 0 < timeout <= threading.TIMEOUT_MAX:
            raise InputError(f"timeout: expected seconds above 0, got {shown_value(timeout)}")
        if partial not in get_args(Partial):
            raise InputError(f"partial: expected one of {', '.join(get_args(Partial))}, got {shown_value(partial)}")
        check_on_error(on_error)
        if "references" in settings:  # of no groups they would pass
            raise InputError("references: a rendezvous takes none, its groups have prompts and responses")
        judge.rewards([], [], **settings)  # wrong settings are found now
        self.judge, self.size, self.timeout = judge, size, timeout
        self._on_error, self._settings = on_error, settings
        self._least = size if partial == "none" else 2  # members that are judged
        self._is_closed = False
        self._num_partial = 0
        self._start_empty()
        from gram_fast.scoring.forks import in_forked_children  # imports torch, which a judge has loaded by now

        in_forked_children(self._start_empty)  # those who wait, and the thread, are the parent's

    def _start_empty(self) -> None:
        self._changed = threading.Condition()  # guards what follows
        self._gathering = Gathering(self.size, self.timeout)
        self._thread: threading.Thread | None = None

    def reward(self, key: Hashable, prompt: Prompt, response: Prompt) -> float | None:
        """Waits for the others of the group -> the reward of this response, or None where it has none.

        Args:
            key: names the group: a row of a batch or an id, never the prompt's text, which a batch may hold twice. When
                the group is full, the next response with this key opens a new one.
            prompt: the same for all of a group.
            response: a candidate, as for `PairwiseJudge.rewards`.

        None: the response was alone, or (`partial="none"`) its group was not full in time, or (`on_error="none"`) it
        cannot be judged. Whoever is interrupted while waiting leaves the group; a task that is cancelled does so with
        `reward_async`; under `gram_fast.to_thread` this waits on, and the response is judged as one of the group.

        Raises InputError on a key that is not hashable, on another prompt than that of the open group with this key, on
        a response or prompt that cannot be judged (`on_error="raise"`; this error alone has `reasons`), in a thread
        that runs an event loop, which would stand still, and after `close`; and what judging raises, in all members of
        the group.
        """
        with suppress(RuntimeError):  # of a thread without a loop
            asyncio.get_running_loop()
            raise InputError("reward would stop the event loop of this thread: expected `await reward_async(...)`")
        member = self._join(key, prompt, response)
        try:
            return member.reward.result()
        finally:
            member.reward.cancel()  # where the wait was interrupted

    async def reward_async(self, key: Hashable, prompt: Prompt, response: Prompt) -> float | None:
        """Awaits the reward of a response, as `reward` waits for it; a task that is cancelled leaves the group."""
        return await asyncio.wrap_future(self._join(key, prompt, response).reward)

    def close(self) -> None:
        """Ends the time of all open groups, and waits until everybody has an answer; nobody can join any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def __enter__(self) -> "Rendezvous":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def num_open(self) -> int:
        """Groups that wait for members."""
        with self._changed:
            return len(self._gathering.open)

    @property
    def num_waiting(self) -> int:
        """Members that wait for others, or for the judging that is under way to end."""
        with self._changed:
            return self._gathering.num_waiting

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"{self.num_open} open groups, {self.num_waiting} waiting"
        return f"Rendezvous(size={self.size}, timeout={self.timeout}: {state})"

    def _join(self, key: Hashable, prompt: Prompt, response: Prompt) -> Member:
        with self._changed:
            if self._is_closed:
                raise InputError("the rendezvous is closed: expected an open one")
            member = self._gathering.join(key, prompt, response, time.monotonic())
            member.reward.add_done_callback(lambda _: self._leave(member))
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="gram_fast.Rendezvous")
                try:
                    thread.start()
                except BaseException:  # no thread can be had: nobody would answer
                    self._gathering.leave(member)
                    raise
                self._thread = thread
            elif self._gathering.full:
                self._changed.notify()
        return member

    def _leave(self, member: Member) -> None:
        """Takes out a member who gave up; one who has an answer is in no open group any more."""
        if member.reward.cancelled():
            with self._changed:
                self._gathering.leave(member)
                self._changed.notify()

    def _work(self) -> None:
        while groups := self._next_groups():
            for group in groups:
                if len(group.members) < self.size:
                    self._warn_of_partial(group)
            self._answer(groups)

    def _next_groups(self) -> list[GatheredGroup]:
        """Waits for groups to judge; none, and the thread is over, where nobody waits."""
        with self._changed:
            while True:
                now = time.monotonic()
                if groups := self._gathering.take(float("inf") if self._is_closed else now):
                    return groups
                if (closes := self._gathering.next_close) is None:
                    self._thread = None
                    return []
                self._changed.wait(closes - now)

    def _warn_of_partial(self, group: GatheredGroup) -> None:
        self._num_partial += 1
        if self._num_partial.bit_count() == 1:  # a power of two: a loop in which all are late is no flood
            logger.warning(
                "key %s: %d of %d responses had come when the time was over (timeout=%g), and %s; so far groups like "
                "this: %d",
                shown_value(group.key),
                len(group.members),
                self.size,
                self.timeout,
                "have no reward" if len(group.members) < self._least else "are judged without the others",
                self._num_partial,
            )

    def _answer(self, groups: Sequence[GatheredGroup]) -> None:
        """Judges groups in one packed call and answers all their members."""
        judged = [group for group in groups if len(group.members) >= self._least]
        for group in groups:
            if len(group.members) < self._least:
                _give(group, [None] * len(group.members))
        if not judged:
            return
        prompts = [group.prompt for group in judged]
        responses = [[member.response for member in group.members] for group in judged]
        try:
            rewards = self.judge.rewards(prompts, responses, on_error="none", **self._settings)
        except BaseException as error:
            if len(judged) > 1:
                # Whose it is, is found by judging them one by one.
                for group in judged:
                    self._answer([group])
            else:
                _give(judged[0], [error] * len(judged[0].members))
            return
        for g, group in enumerate(judged):
            _give(group, [self._answer_of(rewards, g, k) for k in range(len(group.members))])

    def _answer_of(self, rewards: Rewards, g: int, k: int) -> float | InputError | None:
        for name, own in ((f"groups[{g}][{k}]", "response"), (f"prompts[{g}]", "prompt")):
            if self._on_error == "raise" and name in rewards.errors:
                return InputError.of({own: rewards.errors[name]})
        return rewards[g][k]


def _give(group: GatheredGroup, answers: Sequence[float | BaseException | None]) -> None:
    for member, answer in zip(group.members, answers, strict=True):
        if member.reward.set_running_or_notify_cancel():
            if isinstance(answer, BaseException):
                member.reward.set_exception(answer)
            else:
                member.reward.set_result(answer)
