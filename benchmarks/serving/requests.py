"""What the servers are asked, and what their answers say."""

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, count
from pathlib import Path
from typing import Any, NamedTuple

from gram_fast import PairwiseJudge
from gram_fast.text.tokens import PairTokenizer

PROMPTS, RESPONSES = 24, 8
PROMPT_WORDS, RESPONSE_WORDS = 60, 40
WORDS = Path(__file__).read_text("utf-8").split()
PROSE = re.findall(r"[A-Za-z]+", (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8"))

Request = tuple[str, dict[str, Any]]
"""Path and body."""
Orders = tuple[float, float]
"""P(first of a pair better), with it in slot A and with it in slot B."""


class Pair(NamedTuple):
    """Two responses to a prompt."""

    prompt: str
    a: str
    b: str


def groups_of(seed: int | str, words: Sequence[str] = WORDS) -> list[tuple[str, list[str]]]:
    """Prompts with their responses."""
    rng = random.Random(seed)

    def text(most: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(most // 2, most)))

    return [(text(PROMPT_WORDS), [text(RESPONSE_WORDS) for _ in range(RESPONSES)]) for _ in range(PROMPTS)]


def pairs_of(groups: Sequence[tuple[str, list[str]]], rng: random.Random) -> Iterator[Request]:
    """Comparisons of two random responses to a random prompt, without end."""
    while True:
        prompt, responses = rng.choice(groups)
        a, b = rng.sample(responses, 2)
        yield "/v1/compare", {"prompt": prompt, "a": a, "b": b}


def new_pairs(seed: str) -> Iterator[Pair]:
    """All pairs of a prompt's responses, in any order, then those of the next prompt, without end: rankings by hand.

    None comes again: its answer would come out of a cache, and nobody asks for a pair twice.
    """
    rng = random.Random(seed)
    for number in count():
        for prompt, responses in groups_of(f"{seed} {number}", PROSE):
            pairs = list(combinations(rng.sample(responses, len(responses)), 2))
            rng.shuffle(pairs)
            yield from (Pair(prompt, a, b) for a, b in pairs)


def mixed(groups: Sequence[tuple[str, list[str]]], rng: random.Random) -> Iterator[Request]:
    """Requests of all kinds, small and large, without end."""
    for pair in pairs_of(groups, rng):
        prompt, responses = rng.choice(groups)
        some = rng.sample(responses, rng.randint(2, RESPONSES))
        yield rng.choice(
            [
                pair,
                pair,
                ("/v1/rank", {"prompt": prompt, "responses": some}),
                ("/v1/best_of_n", {"prompt": prompt, "responses": some}),
                ("/v1/rewards", {"prompts": [prompt] * 2, "groups": [some, responses[:2]]}),
                ("/rerank", {"query": prompt, "documents": some}),
            ]
        )


def numbers_in(path: str, answer: Any) -> list[float]:
    """What an answer says, in the order of the request."""
    if path == "/v1/compare":
        return [answer["p"]]
    if path == "/v1/rewards":
        return [value for group in answer["rewards"] for value in group]
    if path == "/rerank":
        return [result["relevance_score"] for result in sorted(answer["results"], key=lambda r: r["index"])]
    return list(answer["scores"])


def expected_of(judge: PairwiseJudge, path: str, body: dict[str, Any]) -> list[float]:
    """The same of a judge in this process."""
    if path == "/v1/compare":
        return [judge.compare(**body).p]
    if path == "/v1/rewards":
        return [value for group in judge.rewards(**body) for value in group]
    if path == "/v1/best_of_n":
        return list(judge.best_of_n(**body).scores)
    if path == "/rerank":
        from scipy.special import expit

        scores = judge.rank(body["query"], body["documents"], scores="bradley_terry").scores
        return [float(value) for value in expit(scores)]
    return list(judge.rank(**body).scores)


class Protocol(NamedTuple):
    """A way to ask for a pair in both orders."""

    ask: Callable[[Pair], Request]
    read: Callable[[Any], Orders]
    """What an answer says."""


def native() -> Protocol:
    """`/v1/compare` of `gram-fast serve`."""
    return Protocol(lambda pair: ("/v1/compare", pair._asdict()), lambda answer: (answer["p_ab"], answer["p_ba"]))


def scoring(tokenizer: PairTokenizer) -> Protocol:
    """`/generative_scoring`, vLLM's own protocol, as token ids, so that no server need encode text.

    The query is what both orders of a pair have in common, the judge's instruction and the prompt, and an item the rest
    of an order. vLLM finds what requests have in common by itself, wherever the query ends.
    """

    def ask(pair: Pair) -> Request:
        prompt, a, b = pair
        rows = [ids.tolist() for ids in tokenizer.whole_ids([(prompt, a, b), (prompt, b, a)])]
        common = next(k for k, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1)
        items = [row[common:] for row in rows]
        return "/generative_scoring", {
            "query": rows[0][:common],
            "items": items,
            "label_token_ids": list(tokenizer.label_ids),
        }

    def read(answer: Any) -> Orders:
        first, second = sorted(answer["data"], key=lambda of: of["index"])
        return first["score"], 1 - second["score"]

    return Protocol(ask, read)


class Asked:
    """Requests for pairs in a protocol, and what a server said of each."""

    def __init__(self, protocol: Protocol) -> None:
        self.answers: dict[Pair, Orders] = {}
        self._protocol = protocol
        self._pairs: dict[str, Pair] = {}

    def about(self, pairs: Iterator[Pair]) -> Iterator[Request]:
        """Requests for pairs, without end as these are."""
        for pair in pairs:
            request = self._protocol.ask(pair)
            self._pairs[json.dumps(request)] = pair
            yield request

    def note(self, request: Request, answer: Any) -> None:
        """Keeps what an answer says."""
        self.answers[self._pairs[json.dumps(request)]] = self._protocol.read(answer)
