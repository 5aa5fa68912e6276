"""ReasoningJudge: a pairwise judge that writes a rationale before its verdict."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gram_fast.errors import InputError, shown_value
from gram_fast.generating.options import ReasoningOptions, VerdictKind
from gram_fast.judge import PairwiseJudge
from gram_fast.models.options import JudgeOptions
from gram_fast.text.prompts import PairTemplate

if TYPE_CHECKING:
    from torch import nn


class ReasoningJudge(PairwiseJudge):
    """A judge that writes a rationale about each pair, and then its verdict (GRAM-R2, arXiv 2509.02492; GenRM).

    It does all that a PairwiseJudge does, at the cost of writing. An engine writes `votes` answers for a pair and
    order. The hard verdict is the majority of what they say; the soft one is the mean of P(i better than j) behind each
    rationale, which a second step reads from the logits of the two labels: of all answers at once, in a token tree. A
    preference's `reasoning` has the rationales and both; `stats` are ReasoningStats.
    """

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        engine: str | Sequence[str] = "transformers",
        votes: int = 1,
        adaptive: bool = False,
        verdict: VerdictKind = "soft",
        temperature: float | None = None,
        max_new_tokens: int | None = None,
        seed: int = 0,
        second_step: bool = True,
        api_key: str | None = None,
        timeout: float = 600.0,
        retries: int = 6,
        concurrency: int = 64,
        **judge_options: Any,
    ) -> "ReasoningJudge":
        """Loads a judge from a checkpoint, and the engine that writes.

        Args:
            name_or_path: as for `PairwiseJudge.from_pretrained`; with URLs also what the servers call the model.
            engine: "transformers", the model loaded here; "transformers-continuous", the same with transformers'
                continuous batching; "vllm", vLLM in this process; or the URL of an OpenAI-compatible server (vLLM,
                SGLang, llama.cpp), several of one model in a list, which are sent token ids.
            votes: answers for each pair and order, at least 1.
            adaptive: stop with a pair as soon as its majority cannot change any more. `stats.votes_saved` counts the
                answers that were not needed; the soft verdict is the mean over those that were.
            verdict: "soft" or "hard": which verdict is `p` of a preference. Ties of votes go by the soft one.
            temperature: of drawing tokens, at least 0, above 0 with more than one vote; None: as the checkpoint's
                generation configuration says.
            max_new_tokens: most tokens of an answer; one that is cut has no hard verdict, but a soft one. None: 2,048,
                or half of what the model allows where that is less. A pair may have so many tokens less.
            seed: of all answers, at least 0; the same seed gives the same answers to a pair, whatever else is asked,
                where the engine can promise that ("transformers" does, but for rounding).
            second_step: False: no model beside an engine that has its own; the soft verdict comes from the log
                probabilities that it gives with its answers, so that one without verdict has none.
            api_key: of the servers.
            timeout: seconds that one request may take.
            retries: tries of a request after the first, on other servers where there are several.
            concurrency: most requests that are under way at the servers.
            judge_options: preset, device, dtype and all others of `PairwiseJudge.from_pretrained`.

        Raises:
            InputError: as `PairwiseJudge.from_pretrained`, and a preset without an answer prefix under the soft
                verdict, fewer than one vote, several without a temperature above 0, more new tokens than the model has.
            BackendError: an engine that is not there or not installed; else as `PairwiseJudge.from_pretrained`.
            ServerError: a server that cannot be reached, lacks the model or speaks another protocol.
        """
        options = ReasoningOptions(
            engine=engine,
            votes=votes,
            adaptive=adaptive,
            verdict=verdict,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
            second_step=second_step,
            api_key=api_key,
            timeout=timeout,
            retries=retries,
            concurrency=concurrency,
        )
        judge = JudgeOptions(**judge_options)
        if not isinstance(name_or_path, str | PathLike):
            raise InputError(f"name_or_path: expected a folder or a name on the hub, got {shown_value(name_or_path)}")
        from gram_fast.generating.loading import load_reasoning_comparer  # here, as it imports torch and transformers

        comparer = load_reasoning_comparer(str(name_or_path), judge, options)
        return cls(comparer, include_reasoning=judge.include_reasoning)

    @classmethod
    def from_model(
        cls,
        model: "nn.Module",
        tokenizer: Any,
        *,
        votes: int = 1,
        adaptive: bool = False,
        verdict: VerdictKind = "soft",
        temperature: float | None = None,
        max_new_tokens: int | None = None,
        seed: int = 0,
        preset: str = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        attention: str = "auto",
        max_batch_tokens: int | Literal["auto"] = "auto",
        max_length: int | None = None,
        include_reasoning: bool = False,
    ) -> "ReasoningJudge":
        """Makes a judge from a transformers model, which stays the caller's, and its tokenizer.

        Arguments and errors as for `from_pretrained` and `PairwiseJudge.from_model`.
        """
        options = ReasoningOptions(
            votes=votes,
            adaptive=adaptive,
            verdict=verdict,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        judge = JudgeOptions(
            preset=preset,
            chat_template_kwargs=chat_template_kwargs,
            attention=attention,
            max_batch_tokens=max_batch_tokens,
            max_length=max_length,
            include_reasoning=include_reasoning,
        )
        from gram_fast.generating.loading import reasoning_comparer_of_model

        comparer = reasoning_comparer_of_model(model, tokenizer, judge, options)
        return cls(comparer, include_reasoning=include_reasoning)

    @classmethod
    def from_server(
        cls,
        url: str | Sequence[str],
        model: str,
        *,
        preset: str = "gram-r2",
        votes: int = 1,
        adaptive: bool = False,
        verdict: VerdictKind = "soft",
        temperature: float | None = None,
        max_new_tokens: int | None = None,
        seed: int = 0,
        api_key: str | None = None,
        timeout: float = 600.0,
        retries: int = 6,
        concurrency: int = 64,
        include_reasoning: bool = False,
    ) -> "ReasoningJudge":
        """Makes a judge of a model behind an OpenAI-compatible server, or several; nothing of the model is loaded here.

        The server is sent user messages, which its own chat template frames, so that special tokens in a text may be
        what they say to the model; with a checkpoint here, `from_pretrained(..., engine=url)` sends token ids. The soft
        verdict comes from the log probabilities that the server gives with its answers.

        Args:
            url: base URL of a server, or several of one model.
            model: the server's name for it.
            preset: the judge's prompt, a preset or a preset file.
            votes: as for `from_pretrained`, like all others.
        """
        options = ReasoningOptions(
            engine=url,
            votes=votes,
            adaptive=adaptive,
            verdict=verdict,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
            second_step=False,
            api_key=api_key,
            timeout=timeout,
            retries=retries,
            concurrency=concurrency,
        )
        if not options.urls:
            raise InputError(f"url: expected http://HOST:PORT, or several, got {shown_value(url)}")
        from gram_fast.generating.loading import comparer_of_server

        comparer = comparer_of_server(model, PairTemplate.load(preset), options)
        return cls(comparer, include_reasoning=include_reasoning)
