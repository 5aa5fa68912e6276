"""Rewards of a pairwise judge for verl: `compute_score` against a reference, and a reward manager of groups.

    # my_reward.py, for reward.custom_reward_function.path=my_reward.py
    from gram_fast.integrations.verl import reference_score
    compute_score = reference_score("NiuTrans/GRAM-Qwen3-1.7B-RewardModel")

What verl 0.9.1 passes (verl/experimental/reward_loop/reward_manager): one sample a call, `data_source`, the response
without special tokens as `solution_str`, `ground_truth` and `extra_info`, columns of the data set; no prompt and no
group. Its reward managers run a plain function in threads of a reward worker, and "remote" takes no coroutine function.
A score that is missing breaks the batch; where the host's own reward fails ("rate_limited"), it is 0.0 beside an entry
in the extra information, whose keys must be those of all samples.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from gram_fast import InputError
from gram_fast.integrations.grouped import rewards_of_rows
from gram_fast.integrations.lazy import AnyJudge, LazyJudge
from gram_fast.integrations.settings import check_settings
from gram_fast.integrations.unjudged import filled

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

    Raises InputError on an unknown setting. The function returns {"score", "unjudged"}, raises InputError where
    `extra_info` lacks a key, and errors like `PairwiseJudge.rewards`.
    """
    check_settings(settings)
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
