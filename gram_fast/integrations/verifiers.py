"""Rewards of a pairwise judge for verifiers: of an environment's attempts (0.4), or of a Rubric (before 0.3).

    from gram_fast.integrations.verifiers import record_rewards

    class JudgedEnv(BestOfNEnv):
        async def finalize(self, task, episode):
            await record_rewards("NiuTrans/GRAM-Qwen3-1.7B-RewardModel", task, episode.traces)
            await super().finalize(task, episode)

verifiers 0.4.0 has no rubrics: an environment runs a task, and its `finalize` judges the attempts (traces) together. A
signal that could not be scored is None there, which the reward's sum leaves out. A Rubric (`verifiers` 0.1 and 0.2,
`verifiers.legacy` in 0.3) calls group reward functions with the rollouts of one prompt; it knows no reward that is
missing, and puts 0.0 for the whole group where a function fails.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from gram_fast import to_thread
from gram_fast.integrations.grouped import rewards_of_rows
from gram_fast.integrations.lazy import AnyJudge, LazyJudge
from gram_fast.integrations.settings import check_settings
from gram_fast.integrations.unjudged import filled, warn_of_unjudged

logger = logging.getLogger(__name__)


async def record_rewards(
    judge: AnyJudge,
    task: Any,
    traces: Sequence[Any],
    *,
    name: str = "judge",
    weight: float = 1.0,
    **settings: Any,
) -> None:
    """Judges the last replies of a task's attempts against each other, and records a reward in each trace.

    Args:
        judge: a judge, or a folder or a name on the hub, which is loaded at the first call.
        task: the task of the environment, whose prompt, with its system prompt, the replies answer.
        traces: attempts at it, such as `episode.traces`, or those of one agent, `episode.by_agent["solver"]`.
        name: of the reward, beside the task's own.
        weight: of the reward in the sum.
        settings: arguments of `PairwiseJudge.rewards`, such as strategy, scores and orders.

    An attempt that cannot be judged (failed, over-long) has None under this name, the host's mark of a
    signal that was not scored, and a warning has the reason. Raises InputError on a wrong setting, and errors like
    `PairwiseJudge.rewards`, which fail the episode.
    """
    check_settings(settings, has_references=False)
    prompt = _messages(task.data.prompt)
    if task.data.system_prompt:
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt or []
        prompt = [{"role": "system", "content": task.data.system_prompt}, *turns]
    replies = [trace.last_reply if trace.ok else None for trace in traces]
    lazy = LazyJudge.of(judge)
    rows = await to_thread(
        lambda: rewards_of_rows(lazy.get(), [0] * len(replies), [prompt] * len(replies), replies, **settings)
    )
    for trace, value in zip(traces, rows.values, strict=True):
        if value is None:
            trace.rewards[name] = None
        else:
            trace.record_reward(name, value, weight)
    warn_of_unjudged(rows, logger)


def group_reward(
    judge: AnyJudge, *, unjudged: float = 0.0, **settings: Any
) -> Callable[[Sequence[Any], Sequence[Any]], Awaitable[list[float]]]:
    """Makes a group reward function of a Rubric, `async judge_reward(prompts, completions) -> list of rewards`.

    Args:
        judge: a judge, or a folder or a name on the hub, which is loaded at the first call.
        unjudged: reward of a completion that cannot be judged: without messages, over-long, or alone. A warning has
            the reason.
        settings: arguments of `PairwiseJudge.rewards`, such as strategy, scores and orders.

    The rubric calls it with the rollouts of one prompt. It logs an error of the judge, and gives the group 0.0.
    Raises InputError on a wrong setting.
    """
    check_settings(settings, has_references=False)
    lazy = LazyJudge.of(judge)

    async def judge_reward(prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        read = [_messages(prompt) for prompt in prompts]
        said = [_messages(completion) for completion in completions]
        keys = [repr(prompt) for prompt in read]  # one group, unless a caller mixes prompts
        rows = await to_thread(lambda: rewards_of_rows(lazy.get(), keys, read, said, **settings))
        return filled(rows, [unjudged] * len(said), logger)

    return judge_reward


def _messages(text: Any) -> Any:
    """A prompt or a completion as the judge reads it: the host's messages are dicts, or pydantic objects."""
    if text is None or isinstance(text, str):
        return text
    return [m.model_dump(exclude_none=True) if hasattr(m, "model_dump") else m for m in text]
