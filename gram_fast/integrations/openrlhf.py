"""Rewards of a pairwise judge for OpenRLHF, by group or against a reference, and what a remote reward server answers.

    # file of --train.agent_func_path: samples of a prompt are judged against each other
    from gram_fast.integrations.openrlhf import group_executor
    AgentExecutor = group_executor("NiuTrans/GRAM-Qwen3-1.7B-RewardModel", n_samples_per_prompt=8)

    # or file of --reward.remote_url: each sample is judged against its label
    from gram_fast.integrations.openrlhf import reward_function
    reward_func = reward_function("NiuTrans/GRAM-Qwen3-1.7B-RewardModel", "folder of the policy")

What OpenRLHF 0.11.2 passes (`SingleTurnAgentExecutor` in openrlhf/utils/agent.py): one sample a call, in a thread each.
`queries` are prompt and response as the policy's tokenizer decodes them, with the chat template and special tokens;
`prompts` are the rendered prompts, `labels` the column of `--data.label_key`. Nothing there tells which samples are of
one group. An executor knows: `RolloutRayActor.generate_responses` runs all samples of a prompt at once, with one object
of sampling parameters, which arrived with this call and is no other's. The host has no reward that stands for a
failure: it logs an error, and fails when it puts the batch together.
"""

import asyncio
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch

from gram_fast import InputError, Rendezvous
from gram_fast.integrations.body import lists
from gram_fast.integrations.lazy import AnyJudge, LazyJudge
from gram_fast.integrations.settings import check_settings
from gram_fast.integrations.turns import Turns, rewards_of_read
from gram_fast.integrations.unjudged import filled, reward_or_none
from gram_fast.ranking.scores import bradley_terry, margin

logger = logging.getLogger(__name__)

_LOG_ODDS = (bradley_terry, margin)
"""Scores that are log odds; others are in [0, 1]."""

RewardFunction = Callable[..., dict[str, Any]]
"""`(queries, prompts, labels, **kwargs) -> {"rewards", "scores", "extra_logs"}`, float32 tensors [B]."""


def reward_function(
    judge: AnyJudge,
    tokenizer: Any,
    *,
    n_samples_per_prompt: int | None = None,
    input_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    unjudged: float = 0.0,
    **settings: Any,
) -> RewardFunction:
    """Makes the `reward_func` of a reward file.

    Args:
        judge: a judge, or a folder or a name on the hub, which is loaded at the first call.
        tokenizer: the policy's, of transformers, or its folder or name. Its chat template, whatever it is, tells where
            a prompt ends and a response begins.
        n_samples_per_prompt: samples of a prompt, which stand side by side: rewards are then those of their group, as
            `PairwiseJudge.rewards` makes them. None: the label of a sample is its reference, and the reward is
            P(response better than reference).
        input_template: as `--data.input_template`, where that wrote the prompts in place of the chat template; "{}"
            where they are plain text.
        chat_template_kwargs: variables that the prompts were rendered with; the host has none.
        unjudged: reward and score of a response that cannot be judged: over-long, without a reference, or with
            turns of the template inside. A warning has the reason, and "unjudged" in the host's logs is their share.
        settings: arguments of `PairwiseJudge.rewards`, such as strategy, scores and orders.

    "scores" are in [0, 1], for the host's dynamic filtering: the rewards, or their sigmoid where they are log odds.

    Raises InputError on a wrong setting and on fewer than two samples. The function raises InputError on a prompt
    that the template did not write, on lists of different lengths, and on rows that are no groups; other errors are
    those of `PairwiseJudge.rewards`.
    """
    is_log_odds = check_settings(settings, has_references=n_samples_per_prompt is None).scores in _LOG_ODDS
    if n_samples_per_prompt is not None and (type(n_samples_per_prompt) is not int or n_samples_per_prompt < 2):
        raise InputError(f"n_samples_per_prompt: expected an integer of at least 2, got {n_samples_per_prompt!r}")
    lazy = LazyJudge.of(judge)
    turns = Turns(tokenizer, input_template=input_template, chat_template_kwargs=chat_template_kwargs)

    def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[str], **_: Any) -> dict[str, Any]:
        if not len(queries) == len(prompts) == len(labels):
            raise InputError(
                f"queries, prompts, labels: expected lists of one length, got {len(queries)}, {len(prompts)} and "
                f"{len(labels)}"
            )
        keys = _keys(prompts, n_samples_per_prompt)
        read = [turns.row(prompt, query, has_prompt=True) for prompt, query in zip(prompts, queries, strict=True)]
        references = [label or None for label in labels] if n_samples_per_prompt is None else None
        rows = rewards_of_read(lazy.get(), keys, read, references, settings)
        rewards = torch.tensor(filled(rows, [unjudged] * len(read), logger))
        missing = torch.tensor([value is None for value in rows.values])
        scores = torch.where(missing, rewards, rewards.sigmoid()) if is_log_odds else rewards
        return {"rewards": rewards, "scores": scores, "extra_logs": {"unjudged": missing.float()}}

    return reward_func


def group_executor(
    judge: AnyJudge,
    n_samples_per_prompt: int,
    *,
    timeout: float = 1800.0,
    input_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    unjudged: float = 0.0,
    **settings: Any,
) -> type[Any]:
    """Makes the `AgentExecutor` of an agent file: one turn, whose samples are judged against those of the same prompt.

    Args:
        judge: a judge, or a folder or a name on the hub, which is loaded when the executor is made, in each process of
            an engine.
        n_samples_per_prompt: as `--rollout.n_samples_per_prompt`; evaluation needs as many, since nothing tells its
            samples.
        timeout: seconds that a sample waits for its group, from the group's first one on. Nothing of a group that is
            not full by then is judged: a host makes advantages of all of it, and those that come late would be judged
            among themselves.
        input_template: as for `reward_function`.
        chat_template_kwargs: as for `reward_function`.
        unjudged: as for `reward_function`; also for the samples of a group that was not full in time.
        settings: arguments of `PairwiseJudge.rewards`, such as strategy, scores and orders.

    Rewards, scores and logs are those of `reward_function`. Raises InputError where OpenRLHF is missing, and on a
    wrong setting; the executor, on a prompt that the template did not write.
    """
    is_log_odds = check_settings(settings, has_references=False).scores in _LOG_ODDS
    try:
        from openrlhf.utils.agent import SingleTurnAgentExecutor
    except ImportError as error:
        raise InputError(f"openrlhf: expected the package to be installed (pip install openrlhf): {error}") from error
    lazy = LazyJudge.of(judge)

    class JudgeExecutor(SingleTurnAgentExecutor):  # type: ignore[misc]
        """Generates one turn and waits for the judge."""

        def __init__(self) -> None:
            super().__init__()
            size = n_samples_per_prompt
            self._meeting = Rendezvous(lazy.get(), size=size, timeout=timeout, partial="none", **settings)
            self._turns: Turns | None = None

        async def execute(
            self,
            prompt: str,
            label: str,
            sampling_params: Any,
            max_length: int,
            hf_tokenizer: Any,
            llm_engine: Any,
            images: Any = None,
        ) -> dict[str, Any]:
            output: dict[str, Any] = await super().execute(
                prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images
            )
            if self._turns is None:  # of the policy's tokenizer, of which each prompt brings a copy
                self._turns = Turns(
                    hf_tokenizer, input_template=input_template, chat_template_kwargs=chat_template_kwargs
                )
            ((start, end),) = output["action_ranges"]
            text = hf_tokenizer.decode(output["observation_tokens"][start:end], skip_special_tokens=False)
            row = await asyncio.to_thread(self._turns.row, prompt, text, has_prompt=False)
            key = id(sampling_params)
            value = await reward_or_none(self._meeting, key, row.prompt, row.response, logger, row.reason)
            output.update(_output(unjudged if value is None else value, value is None, is_log_odds))
            return output

    return JudgeExecutor


def answer(reward_func: RewardFunction, body: Mapping[str, Any]) -> dict[str, Any]:
    """Answers a request of the remote protocol -> the JSON of the response.

    `body`: {"query": [...], "prompts": [...], "labels": [...]}, what the host posts. Empty lists get empty lists.
    Raises InputError on a body without these lists, and errors like the function; the host tries each five times.
    """
    found = lists(body, "query", "prompts", "labels")
    if not any(found):
        return {"rewards": [], "scores": [], "extra_logs": {}}
    result = reward_func(*found)
    logs = {name: values.tolist() for name, values in result["extra_logs"].items()}
    return {"rewards": result["rewards"].tolist(), "scores": result["scores"].tolist(), "extra_logs": logs}


def _keys(prompts: Sequence[str], size: int | None) -> list[Hashable]:
    """Says which rows are a group: `size` rows side by side, of one prompt; each alone where it has a reference."""
    if size is None:
        return list(range(len(prompts)))
    keys: list[Hashable] = [row // size for row in range(len(prompts))]
    if len(prompts) % size or any(prompt != prompts[row // size * size] for row, prompt in enumerate(prompts)):
        raise InputError(
            f"prompts: expected {size} rows of one prompt side by side (n_samples_per_prompt), got {len(prompts)} "
            "rows; a host that asks for one sample at a time needs references"
        )
    return keys


def _output(reward: float, is_missing: bool, is_log_odds: bool) -> dict[str, Any]:
    """Entries of an executor's output for one sample."""
    score = float(torch.tensor(reward).sigmoid()) if is_log_odds and not is_missing else reward
    return {"reward": reward, "scores": score, "extra_logs": {"unjudged": float(is_missing)}}
