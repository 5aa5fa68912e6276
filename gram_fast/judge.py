"""The public API: a pairwise judge that compares, ranks and rewards responses."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gram_fast.comparing.comparer import Comparer
from gram_fast.comparing.modes import Mode, in_mode
from gram_fast.comparing.orders import Orders, check_orders
from gram_fast.errors import InputError, shown_value
from gram_fast.models.options import JudgeOptions
from gram_fast.ranking.packed import DUEL, compare_groups, no_ranking, rank_groups, select, verify_groups
from gram_fast.ranking.play import fitting, play
from gram_fast.ranking.rejudging import second_stage
from gram_fast.ranking.rewards import Duplicates, RewardsName, find_rule, reward_groups
from gram_fast.ranking.scores import ScoresName, find_scores
from gram_fast.ranking.tournament import BOTH_WAYS, StrategyName, find_strategy, warn_of_all_pairs
from gram_fast.results import (
    Comparison,
    Comparisons,
    PreferenceMatrix,
    Ranking,
    Rewards,
    Selection,
    Stats,
    Verification,
)
from gram_fast.text.arguments import OnError, read_groups, read_pairs, read_responses
from gram_fast.text.group import Group, Names
from gram_fast.text.messages import Prompt

if TYPE_CHECKING:
    import torch
    from torch import nn


class PairwiseJudge:
    """A generative pairwise reward model that compares, ranks and rewards responses (GRAM, arXiv 2506.14175).

    Prompts and responses are strings or lists of chat messages. A judge keeps the keys and values of its instruction
    across calls. It may be called from several threads: calls on one device take turns, and small ones that wait at the
    same time are scored together. Nothing else may run the model while a call does. `gram_fast.to_thread` awaits a
    call. What is pickled of a judge is how `from_pretrained` loaded it, its `token` too; a deep copy shares the model.
    """

    def __init__(self, comparer: Comparer, *, include_reasoning: bool = False) -> None:
        """Makes a judge from a comparer; `from_pretrained` and `from_model` make one from a model.

        `include_reasoning`: the judge reads the reasoning in chat messages too. Raises InputError on something
        that is no comparer, such as a model.
        """
        if not hasattr(comparer, "open"):
            kind = type(comparer).__name__
            raise InputError(f"comparer: expected a Comparer (of a model: PairwiseJudge.from_model), got {kind}")
        self.comparer = comparer
        self.include_reasoning = include_reasoning

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.comparer!r}{', include_reasoning=True' if self.include_reasoning else ''})"

    @property
    def max_length(self) -> int:
        """Most tokens of one presentation, the judge's prompt included."""
        return self.comparer.max_length

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: "str | torch.device | Sequence[str | torch.device]" = "auto",
        dtype: "str | torch.dtype" = "auto",
        preset: str = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tokenizer: str | None = None,
        runner: str = "auto",
        attention: str = "auto",
        products: str = "auto",
        quantization: str | None = None,
        max_batch_tokens: int | Literal["auto"] = "auto",
        max_length: int | None = None,
        deterministic: bool = False,
        tensor_parallel: bool = False,
        include_reasoning: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        trust_remote_code: bool = False,
    ) -> "PairwiseJudge":
        """Loads a judge from a folder, a file or the Hugging Face hub.

        Args:
            name_or_path: a causal language model in transformers' format, an adapter of peft on one, or a `.gguf` file,
                with a tokenizer that has a chat template. "small", where there is no such folder, is SMALL_JUDGE.
            device: "auto" (CUDA where there is a GPU, else the CPU) or a torch device; or several of one kind,
                "cuda:all", a list or "cuda:0,cuda:2". Each then holds the whole model and takes its share of every
                call's groups, none of which is divided. The CPU may be named twice, to try it.
            dtype: "auto" (float32 on the CPU, the checkpoint's own on CUDA), a torch dtype or its name.
            preset: the judge's prompt: "auto" (what the checkpoint records, else `gram`), a name from
                `gram_fast.preset_names()` or the path of a preset file (docs/prompts.md). It must be the prompt that
                the checkpoint was trained with.
            chat_template_kwargs: variables of the checkpoint's chat template, such as {"date_string": "26 Jul 2024"};
                beside those that the checkpoint records, and before them.
            tokenizer: a folder or a name on the hub whose tokenizer, with its chat template, is used in place of the
                checkpoint's own, as `-bm` of GRAM's scripts does. `revision` is not that of its repository.
            runner: "dense" (Llama, Qwen2, Qwen3 and Mistral, by this package's own model), "transformers" (others,
                by transformers' own code, docs/families.md) or "auto": dense where possible; the choice is logged.
            attention: "auto" or one of `gram_fast.ops.BACKENDS["tree_attention"]`.
            products: matrix products of runner "dense": "auto" (on a CPU oneDNN's, with weights packed for it),
                "torch", "onednn", or on CPUs with AMX "split": float32 by three products of bfloat16, faster and a
                little less exact (docs/performance.md).
            quantization: None, or "fp8": products of FP8 numbers (docs/design/running.md), half the memory of 16-bit
                weights; less exact than bfloat16 (docs/performance.md). Needs runner "dense" and on CUDA bfloat16, and
                is not for `deterministic`. Checkpoints that are stored as FP8 run in `dtype` without it.
            max_batch_tokens: most tokens of one forward; bounds the memory of activations, keys and values. "auto"
                chooses by device. Halved, with a warning, when memory runs out.
            max_length: most tokens of one presentation, at most (and by default) what the checkpoint allows.
            deterministic: a pair's logits have the same bits whatever other pairs are in the call, in any order and
                under any `max_batch_tokens`, on one machine and number of threads. Needs runner "dense" and costs time
                (docs/performance.md).
            tensor_parallel: divides one model among the processes that torchrun started, for a checkpoint that does
                not fit one GPU; each takes the GPU of its local rank. All processes must make the same calls and get
                the same results. Needs runner "dense".
            include_reasoning: the judge reads the reasoning in chat messages (`reasoning_content`, `reasoning`,
                `thinking`) too; else it is left out, which `flagged` says (docs/prompts.md).
            revision: as in transformers.
            token: as in transformers.
            trust_remote_code: as in transformers.

        Raises:
            InputError: unknown checkpoint, preset or dtype; a checkpoint that is broken, lacks weights or holds two
                sets of them; no device in a list, one GPU twice, or CPU and GPU together.
            UnsupportedModelError: no tokenizer or chat template, a label of several tokens, or an architecture that
                cannot be scored exactly. Every judge is checked when it is made, on a pair whose logits are compared
                with those of a plain forward (of the reference ops with runner "dense").
            NumericalError: the model's own logits on that pair are not finite, by its weights or by the dtype.
            BackendError: a device, runner, attention backend or product that is not available, or an adapter without
                peft.
        """
        options = JudgeOptions(
            preset=preset,
            chat_template_kwargs=chat_template_kwargs,
            tokenizer=tokenizer,
            device=device,
            dtype=dtype,
            runner=runner,
            attention=attention,
            products=products,
            quantization=quantization,
            max_batch_tokens=max_batch_tokens,
            max_length=max_length,
            deterministic=deterministic,
            tensor_parallel=tensor_parallel,
            include_reasoning=include_reasoning,
            revision=revision,
            token=token,
            trust_remote_code=trust_remote_code,
        )
        if not isinstance(name_or_path, str | PathLike):
            raise InputError(f"name_or_path: expected a folder or a name on the hub, got {shown_value(name_or_path)}")
        from gram_fast.comparing.loading import load_comparer  # here, as it imports torch and transformers

        return cls(load_comparer(str(name_or_path), options), include_reasoning=include_reasoning)

    @classmethod
    def from_model(
        cls,
        model: "nn.Module",
        tokenizer: Any,
        *,
        preset: str = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        attention: str = "auto",
        max_batch_tokens: int | Literal["auto"] = "auto",
        max_length: int | None = None,
        include_reasoning: bool = False,
    ) -> "PairwiseJudge":
        """Makes a judge from a transformers model, on its device, and its tokenizer.

        The model stays the caller's: a call runs it in eval mode and leaves it as it was, and between calls it may be
        trained or get another adapter; so each call computes the judge's instruction anew. Of a model of peft or of
        torch.compile, the model inside is taken. Arguments and errors as for `from_pretrained`; InputError on another
        wrapper and UnsupportedModelError on divided weights, learned prompts and compiled layers, too.
        """
        options = JudgeOptions(
            preset=preset,
            chat_template_kwargs=chat_template_kwargs,
            attention=attention,
            max_batch_tokens=max_batch_tokens,
            max_length=max_length,
            include_reasoning=include_reasoning,
        )
        from gram_fast.comparing.loading import comparer_of_model

        return cls(comparer_of_model(model, tokenizer, options), include_reasoning=include_reasoning)

    def compare(self, prompt: Prompt, a: Prompt, b: Prompt, orders: Orders = "both", mode: Mode = "full") -> Comparison:
        """Compares two responses; `p` of the result is P(a better than b).

        Args:
            prompt: the prompt that the responses answer.
            a: a response.
            b: another response.
            orders: a in slot A ("ab"), b in slot A ("ba"), or the mean of both ("both").
            mode: "full", the second response is read after the first, or "factored", each by itself, so that many
                comparisons cost little more than reading every response twice. For "factored" the checkpoint must have
                been trained (docs/design/factored.md); that of others is an InputError that names the command.

        Raises InputError on an argument that is not text and on a pair over `max_length` tokens, NumericalError when
        the model returns NaN or infinity.
        """
        group = Group.of(prompt, [a, b], Names(candidate="ab".__getitem__), include_reasoning=self.include_reasoning)
        return compare_groups([group], in_mode(self.comparer, mode), orders)[0]

    def compare_many(
        self,
        prompts: Sequence[Prompt],
        pairs: Sequence[Sequence[Prompt]],
        orders: Orders = "both",
        on_error: OnError = "raise",
        mode: Mode = "full",
    ) -> Comparisons:
        """Compares the two responses of many pairs, packed together -> one result per pair, as from `compare`.

        Args:
            prompts: one for each pair; a prompt that several pairs share is computed once (at most once per device).
            pairs: (a, b), the two responses of each pair.
            orders: as for `compare`.
            on_error: "raise", or "none": a pair that cannot be judged, as of no text or too long, is None, with a
                reason in `errors`.
            mode: as for `compare`.

        The `stats` of every result are those of the whole call. Raises errors like `compare`; their message names
        the pair.
        """
        comparer = in_mode(self.comparer, mode)
        batch = read_pairs(prompts, pairs, on_error, self.include_reasoning)
        batch = fitting(batch, comparer, on_error, DUEL, orders)
        found = compare_groups(batch.groups, comparer, orders)
        stats = found[0].stats if found else Stats(comparisons=0, seconds=0.0)
        return Comparisons(batch.restored(found, lambda size: None), errors=batch.errors, stats=stats)

    def matrix(
        self, prompt: Prompt, responses: Sequence[Prompt], orders: Orders = "both", mode: Mode = "full"
    ) -> PreferenceMatrix:
        """Compares all responses with each other -> float64 [C, C], entry (i, j) = P(response i better than j).

        With one order the row's response stands in slot A ("ab") or B ("ba"), so that (i, j) and (j, i) need not sum to
        1; the difference is the judge's position bias. Equal responses have 0.5. `mode` as for `compare`. Raises errors
        like `rank`, on any response that cannot be judged.
        """
        check_orders(orders)
        group = Group.of(prompt, responses, include_reasoning=self.include_reasoning)
        count = len(group.texts)
        strategy = find_strategy("round_robin") if orders == "both" else BOTH_WAYS
        outcome = play([group], strategy, in_mode(self.comparer, mode), orders)
        p = np.full((count, count), 0.5)
        for c in outcome.comparisons[0]:
            p[c.i, c.j] = c.p
            if orders == "both":
                p[c.j, c.i] = 1 - c.p
        flags = group.flags(self.comparer.flags)
        return PreferenceMatrix.wrap(p[np.ix_(group.text_of, group.text_of)], flags, outcome.stats)

    def rank(
        self,
        prompt: Prompt,
        responses: Sequence[Prompt],
        strategy: StrategyName = "round_robin",
        orders: Orders = "both",
        scores: ScoresName = "auto",
        seed: int = 0,
        k: int | None = None,
        on_error: OnError = "raise",
        mode: Mode = "full",
        rejudge: int | None = None,
    ) -> Ranking:
        """Ranks two or more responses.

        Args:
            prompt: the prompt that the responses answer.
            responses: the candidates; equal ones are scored once and share a score.
            strategy: "round_robin" (all pairs), "opponents" (each against `k` others), "sort" (merge sort), "top_k"
                (the best `k` in order), "knockout", "knockouts" (`k` of them), "linear" (the running best against the
                next) or "reference" (all against the first); see docs/ranking.md.
            orders: "both", or one order at half the cost and with the judge's position bias.
            scores: "win_rate", "bradley_terry", "margin", "points" or "rank" (docs/ranking.md), or "auto": win rate for
                "round_robin", Bradley-Terry elsewhere.
            seed: draws brackets, and who meets whom of "opponents"; at least 0. The same seed gives the same ranking.
            k: places that "top_k" decides (at least 1), opponents of each response (at least 2) or knockouts (at least
                1); where there are fewer responses, all places and all opponents.
            on_error: "raise", or "none": a response that cannot be judged scores None and is left out of `order`, with
                a reason in `errors`; the others are ranked as if it had not been given. That is one that is no text
                (None, no messages, an image; an empty string is text), and the longest of those that `strategy` may
                show in a pair over `max_length` tokens, until all others fit. With fewer than two others, or without
                a prompt, nothing is ranked: `best` is None.
            mode: as for `compare`.
            rejudge: with mode "factored", how many of the best (at least 2) are compared again in mode "full", all with
                each other: these come first, in the order of their win rates there. Scores stay those of the first
                stage; `mode` of each comparison says which stage it is of.

        What a strategy decided comes first whatever the scores: the winner of "knockout" and "linear", the best `k` of
        "top_k", all of "sort". The others follow by score, ties by number. Raises InputError on fewer than two
        responses, on an unknown option, and on arguments that are not text and pairs over `max_length` tokens, of
        which it names all; NumericalError when the model returns NaN or infinity.
        """
        found, score = find_strategy(strategy, k), find_scores(scores, strategy)
        comparer, second = in_mode(self.comparer, mode), second_stage(self.comparer, mode, rejudge)
        batch = read_responses(prompt, responses, on_error, self.include_reasoning)
        batch = fitting(batch, comparer, on_error, found, orders, seed)
        if second is not None:  # compares any two, also those that the strategy keeps apart
            batch = fitting(batch, second.comparer, on_error, find_strategy("round_robin"), orders)
        if mode == "full":
            warn_of_all_pairs(strategy, [len(group.texts) for group in batch.groups])
        rankings = rank_groups(batch.groups, comparer, found, score, orders, seed, second)
        return replace(batch.restored(rankings, no_ranking)[0], errors=batch.errors)

    def verify(self, prompt: Prompt, responses: Sequence[Prompt]) -> Verification:
        """Verifies responses one by one -> P(the response is right) of each, of a template's first label: "Yes".

        The judge's prompt must show one response (`preset="verifier"`, or a template with {response}). Raises
        InputError where it shows a pair, on no response, on an argument that is not text and on a text over
        `max_length` tokens; NumericalError when the model returns NaN or infinity.
        """
        group = Group.of(prompt, responses, at_least=1, include_reasoning=self.include_reasoning)
        return verify_groups([group], self.comparer)[0]

    def best_of_n(
        self,
        prompt: Prompt,
        responses: Sequence[Prompt],
        strategy: StrategyName = "knockout",
        orders: Orders = "both",
        scores: ScoresName = "auto",
        seed: int = 0,
        mode: Mode = "full",
        rejudge: int | None = None,
    ) -> Selection:
        """Chooses the best of two or more responses. Arguments and errors as for `rank`.

        A response that cannot be judged is an error; `best` of `rank` with `on_error="none"` is that of the others.
        """
        ranking = self.rank(prompt, responses, strategy, orders, scores, seed, mode=mode, rejudge=rejudge)
        return select(ranking, list(responses))

    def rewards(
        self,
        prompts: Sequence[Prompt],
        groups: Sequence[Sequence[Prompt]],
        references: Sequence[Prompt] | None = None,
        strategy: StrategyName | None = None,
        orders: Orders = "both",
        scores: RewardsName = "auto",
        seed: int = 0,
        k: int | None = None,
        duplicates: Duplicates = "merged",
        on_error: OnError = "raise",
        mode: Mode = "full",
    ) -> Rewards:
        """Computes one reward per candidate for a batch of prompts with groups of any size, packed together.

        Args:
            prompts: one for each group.
            groups: candidates, two or more a group (one or more with `references`).
            references: one response for each prompt. Every candidate is then compared with its reference alone, as in
                GRAM's PPO recipe (arXiv 2506.14175), and `strategy` is left out.
            strategy: as for `rank`; the default, "round_robin", makes a reward the win rate in its group, in [0, 1].
            orders: as for `rank`.
            scores: as for `rank`. With references "probability" (and "auto"), P(candidate better than reference) in
                [0, 1], or "margin", the logit for the candidate less that for the reference.
            seed: as for `rank`.
            k: as for `rank`.
            duplicates: equal candidates of a group share a reward and are compared once. "merged": they are one
                candidate to the others, whose rewards do not depend on how often it occurs. "counted": each is an
                opponent of all others, and of the equal ones in a draw.
            on_error: "raise", or "none": a candidate that cannot be judged, as for `rank`, has the reward None and a
                reason in `errors`; the others have the rewards that they would have without it. All of a group have
                None where fewer than two are left (one with `references`), or where its prompt or reference is bad.
            mode: as for `compare`.

        The mean of win rates over a group is exactly 0.5 where all candidates have the same number of comparisons, as
        in a round robin of candidates that differ, or that are counted (docs/rewards.md has the other scores). Raises
        errors like `rank`; their message names the group. Lists of different lengths are always an error.
        """
        rule = find_rule(strategy, scores, k, duplicates, references is not None)
        batch = read_groups(prompts, groups, references, on_error, self.include_reasoning)
        comparer = in_mode(self.comparer, mode)
        batch = fitting(batch, comparer, on_error, rule.strategy, orders, seed)
        if references is None and mode == "full":
            warn_of_all_pairs(strategy or "round_robin", [len(group.texts) for group in batch.groups])
        return reward_groups(batch, comparer, rule, orders, seed)
