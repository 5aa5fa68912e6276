"""What RL trainers post to a remote reward model: OpenRLHF, slime and NeMo-Gym, in their own shapes."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request

from gram_fast import InputError
from gram_fast.integrations import nemo_gym, openrlhf
from gram_fast.integrations.turns import Turns
from gram_fast.results import Rewards
from gram_fast.serving.endpoint import Form, Listed, add_endpoint
from gram_fast.serving.native import Text
from gram_fast.serving.refusal import FASTAPI, OPENAI, RefusedError
from gram_fast.serving.service import Service


class OpenRlhfAsked(BaseModel):
    """Samples of OpenRLHF: query is prompt and response with the policy's chat template, label a reference."""

    model_config = ConfigDict(extra="ignore", strict=True)

    query: Listed[str]
    prompts: Listed[str]
    labels: Listed[str | None]


class SlimeAsked(BaseModel):
    """A sample of slime; its label is a reference."""

    model_config = ConfigDict(extra="ignore", strict=True)

    prompt: Text
    response: str
    label: str | None = None


class CompareAsked(BaseModel):
    """Responses of NeMo-Gym's genrm_compare."""

    model_config = ConfigDict(extra="ignore", strict=True)

    conversation_history: Listed[dict[str, Any]]
    response_objs: Listed[dict[str, Any]]
    principle: str | None = None


def add_hosts(router: APIRouter, service: Service, policy: str | None) -> None:
    """Adds the endpoints of the hosts.

    `policy`: tokenizer of the policy, a folder or a name, whose chat template the hosts' texts are written in; None:
    they are plain text, which OpenRLHF's cannot be.
    """
    hosts = _Hosts(service, policy)
    add_endpoint(
        router, service, ["/get_reward"], Form(OPENAI, OpenRlhfAsked, hosts.get_reward), summary="OpenRLHF's rewards"
    )
    add_endpoint(router, service, ["/reward", "/"], Form(OPENAI, SlimeAsked, hosts.reward), summary="slime's reward")
    add_endpoint(
        router, service, ["/compare"], Form(FASTAPI, CompareAsked, hosts.compare), summary="NeMo-Gym's rewards"
    )


class _Hosts:
    def __init__(self, service: Service, policy: str | None) -> None:
        self._turns = None if policy is None else Turns(policy)
        self._reward_func = None if policy is None else openrlhf.reward_function(service.judge, policy)

    async def get_reward(self, service: Service, request: Request, asked: OpenRlhfAsked) -> dict[str, Any]:
        """Rewards of samples, each P(response better than its label): {"rewards", "scores", "extra_logs"}."""
        body = dict(asked)
        reward_func = self._reward_func
        if reward_func is None and any(body.values()):
            raise RefusedError(
                "input",
                "this server does not know the policy's chat template, which OpenRLHF's queries are written in: "
                "expected one that was started with --policy-tokenizer",
            )
        service.check_items(len(asked.query), "query")
        return await service.judged(request, lambda: openrlhf.answer(reward_func or _nothing, body))

    async def reward(self, service: Service, request: Request, asked: SlimeAsked) -> float:
        """The reward of a sample, P(response better than its label): a number."""
        if not (label := asked.label):
            raise RefusedError("field", "label: expected a response to compare with", "label")

        def judge() -> Rewards:
            prompt: Any = asked.prompt
            response: Any = asked.response
            if self._turns is not None and isinstance(prompt, str):
                row = self._turns.row(prompt, response, has_prompt=False)
                if row.reason:
                    raise InputError(f"response: {row.reason}")
                prompt, response = row.prompt, row.response
            return service.judge.rewards([prompt], [[response]], references=[label])

        return float((await service.judged(request, judge))[0][0])

    async def compare(self, service: Service, request: Request, asked: CompareAsked) -> dict[str, Any]:
        """Rewards in [1, 5] of responses to one conversation, judged against each other."""
        count = len(asked.response_objs)
        service.check_items(count, "response_objs")
        service.check_comparisons(count * (count - 1))
        return await service.judged(request, lambda: nemo_gym.compare(service.judge, dict(asked)))


def _nothing(*_: Any) -> dict[str, Any]:
    raise AssertionError("asked for rewards of empty lists")
