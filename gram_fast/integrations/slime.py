"""Rewards of a pairwise judge for slime: functions for `--custom-rm-path`, with `--group-rm` or without.

    # my_rewards.py, for --custom-rm-path my_rewards.reward --group-rm
    from gram_fast.integrations.slime import group_reward
    reward = group_reward("NiuTrans/GRAM-Qwen3-1.7B-RewardModel")

What slime passes (slime/rollout/rm_hub/__init__.py and slime/rollout/sglang_rollout.py at 624b824, August 2026): its
arguments, and with `--group-rm` the samples of one prompt, else one sample; the samples of one rollout where a custom
generate function makes several. `sample.prompt` is text that the chat template wrote where `args.apply_chat_template`
is set, else as in the data, text or messages. `sample.response` ends in special tokens unless SGLang leaves them out.
`sample.group_index` numbers the groups. A reward of None breaks the step; a sample with `remove_sample` is left out of
the loss.
"""

import logging
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from statistics import fmean
from typing import Any

from gram_fast import to_thread
from gram_fast.integrations.grouped import RowRewards
from gram_fast.integrations.lazy import AnyJudge, LazyJudge
from gram_fast.integrations.settings import check_settings
from gram_fast.integrations.turns import Turns, rewards_of_read
from gram_fast.integrations.unjudged import filled

logger = logging.getLogger(__name__)


def group_reward(judge: AnyJudge, tokenizer: Any = None, **settings: Any) -> Callable[..., Awaitable[list[float]]]:
    """Makes a group reward function, `async (args, samples) -> list of rewards`, for `--group-rm`.

    Args:
        judge: a judge, or a folder or a name on the hub, which is loaded at the first call.
        tokenizer: the policy's, of transformers, or its folder or name; None: that of `args.hf_checkpoint`.
        settings: arguments of `PairwiseJudge.rewards`, such as strategy, scores and orders.

    Samples of one `group_index` are a group. One that cannot be judged (over-long, with turns of the template
    inside) leaves the loss, by `remove_sample`, and gets the mean of its group's rewards, so that the advantages of the
    others keep their mean of 0; a warning has the reason. Raises InputError on a wrong setting; the function, on a
    prompt that the template did not write, and errors like `PairwiseJudge.rewards`.
    """
    check_settings(settings, has_references=False)
    judged = _judging(judge, tokenizer, settings)

    async def reward(args: Any, samples: Sequence[Any], **_: Any) -> list[float]:
        keys = [sample.group_index for sample in samples]
        rows = await to_thread(judged, args, samples, keys, None)
        of_key: dict[Hashable, list[float]] = {key: [] for key in keys}
        for key, value in zip(keys, rows.values, strict=True):
            of_key[key] += [] if value is None else [value]
        return _without_removed(samples, rows, [fmean(of_key[key] or [0.0]) for key in keys])

    return reward


def reference_reward(judge: AnyJudge, tokenizer: Any = None, **settings: Any) -> Callable[..., Awaitable[Any]]:
    """Makes a reward function of one sample, `async (args, sample) -> reward`: P(response better than the label).

    The label is a response to the prompt, in the data's column of `--label-key`. A list of samples gets a list. One
    that cannot be judged, or has no label, leaves the loss, by `remove_sample`, and gets 0.0. Arguments, warnings and
    errors as for `group_reward`; of the settings those that go with references: orders and scores.
    """
    check_settings(settings, has_references=True)
    judged = _judging(judge, tokenizer, settings)

    async def reward(args: Any, sample: Any, **_: Any) -> Any:
        samples = sample if isinstance(sample, list) else [sample]
        references = [one.label or None for one in samples]
        rows = await to_thread(judged, args, samples, range(len(samples)), references)
        rewards = _without_removed(samples, rows, [0.0] * len(samples))
        return rewards if isinstance(sample, list) else rewards[0]

    return reward


def _judging(judge: AnyJudge, tokenizer: Any, settings: Mapping[str, Any]) -> Callable[..., RowRewards]:
    """Makes a function that reads samples and judges them."""
    lazy = LazyJudge.of(judge)
    turns: list[Turns] = []

    def judged(
        args: Any, samples: Sequence[Any], keys: Sequence[Hashable], references: Sequence[str | None] | None
    ) -> RowRewards:
        if not turns:  # the arguments of a run are the same in all calls
            template = None if args.apply_chat_template else "{}"
            variables = args.apply_chat_template_kwargs
            turns.append(
                Turns(tokenizer or args.hf_checkpoint, input_template=template, chat_template_kwargs=variables)
            )
        read = [turns[0].row(sample.prompt, sample.response, has_prompt=False) for sample in samples]
        return rewards_of_read(lazy.get(), keys, read, references, settings)

    return judged


def _without_removed(samples: Sequence[Any], rows: RowRewards, instead: Sequence[float]) -> list[float]:
    """Takes the samples that were not judged out of the loss; they get a reward all the same."""
    for sample, value in zip(samples, rows.values, strict=True):
        if value is None:
            sample.remove_sample = True
    return filled(rows, instead, logger)
