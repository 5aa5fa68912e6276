"""Rewards of a pairwise judge for TRL's trainers: GRPO, RLOO, OnlineDPO and others.

    from gram_fast.integrations.trl import group_reward
    trainer = GRPOTrainer(model, reward_funcs=group_reward("NiuTrans/GRAM-Qwen3-1.7B-RewardModel"), ...)

What TRL 1.16 passes to a reward function: lists of one length, `prompts`, `completions`, `completion_ids` and the other
columns of the data set; not how many completions a prompt has. By trainer:

- GRPOTrainer, GMPOTrainer, RLOOTrainer: the rows of all processes, in the order of their ranks, are blocks of
  `num_generations` rows (`num_generations_eval` in evaluation), each of one row of the data set. A process may hold a
  part of a block, and one prompt may have several blocks; an environment of GRPO may give the rows of a block different
  prompts. `log_metric` is a method of the trainer. Coroutine functions run together, after the others, and the trainer
  waits for them.
- SDPOTrainer: such blocks, but no `log_metric`, and no coroutine functions.
- OnlineDPOTrainer: the prompts of one process twice, P + P; rows i and i + len(P) are a pair. `trainer_state`, as the
  others pass, but no `log_metric`; no coroutine functions; a reward of None counts as 0.
- AsyncGRPOTrainer: one block a call, in a thread of a process without the trainer, with neither of the two.
- A2POTrainer: with neither; blocks at first, then single rows, which must have rewards. It wants them to be 0 or 1.

Prompts and completions are strings, or lists of messages: with tools a completion has the calls, their results and the
answer.
"""

import asyncio
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import distributed

from gram_fast import BackendError, InputError
from gram_fast.integrations.grouped import RowRewards, rewards_of_rows
from gram_fast.integrations.lazy import AnyJudge, LazyJudge
from gram_fast.integrations.metrics import metrics
from gram_fast.integrations.settings import check_settings

logger = logging.getLogger(__name__)

Text = str | list[dict[str, Any]]
Reference = str | Callable[[list[Text], Any], Sequence[Text]]
Row = tuple[Text, Text, Text | None]
"""Prompt, completion, and reference where rewards are against one."""
Answer = tuple[float | None, str | None]
"""Reward of a row, or why it has none."""


def group_reward(
    judge: AnyJudge,
    *,
    reference: Reference | None = None,
    asynchronous: bool = False,
    name: str = "group_reward",
    **settings: Any,
) -> "GroupReward | AsyncGroupReward":
    """Makes a reward function for TRL that judges the completions of a prompt against each other.

    Args:
        judge: a judge, or a folder or a name on the hub, which is loaded at the first call, on the GPU of the process's
            local rank; a `gram_fast.integrations.lazy.LazyJudge` where it is loaded with options. Not one that is
            divided among processes (`tensor_parallel=True`): processes judge different groups.
        reference: what completions are judged against, in place of each other: the name of a column of the data set, or
            a function `(prompts, trainer) -> completions`, called with the distinct prompts of the process's rows, such
            as `greedy_completions`.
        asynchronous: makes a coroutine function, for GRPO and RLOO, which run it at the same time as other coroutine
            functions: the judge works in a thread.
        name: of the reward in TRL's logs, where metrics of the judge are `name/position_consistency` and so on. Two
            rewards of a trainer need two names.
        settings: arguments of `PairwiseJudge.rewards`: strategy, scores, orders, seed and others.

    The function returns a reward for each row, None where it could not be judged; the first such row makes a warning
    with the reason. It pickles where its judge does. Raises InputError on a wrong setting. The function raises
    errors like `PairwiseJudge.rewards`, InputError where a column or the trainer is missing, and BackendError where the
    judge of another process failed.
    """
    check_settings(settings, has_references=reference is not None)
    kind = AsyncGroupReward if asynchronous else GroupReward
    return kind(LazyJudge.of(judge), reference, name, settings)


def greedy_completions(prompts: list[Text], trainer: Any) -> list[Text]:
    """Greedy completions by the policy as it is now, a `reference` for `group_reward`.

    The baseline of ReMax (arXiv 2310.10505). It generates with transformers, also where the trainer uses vLLM. Raises
    InputError without a trainer, on a trainer with tools, and under FSDP, where all processes must make the same steps.
    """
    from transformers import GenerationConfig
    from trl import GRPOTrainer
    from trl.chat_template_utils import parse_response
    from trl.models import unwrap_model_for_generation

    if trainer is None:
        raise InputError(
            "trainer: expected the trainer in this attribute of the reward function, OnlineDPO and SDPO pass none"
        )
    if trainer.is_fsdp_enabled or getattr(trainer, "tools", None):
        raise InputError("reference: expected a column or a function of yours under FSDP and with tools")
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    ids = _prompt_ids(prompts, tokenizer, trainer)
    inputs = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=getattr(trainer.args, "max_completion_length", None) or trainer.args.max_new_tokens,
        repetition_penalty=trainer.args.repetition_penalty,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=trainer.eos_token_ids,
    )
    is_training = trainer.model.training
    trainer.model.eval()
    try:
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as policy, torch.no_grad():
            tokens = policy.generate(**inputs.to(trainer.accelerator.device), generation_config=config)
    finally:
        trainer.model.train(is_training)
    made = [_up_to_end(row, trainer.eos_token_ids) for row in tokens[:, inputs["input_ids"].shape[1] :].tolist()]
    has_template = getattr(tokenizer, "response_template", None) is not None
    if has_template and isinstance(trainer, GRPOTrainer) and not isinstance(prompts[0], str):
        return [[parse_response(tokenizer, row, prefix=prefix)] for row, prefix in zip(made, ids, strict=True)]
    texts = tokenizer.batch_decode(made, skip_special_tokens=True)
    return [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def _prompt_ids(prompts: list[Text], tokenizer: Any, trainer: Any) -> list[list[int]]:
    """Tokens of prompts as the trainer makes them."""
    if isinstance(prompts[0], str):
        # OnlineDPO leaves out the special tokens that a tokenizer adds by itself.
        return list(tokenizer(prompts, add_special_tokens=generations(trainer) is not None)["input_ids"])
    template = getattr(trainer, "chat_template", None)
    options = getattr(trainer, "chat_template_kwargs", None) or {}
    return list(
        tokenizer.apply_chat_template(
            prompts, chat_template=template, add_generation_prompt=True, return_dict=True, **options
        )["input_ids"]
    )


def _up_to_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """Tokens up to the first that ends a completion, without what pads them."""
    return tokens[: next((place for place, token in enumerate(tokens, 1) if token in ends), len(tokens))]


def generations(trainer: Any) -> int | None:
    """Rows of a block, of a trainer that has blocks and is training or evaluating."""
    if getattr(trainer, "num_generations_eval", None) is None:  # OnlineDPO has num_generations, 2, and no blocks
        return None
    return int(trainer.num_generations if trainer.model.training else trainer.num_generations_eval)


def group_keys(
    prompts: Sequence[Any], size: int | None, *, may_be_doubled: bool, may_be_blocks: bool = True
) -> list[Hashable]:
    """Says which rows are a group: those of equal keys. They have equal prompts, too.

    With a `size` they are of one block of so many rows. Else, where prompts may be P + P and are, they are rows i and
    i + len(P). Else they are equal prompts side by side, if none stands alone, or all equal prompts: whether a prompt
    has several groups cannot be told then, and they are one. Raises InputError where P + P may as well be blocks of two
    rows or more.
    """
    texts = [repr(prompt) for prompt in prompts]
    half = len(texts) // 2
    if size is not None:
        return [(row // size, text) for row, text in enumerate(texts)]
    runs = [list(run) for _, run in groupby(texts)]
    if may_be_doubled and texts[:half] == texts[half:]:
        # The first and the last block may go on in other processes.
        if may_be_blocks and half > 1 and all(len(run) > 1 for run in runs[1:-1]):
            raise InputError(
                "trainer: expected the trainer in this attribute of the reward function, as equal prompts of a batch "
                "may be pairs (OnlineDPO) or blocks (SDPO)"
            )
        return [(row % half, text) for row, text in enumerate(texts)]
    if any(len(run) == 1 for run in runs):
        return list(texts)
    return [(number, text) for number, run in enumerate(runs) for text in run]


class _Ranks:
    """Processes whose rows are one batch: a process judges the blocks that begin with a row of its own."""

    def __init__(self) -> None:
        # Of its own, so that it meets no other collective: of another reward function, or of the trainer on a GPU.
        self._group = distributed.new_group(backend="gloo")

    def gather(self, make: Callable[[], Any], what: str) -> list[Any]:
        """What each process makes, in the order of their ranks. What one raises is raised in all: none waits for it."""
        value, failure = None, None
        try:
            value = make()
        except Exception as error:  # raised below
            failure = error
        gathered: list[Any] = [None] * distributed.get_world_size(self._group)
        distributed.all_gather_object(gathered, (value, None if failure is None else str(failure)), self._group)
        if failure is not None:
            raise failure
        for rank, (_, message) in enumerate(gathered):
            if message is not None:
                raise BackendError(f"{what} of process {rank} failed: {message}")
        return [value for value, _ in gathered]

    def judge(
        self, parts: list[list[Row]], size: int, judge: Callable[[Sequence[Hashable], Sequence[Row]], RowRewards]
    ) -> tuple[list[Answer], RowRewards | None]:
        """Answers for this process's rows, and what it judged itself, if anything. All processes call it."""
        own = distributed.get_rank(self._group)
        rank_of = [rank for rank, part in enumerate(parts) for _ in part]
        every = [row for part in parts for row in part]
        keys = _keys(every, size, may_be_doubled=False)
        judges: dict[Hashable, int] = {}
        mine = [row for row, key in enumerate(keys) if judges.setdefault(key, rank_of[row]) == own]
        judged: RowRewards | None = None

        def judge_mine() -> dict[int, Answer]:
            nonlocal judged
            if not mine:
                return {}
            judged = judge([keys[row] for row in mine], [every[row] for row in mine])
            return dict(zip(mine, zip(judged.values, judged.reasons, strict=True), strict=True))

        answers = {row: answer for found in self.gather(judge_mine, "the judge") for row, answer in found.items()}
        return [answers[row] for row, rank in enumerate(rank_of) if rank == own], judged


def _keys(rows: Sequence[Row], size: int | None, **may_be: bool) -> list[Hashable]:
    return group_keys([(prompt, reference) for prompt, _, reference in rows], size, **may_be)


@dataclass(frozen=True)
class _Call:
    """What a trainer asks for, in one process."""

    parts: list[list[Row]]
    """The rows of the processes that hold parts of the same blocks, or of this one alone."""
    size: int | None
    """Rows of a block, of a trainer that is known and has blocks."""
    is_trainer: bool
    """A trainer asks, known or not."""
    is_known: bool
    ranks: _Ranks | None
    """These processes, if this is not alone."""
    log_metric: Callable[[str, float], None] | None


class _Reward:
    """What both kinds of reward functions have in common."""

    def __init__(self, judge: LazyJudge, reference: Reference | None, name: str, settings: Mapping[str, Any]) -> None:
        self.__name__ = name
        self.trainer: Any = None
        """Which rows are groups is told by it, and a function as `reference` is called with it. SDPO's must be set
        before training, and OnlineDPO's for such a function; GRPO, GMPO and RLOO are found without it."""
        self._judge = judge
        self._reference = reference
        self._settings = dict(settings)
        self._ranks: _Ranks | None = None
        self._has_warned = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "trainer": None, "_ranks": None}

    def _read(self, prompts: Sequence[Text], completions: Sequence[Text], columns: Mapping[str, Any]) -> _Call:
        """Reads what is passed, before anything is concurrent: it may wait for the same call in other processes."""
        log_metric = columns.get("log_metric")
        trainer = getattr(log_metric, "__self__", None) or self.trainer
        size = generations(trainer)
        ranks = None if size is None else self._ranks_with_parts(len(prompts), size)

        def read() -> list[Row]:
            return list(zip(prompts, completions, self._references(prompts, columns, trainer), strict=True))

        parts = [read()] if ranks is None else ranks.gather(read, "the reading of rows and references")
        is_trainer = columns.get("trainer_state") is not None
        return _Call(parts, size, is_trainer, trainer is not None, ranks, log_metric)

    def _ranks_with_parts(self, count: int, size: int) -> _Ranks | None:
        """The processes, if one of them holds a part of a block.

        They tell each other how many rows they have, at every call: with `even_batches=False` evaluation ends with a
        different number in each, and one that exchanged rows alone would wait for ever. It takes 0.9 ms on two cores.
        """
        if not distributed.is_initialized() or distributed.get_world_size() == 1:
            return None
        self._ranks = self._ranks or _Ranks()
        return self._ranks if any(rows % size for rows in self._ranks.gather(lambda: count, "the count")) else None

    def _references(
        self, prompts: Sequence[Text], columns: Mapping[str, Any], trainer: Any
    ) -> Sequence[Text] | Sequence[None]:
        if self._reference is None:
            return [None] * len(prompts)
        if callable(self._reference):
            distinct = {repr(prompt): prompt for prompt in prompts}
            made = list(self._reference(list(distinct.values()), trainer))
            if len(made) != len(distinct):
                raise InputError(f"reference: expected one for each of {len(distinct)} prompts, got {len(made)}")
            reference_of = dict(zip(distinct, made, strict=True))
            return [reference_of[repr(prompt)] for prompt in prompts]
        if self._reference not in columns:
            names = ", ".join(sorted(columns.keys() - {"completion_ids", "trainer_state", "log_metric", "log_extra"}))
            raise InputError(f"reference: expected a column of the data set ({names}), got {self._reference!r}")
        return list(columns[self._reference])

    def _answer(self, call: _Call) -> list[float | None]:
        """Judges the rows of a call, and logs what it cost."""
        judged: RowRewards | None
        if call.size is not None and call.ranks is not None:
            answers, judged = call.ranks.judge(call.parts, call.size, self._judged)
        else:
            (rows,) = call.parts
            # Against references rewards are the same in any groups.
            may_be_blocks = not call.is_known and self._reference is None
            keys = _keys(rows, call.size, may_be_doubled=call.is_trainer, may_be_blocks=may_be_blocks)
            judged = self._judged(keys, rows)
            answers = list(zip(judged.values, judged.reasons, strict=True))
        if judged is not None and call.log_metric is not None:
            for metric, value in metrics(judged.rewards).items():
                call.log_metric(f"{self.__name__}/{metric}", value)
        reasons = [reason for _, reason in answers if reason is not None]
        if reasons and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s: %d of %d rows have no reward (%s)", self.__name__, len(reasons), len(answers), reasons[0]
            )
        return [value for value, _ in answers]

    def _judged(self, keys: Sequence[Hashable], rows: Sequence[Row]) -> RowRewards:
        prompts, completions, references = zip(*rows, strict=True)
        return rewards_of_rows(
            self._judge.get(),
            keys,
            prompts,
            completions,
            references=None if self._reference is None else references,
            **self._settings,
        )


class GroupReward(_Reward):
    """A reward function of `group_reward`."""

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float | None]:
        """Rewards of rows, as TRL asks for them."""
        return self._answer(self._read(prompts, completions, columns))


class AsyncGroupReward(_Reward):
    """A reward function of `group_reward` that is a coroutine function."""

    async def __call__(
        self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any
    ) -> list[float | None]:
        """Rewards of rows, as TRL asks for them."""
        return await asyncio.to_thread(self._answer, self._read(prompts, completions, columns))
