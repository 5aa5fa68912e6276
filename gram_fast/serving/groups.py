"""Rewards of groups whose members come one request at a time."""

import hashlib
import json
from collections.abc import Hashable
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from gram_fast import InputError, Rendezvous
from gram_fast.comparing.orders import Orders
from gram_fast.integrations import nemo_gym
from gram_fast.ranking.rewards import Duplicates, RewardsName
from gram_fast.ranking.tournament import StrategyName
from gram_fast.rendezvous import Partial
from gram_fast.serving.endpoint import Form, add_endpoint
from gram_fast.serving.native import Text, check_work
from gram_fast.serving.refusal import FASTAPI, OPENAI, RefusedError
from gram_fast.serving.service import Service

# Kinds of groups (size, timeout, settings) that may be open at once: each has a thread while somebody waits.
_MOST_KINDS = 64
# What NeMo-Gym gives a response that is not compared with another.
_UNCOMPARED = 3.0


class RewardAsked(BaseModel):
    """A response, which waits for the others of its group."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    key: str | int = Field(description="Names the group among those of this client: a row of a batch, or an id.")
    size: int = Field(ge=2, description="Members of the group.")
    prompt: Text
    response: Text
    timeout: float | None = Field(None, gt=0, description="Seconds that the group waits from its first member on.")
    partial: Partial = Field("judge", description="What those have who came, where others are missing by then.")
    strategy: StrategyName | None = None
    orders: Orders = "both"
    scores: RewardsName = "auto"
    seed: int = Field(0, ge=0)
    k: int | None = Field(None, ge=1)
    duplicates: Duplicates = "merged"


class VerifyAsked(BaseModel):
    """A response of NeMo-Gym, whose reward is made among those to its prompt. Other fields are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    responses_create_params: dict[str, Any]
    response: dict[str, Any]
    principle: str | None = None
    prompt_id: str | int | None = None
    task_index: Annotated[int | None, Field(alias="_ng_task_index")] = None


class Groups:
    """Places where the members of groups meet, one for each kind of group."""

    def __init__(self, service: Service, rollouts_per_prompt: int) -> None:
        """`rollouts_per_prompt`: size of NeMo-Gym's groups, whose requests do not say it."""
        self._service, self._rollouts = service, rollouts_per_prompt
        self._meetings: dict[Hashable, Rendezvous] = {}

    def add_to(self, router: APIRouter) -> None:
        """Adds the endpoints."""
        add_endpoint(
            router,
            self._service,
            ["/v1/reward"],
            Form(OPENAI, RewardAsked, self.reward),
            summary="Reward of one response among those of its group",
        )
        add_endpoint(
            router, self._service, ["/verify"], Form(FASTAPI, VerifyAsked, self.verify), summary="NeMo-Gym's reward"
        )

    def close(self) -> None:
        """Ends the time of all groups: whoever waits has an answer."""
        for meeting in self._meetings.values():
            meeting.close()

    async def reward(self, service: Service, request: Request, asked: RewardAsked) -> dict[str, Any]:
        """Answers with the reward, null for who was alone, or whose group was not full with `partial` "none"."""
        service.check_model(asked.model)
        settings = asked.model_dump(include={"strategy", "orders", "scores", "seed", "k", "duplicates"})
        strategy = asked.strategy or "round_robin"
        await check_work(service, [asked.size], "size", strategy, asked.k, asked.orders)
        meeting = self._meeting(asked.size, asked.timeout or service.limits.timeout, asked.partial, settings)
        value = await self._met(service, request, meeting, asked.key, asked.prompt, asked.response)
        return {"id": request.state.id, "model": service.model, "reward": value}

    async def verify(self, service: Service, request: Request, asked: VerifyAsked) -> dict[str, Any]:
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
            meeting = self._meeting(self._rollouts, service.limits.timeout, "judge", {})
            try:
                reward = await self._met(service, request, meeting, ("verify", named, content), prompt, text)
            except InputError as error:
                if "response" not in error.reasons:
                    raise
        return {
            "responses_create_params": asked.responses_create_params,
            "response": asked.response,
            "reward": _UNCOMPARED if reward is None else nemo_gym.score(reward),
        }

    async def _met(
        self, service: Service, request: Request, meeting: Rendezvous, key: Hashable, prompt: Any, response: Any
    ) -> float | None:
        """Waits for the group of a key, of this client alone -> the reward."""
        async with service.waiting():
            work = meeting.reward_async((service.client_of(request), key), prompt, response)
            return await service.unless_gone(request, work, meeting.timeout + service.limits.timeout)

    def _meeting(self, size: int, timeout: float, partial: Partial, settings: dict[str, Any]) -> Rendezvous:
        """Where groups of this kind meet. Raises RefusedError where there are too many kinds."""
        timeout = min(timeout, self._service.limits.timeout)
        kind = (size, timeout, partial, *sorted(settings.items()))
        if kind not in self._meetings:
            self._meetings = {of: meeting for of, meeting in self._meetings.items() if meeting.num_waiting}
            if len(self._meetings) >= _MOST_KINDS:
                raise RefusedError("busy", f"groups of {_MOST_KINDS} kinds are open, try again later")
            self._meetings[kind] = Rendezvous(
                self._service.judge, size=size, timeout=timeout, partial=partial, on_error="raise", **settings
            )
        return self._meetings[kind]
