"""Rewards of a pairwise judge for verl: `compute_score` against a reference, and a reward manager of groups.

    # my_reward.py, for reward.custom_reward_function.path=my_reward.py
    from gram_fast.integrations.verl import reference_score
    compute_score = reference_score("NiuTrans/GRAM-Qwen3-1.7B-RewardModel")

What verl 0.9.1 passes (verl/experimental/reward_loop/reward_manager): one sample a call, `data_source`, the response
without special tokens as `solution_str`, `ground_truth` and `extra_info`, columns of the data set; no prompt and no
group. Its reward managers run a plain function in threads of a reward worker, and "remote" takes no coroutine function.
A score that is missing breaks the batch; where the host's own reward fails ("rate_limited"), it is 0.0 beside an entry
in the extra information, whose keys must be those of all samples. Groups are known to a reward manager alone: it gets
the columns of a sample, with `uid`, its group, and `raw_prompt`. The samples of a group come one by one, to any of
`reward.num_workers` processes.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from gram_fast import InputError, Rendezvous
from gram_fast.integrations.grouped import rewards_of_rows
from gram_fast.integrations.lazy import AnyJudge, LazyJudge
from gram_fast.integrations.settings import check_settings
from gram_fast.integrations.unjudged import filled, reward_or_none

logger = logging.getLogger(__name__)


def reference_score(
    judge: AnyJudge,
    *,
    prompt: str = "question",
    reference: str | None = None,
    unjudged: float = 0.0,
    **settings: Any,
) -> Callable[..., dict[str, float]]:
    """Makes a `compute_score`: P(response better than a reference response to the prompt).

    Args:
        judge: a judge, or a folder or a name on the hub, which is loaded at the first call.
        prompt: key of `extra_info` under which the prompt is, text or messages.
        reference: key of `extra_info` under which the reference is; None: it is the ground truth.
        unjudged: score of a response that cannot be judged: over-long, or without a reference. A warning has the
            reason, and the mean of "unjudged" in the extra information is their share.
        settings: arguments of `PairwiseJudge.rewards` that go with references: orders and scores.

    Raises InputError on a wrong setting. The function returns {"score", "unjudged"}, raises InputError where
    `extra_info` lacks a key, and errors like `PairwiseJudge.rewards`.
    """
    check_settings(settings, has_references=True)
    lazy = LazyJudge.of(judge)

    def compute_score(
        data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None, **_: Any
    ) -> dict[str, float]:
        info = extra_info or {}
        for name, key in (("prompt", prompt), ("reference", reference)):
            if key is not None and key not in info:
                raise InputError(
                    f"{name}: expected a key of extra_info ({', '.join(map(str, info)) or 'none'}), got {key!r}"
                )
        found = ground_truth if reference is None else info[reference]
        rows = rewards_of_rows(lazy.get(), [0], [info[prompt]], [solution_str], references=[found or None], **settings)
        return {"score": filled(rows, [unjudged], logger)[0], "unjudged": float(rows.values[0] is None)}

    return compute_score


def group_reward_manager(
    judge: AnyJudge, *, timeout: float = 600.0, unjudged: float = 0.0, **settings: Any
) -> type[Any]:
    """Makes a class of reward managers that judge the samples of a `uid` against each other.

    For `reward.reward_manager.source=importlib`, with the path of a file and the name in it:

        JudgeRewardManager = group_reward_manager("NiuTrans/GRAM-Qwen3-1.7B-RewardModel")

    Args:
        judge: a judge, or a folder or a name on the hub, which is loaded when the manager is made in its worker.
        timeout: seconds that a sample waits for its group, from the group's first one on. Nothing of a group that is
            not full by then is judged: a host makes advantages of all of it, and those that come late would be judged
            among themselves.
        unjudged: reward of a sample that cannot be judged, over-long or of a group that was not full in time. Warnings
            have the reason, and the mean of "unjudged" in the extra information is their share.
        settings: arguments of `PairwiseJudge.rewards`, such as strategy, scores and orders.

    Raises InputError where verl is missing, and on a wrong setting. A manager raises it where the samples of a group
    could not meet: it needs `reward.num_workers=1`, as many samples in validation as in training, `trainer.use_v1`,
    and an estimator other than remax; the last two have others judged under the `uid` of a group.
    """
    check_settings(settings, has_references=False)
    try:
        from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
    except ImportError as error:
        raise InputError(f"verl: expected the package to be installed (pip install verl): {error}") from error
    lazy = LazyJudge.of(judge)

    class JudgeRewardManager(RewardManagerBase):  # type: ignore[misc]
        """Rewards of groups by a pairwise judge."""

        def __init__(self, config: Any, tokenizer: Any, compute_score: Any = None, **_: Any) -> None:
            super().__init__(config, tokenizer, compute_score)
            rollout, estimator = config.actor_rollout_ref.rollout, config.algorithm.adv_estimator
            if not config.trainer.use_v1:
                raise InputError(
                    "trainer.use_v1: expected true, since verl's old trainer has copies of samples judged, with which "
                    "it fills up a batch of validation, as members of their groups; got false"
                )
            if estimator == "remax":
                raise InputError(
                    "algorithm.adv_estimator: expected another than remax, whose baseline, a sample more, is judged as "
                    "a member of the group"
                )
            if config.reward.num_workers != 1:
                raise InputError(f"reward.num_workers: expected 1, where groups meet, got {config.reward.num_workers}")
            if rollout.val_kwargs.n != rollout.n:
                raise InputError(
                    f"rollout.val_kwargs.n: expected {rollout.n} as in training, since nothing tells samples of "
                    f"validation, got {rollout.val_kwargs.n}"
                )
            self._meeting = Rendezvous(lazy.get(), size=rollout.n, timeout=timeout, partial="none", **settings)

        async def run_single(self, data: Any) -> dict[str, Any]:
            item = data[-1]  # the last of several outputs has the answer
            responses = item.batch["responses"]
            length = int(item.batch["attention_mask"][-len(responses) :].sum())
            columns = item.non_tensor_batch
            response = await asyncio.to_thread(self.tokenizer.decode, responses[:length], skip_special_tokens=True)
            prompt = list(columns["raw_prompt"])
            value = await reward_or_none(self._meeting, columns["uid"], prompt, response, logger)
            extra = {"unjudged": float(value is None)}
            return {"reward_score": unjudged if value is None else value, "reward_extra_info": extra}

    return JudgeRewardManager
