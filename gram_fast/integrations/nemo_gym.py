"""Comparisons of a pairwise judge for NeMo-Gym, in the shapes of its resources server `genrm_compare`.

    # app.py of a resources server, in place of that of genrm_compare
    from gram_fast.integrations.nemo_gym import compare_server
    Server = compare_server("NiuTrans/GRAM-Qwen3-1.7B-RewardModel")
    if __name__ == "__main__":
        Server.run_webserver()

The shapes are those of NeMo-Gym 0.4.0 (resources_servers/genrm_compare/app.py): scores of 1 to 5 for the two responses
of a comparison, and a ranking of 1 (the first is much better) to 6. P(first better) is spread over both evenly: 0.5 is
3, 3 and 3.5, which are also the host's values for a comparison that failed. A reward is the mean of a response's
scores.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, pstdev
from typing import Any, Literal

from gram_fast import InputError, to_thread
from gram_fast.integrations.body import lists
from gram_fast.integrations.grouped import rewards_of_rows
from gram_fast.integrations.lazy import AnyJudge, LazyJudge
from gram_fast.integrations.metrics import metrics
from gram_fast.integrations.settings import check_settings
from gram_fast.integrations.unjudged import filled

logger = logging.getLogger(__name__)

Message = Mapping[str, Any]


def compare(judge: AnyJudge, body: Mapping[str, Any], *, default_score: float = 3.0, **settings: Any) -> dict[str, Any]:
    """Answers a request of `/compare`: all responses in one packed call -> the JSON of the response.

    Args:
        judge: a judge, or a folder or a name on the hub, which is loaded at the first call.
        body: {"conversation_history": messages, "response_objs": objects of OpenAI's Responses API, "principle": text
            or none}. The judge reads a principle as a message of the system before the conversation.
        default_score: reward of a response that cannot be judged: without a message, over-long, or alone. A warning has
            the reason.
        settings: arguments of `PairwiseJudge.rewards` but scores, such as strategy and orders.

    Returns "rewards", one for each response, in [1, 5]; "comparison_results" in the host's form, equal responses once;
    and "metrics" with its names and those of `metrics.py`. Raises InputError on a body of another form and on a
    wrong setting, and errors like `PairwiseJudge.rewards`.
    """
    if "scores" in settings:
        raise InputError("scores: expected none here, the host's scores of 1 to 5 are made of win rates")
    check_settings(settings, has_references=False)
    history, objects = lists(body, "conversation_history", "response_objs")
    texts = [output_text(found) for found in objects]
    prompt = prompt_of(history, body.get("principle"))
    rows = rewards_of_rows(
        LazyJudge.of(judge).get(), [0] * len(texts), [prompt] * len(texts), texts, scores="win_rate", **settings
    )
    scores = replace(rows, values=[None if value is None else score(value) for value in rows.values])
    results = [
        {"response_i": c.i, "response_j": c.j, "judge_idx": 0, **dict(zip(_NAMES, _scores(c.p), strict=True))}
        for group in rows.rewards.comparisons
        for c in group
    ]
    return {
        "rewards": filled(scores, [default_score] * len(texts), logger),
        "comparison_results": results or None,
        "metrics": {**_metrics(results), **metrics(rows.rewards)} if results else None,
    }


def compare_server(judge: AnyJudge, *, orders: Literal["ab", "ba", "both"] = "both") -> type[Any]:
    """Makes a class of resources servers: `genrm_compare` with this judge in place of a generative reward model.

    Pairs, cohorts of `/verify`, `/compare`, aggregation and its bonuses are the host's; each comparison is the judge's,
    in a thread. `orders`: as for `PairwiseJudge.compare`. A comparison that cannot be made (of a response without a
    message, or over-long) has the configuration's default score and ranking, as the host's own that fail; a warning
    has the reason. Raises InputError where NeMo-Gym is missing.
    """
    try:
        from resources_servers.genrm_compare.app import GenRMCompareResourcesServer
    except ImportError as error:
        raise InputError(
            f"nemo_gym: expected NeMo-Gym with its resources servers (pip install nemo-gym): {error}"
        ) from error
    lazy = LazyJudge.of(judge)

    class JudgeCompareServer(GenRMCompareResourcesServer):  # type: ignore[misc]
        """Compares responses with a pairwise judge in this process."""

        async def _run_single_comparison(
            self,
            conversation_history: Sequence[Message],
            response_obj_1: Any,
            response_obj_2: Any,
            pair_idx: tuple[int, int] = (0, 0),
            principle: str | None = None,
        ) -> tuple[float, float, float]:
            principle = (principle or self.config.default_principle) if self.config.use_principle else None
            prompt = prompt_of(conversation_history, principle)
            a: Any = output_text(response_obj_1)
            b: Any = output_text(response_obj_2)
            try:
                comparison = await to_thread(lambda: lazy.get().compare(prompt, a, b, orders))
            except InputError as error:
                logger.warning("comparison %s was not made: %s", pair_idx, error)
                return self.config.default_score, self.config.default_score, self.config.default_ranking
            return _scores(comparison.p)

    return JudgeCompareServer


_NAMES = ("score_1", "score_2", "ranking")


def _scores(p: float) -> tuple[float, float, float]:
    """Spreads P(first better) over the host's scales: two scores and a ranking."""
    return score(p), score(1 - p), 6 - 5 * p


def score(p: float) -> float:
    """P(better) in [0, 1] on the host's scale of 1 to 5."""
    return 1 + 4 * p


def _metrics(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    scores = [result[name] for result in results for name in ("score_1", "score_2")]
    ties = sum(result["score_1"] == result["score_2"] for result in results)
    return {
        "mean_individual_score": fmean(scores),
        "std_individual_score": pstdev(scores),
        "tiebreak_usage_rate": ties / len(results),
    }


def prompt_of(history: Sequence[Message], principle: str | None) -> list[Message]:
    """A conversation as the judge reads it, with a principle as a message of the system before it."""
    return [*([{"role": "system", "content": principle}] if principle else []), *history]


def output_text(response: Any) -> str | None:
    """The words of an object of the Responses API, without its reasoning; None where it has no message."""
    items = [item for item in _objects(response, "output") if item.get("type") == "message"]
    parts = [part for item in items for part in _objects(item, "content") if part.get("type") == "output_text"]
    texts = [part.get("text") for part in parts]
    return "".join(text for text in texts if isinstance(text, str)) if items else None


def _objects(holder: Any, key: str) -> list[Mapping[str, Any]]:
    """The objects of a list under a key; none where it holds no list."""
    found = holder.get(key) if isinstance(holder, Mapping) else None
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, Sequence) else []
