"""Rewards of groups whose members come one request at a time."""

import asyncio
import hashlib
import json
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from gram_fast import InputError, Rendezvous
from gram_fast.comparing.modes import Mode
from gram_fast.comparing.orders import Orders
from gram_fast.integrations import nemo_gym
from gram_fast.ranking.rewards import Duplicates, RewardsName
from gram_fast.ranking.tournament import StrategyName
from gram_fast.rendezvous import Partial
from gram_fast.serving.endpoint import Form, add_endpoint
from gram_fast.serving.native import Text
from gram_fast.serving.refusal import FASTAPI, OPENAI, RefusedError
from gram_fast.serving.service import Service

# Kinds of groups (size, timeout, settings) that may be open at once: each has a thread while somebody waits.
_MOST_KINDS = 64
# Seconds for which a reward is known to a member that asks again.
_REMEMBERED = 120.0
# What NeMo-Gym gives a response that is not compared with another.
_UNCOMPARED = 3.0


class RewardAsked(BaseModel):
    """A response, which waits for the others of its group."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    key: str | int = Field(description="Names the group among those of this API key: a row of a batch, or an id.")
    member: str | int | None = Field(None, description="Names the member, which may then ask again and has its place.")
    size: int = Field(ge=2, description="Members of the group.")
    prompt: Text
    response: Text
    timeout: float | None = Field(None, gt=0, description="Seconds that the group waits from its first member on.")
    partial: Partial = Field("judge", description="What those have who came, where others are missing by then.")
    strategy: StrategyName | None = None
    orders: Orders = "both"
    mode: Mode = "full"
    scores: RewardsName = "auto"
    seed: int = Field(0, ge=0)
    k: int | None = Field(None, ge=1)
    duplicates: Duplicates = "merged"


class SessionAsked(BaseModel):
    """What begins a rollout of NeMo-Gym; all of it is ignored."""

    model_config = ConfigDict(extra="ignore")


class RolloutAsked(BaseModel):
    """A response of NeMo-Gym, whose reward is made among those to its prompt. Other fields are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    responses_create_params: dict[str, Any]
    response: dict[str, Any]
    principle: str | None = None
    prompt_id: str | int | None = None
    task_index: Annotated[int | None, Field(alias="_ng_task_index")] = None
    rollout_index: Annotated[int | None, Field(alias="_ng_rollout_index")] = None


_Kind = tuple[int, float, Partial, dict[str, Any]]
"""Size, timeout, what a partial group gets, and settings of a group."""


@dataclass
class _Meeting:
    """Where groups of one kind meet, and how many requests are there."""

    rendezvous: Rendezvous
    users: int = 0


@dataclass(eq=False)
class _Seat:
    """The place of one member in its group, which it finds again when it asks once more."""

    reward: "asyncio.Task[float | None]"
    holders: int = 0


class Groups:
    """Places where the members of groups meet, one for each kind of group."""

    def __init__(self, service: Service, rollouts_per_prompt: int) -> None:
        """`rollouts_per_prompt`: size of NeMo-Gym's groups, whose requests do not say it."""
        self._service, self._rollouts = service, rollouts_per_prompt
        self._meetings: dict[Hashable, _Meeting] = {}
        self._seats: dict[Hashable, _Seat] = {}

    def add_to(self, router: APIRouter) -> None:
        """Adds the endpoints."""
        for path, form, summary in (
            ("/v1/reward", Form(OPENAI, RewardAsked, self.reward), "Reward of one response among those of its group"),
            ("/verify", Form(FASTAPI, RolloutAsked, self.verify), "NeMo-Gym's reward"),
            ("/seed_session", Form(FASTAPI, SessionAsked, self.seed_session), "NeMo-Gym's beginning of a rollout"),
        ):
            add_endpoint(router, self._service, [path], form, summary=summary)

    def close(self) -> None:
        """Ends the time of all groups: whoever waits has an answer. Nobody may come any more."""
        for meeting in list(self._meetings.values()):
            meeting.rendezvous.close()

    async def reward(self, service: Service, request: Request, asked: RewardAsked) -> dict[str, Any]:
        """Answers with the reward, null for who was alone, or whose group was not full with `partial` "none"."""
        service.check_model(asked.model)
        settings = asked.model_dump(include={"strategy", "orders", "mode", "scores", "seed", "k", "duplicates"})
        strategy = asked.strategy or "round_robin"
        await service.check_work([asked.size], "size", strategy, asked.k, asked.orders)
        of = (asked.size, asked.timeout or service.limits.timeout, asked.partial, settings)
        value = await self._met(request, of, asked.key, asked.member, asked.prompt, asked.response)
        return {"id": request.state.id, "model": service.model, "reward": value}

    async def verify(self, service: Service, request: Request, asked: RolloutAsked) -> dict[str, Any]:
        """Answers with the two objects and a reward in [1, 5]; 3 without others to compare with, and without text."""
        given = asked.responses_create_params.get("input")
        history = [{"role": "user", "content": given}] if isinstance(given, str) else given
        if not isinstance(history, list):
            name = "responses_create_params.input"
            raise RefusedError("field", f"{name}: expected text or messages", name)
        prompt, text = nemo_gym.prompt_of(history, asked.principle), nemo_gym.output_text(asked.response)
        reward: float | None = None
        if self._rollouts > 1:
            named = next((name for name in (asked.prompt_id, asked.task_index) if name is not None), None)
            content = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()
            member = None if named is None else asked.rollout_index
            of: _Kind = (self._rollouts, service.limits.timeout, "judge", {})
            try:
                reward = await self._met(request, of, ("verify", named, content), member, prompt, text)
            except InputError as error:
                if "response" not in error.reasons:
                    raise
        return {
            "responses_create_params": asked.responses_create_params,
            "response": asked.response,
            "reward": _UNCOMPARED if reward is None else nemo_gym.score(reward),
        }

    async def seed_session(self, service: Service, request: Request, asked: SessionAsked) -> dict[str, Any]:
        """Answers with nothing: a rollout has no state here."""
        return {}

    async def _met(
        self,
        request: Request,
        of: _Kind,
        key: Hashable,
        member: str | int | None,
        prompt: Any,
        response: Any,
    ) -> float | None:
        """Waits for the group of a key, of those with this API key alone -> the reward.

        A member that asks again, because its connection was lost, has the place that it had, or the reward that it
        would have been told.
        """
        service, space = self._service, self._service.space_of(request)
        with service.waiting.taken(service.client_of(request)):
            meeting = self._meeting(space, *of)
            name = object() if member is None else (space, key, member, *of[:3], *sorted(of[3].items()))
            if (seat := self._seats.get(name)) is None:
                work = asyncio.ensure_future(meeting.rendezvous.reward_async((space, key), prompt, response))
                seat = self._seats[name] = _Seat(work)
            seat.holders += 1
            meeting.users += 1
            try:
                # The group's own time, then the judging, for which others may have to be waited.
                seconds = meeting.rendezvous.timeout + service.limits.timeout
                return await service.unless_gone(request, _shielded(seat.reward), seconds)
            finally:
                seat.holders -= 1
                meeting.users -= 1
                if not seat.holders:
                    self._leave(name, seat, _REMEMBERED if member is not None else 0.0)

    def _leave(self, name: Hashable, seat: _Seat, seconds: float) -> None:
        """Takes a member out of its group; one that has its reward can ask for it again for so many seconds."""
        seat.reward.cancel()

        def forget() -> None:
            if self._seats.get(name) is seat and not seat.holders:
                del self._seats[name]

        if seconds and seat.reward.done():
            asyncio.get_running_loop().call_later(seconds, forget)
        else:
            forget()

    def _meeting(
        self, space: Hashable, size: int, timeout: float, partial: Partial, settings: dict[str, Any]
    ) -> _Meeting:
        """Where groups of this kind meet. Raises RefusedError where there are too many kinds, and near the end."""
        if self._service.is_closing:
            raise RefusedError("busy", "the server is about to end")
        timeout = min(timeout, self._service.limits.timeout)
        kind = (space, size, timeout, partial, *sorted(settings.items()))
        if kind not in self._meetings:
            self._meetings = {of: meeting for of, meeting in self._meetings.items() if meeting.users}
            if len(self._meetings) >= _MOST_KINDS:
                raise RefusedError("busy", f"groups of {_MOST_KINDS} kinds are open, try again later")
            judge = self._service.judge_for(("groups", space))
            self._meetings[kind] = _Meeting(
                Rendezvous(judge, size=size, timeout=timeout, partial=partial, on_error="raise", **settings)
            )
        return self._meetings[kind]


async def _shielded(reward: "asyncio.Task[float | None]") -> float | None:
    return await asyncio.shield(reward)
