"""A comparer behind a server: tournaments are played here, and each round of pairs is one request."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from gram_fast.comparing.comparer import Answers, Pair, Pairs, Reload, Rounds
from gram_fast.comparing.modes import Mode
from gram_fast.comparing.orders import Orders
from gram_fast.comparing.replicas import Replicas
from gram_fast.errors import InputError, ServerError, shown_value
from gram_fast.judge import PairwiseJudge
from gram_fast.remote.connection import Connection
from gram_fast.results import ForwardStats, Preference, Stats, total_stats
from gram_fast.scoring.stops import StoppedError, stop_of_call
from gram_fast.text.chat_marks import flags_of
from gram_fast.text.digest import digest
from gram_fast.text.group import Group


def from_server(
    url: str,
    *,
    api_key: str | None = None,
    timeout: float = 600.0,
    retries: int = 6,
    include_reasoning: bool = False,
    replicas: int | None = None,
) -> PairwiseJudge:
    """Makes a judge of a server that `gram-fast serve` runs; it does all that a judge in this process does.

    Args:
        url: of the server, "http://HOST:PORT".
        api_key: one of its keys, where it has some.
        timeout: seconds that one request may take, of which a call with several rounds has several.
        retries: tries of a request after the first, where the server is busy or cannot be reached; with the waits
            between them, six take about half a minute.
        include_reasoning: as for `PairwiseJudge.from_pretrained`; texts are made of messages here.
        replicas: of the server; None: as many as it says. With more than one, a call has a request for each prompt, of
            which several for each replica are under way at once.

    Raises InputError on a wrong argument or key, and ServerError where the server is not there or is another.
    """
    if replicas is not None and (type(replicas) is not int or replicas < 1):
        raise InputError(f"replicas: expected an integer of at least 1, got {shown_value(replicas)}")
    connection = Connection(url, api_key, timeout, retries)
    info = connection.get("/info")
    make = partial(
        from_server,
        url,
        api_key=api_key,
        timeout=timeout,
        retries=retries,
        include_reasoning=include_reasoning,
        replicas=replicas,
    )
    try:
        number = replicas or int(info["replicas"])
        comparer = RemoteComparer(
            connection,
            str(info["model_id"]),
            int(info["max_input_length"]),
            int(info["max_batch_tokens"]),
            bool(info["verifies"]),
            tuple(map(str, info["markers"])),
            Portion(
                int(info["max_client_batch_size"]),
                int(info["max_comparisons"]),
                int(info["max_body_bytes"]),
                has_one_prompt=number > 1,
            ),
            make,
        )
    except (KeyError, TypeError, ValueError):
        raise ServerError(f"{connection.url}/info: expected what a gram-fast server of this version says") from None
    at_once = _AT_ONCE * number
    several = Replicas([comparer] * at_once, partial(_comparer_of, make)) if number > 1 else comparer
    return PairwiseJudge(several, include_reasoning=include_reasoning)


T = TypeVar("T")
# Requests under way for each replica. Which has a prompt is a matter of chance: with one each, of 8 replicas 3 had
# nothing to do.
_AT_ONCE = 4
_PLACE = re.compile(r"groups\[\d+\]\[\d+\]|prompts\[\d+\]")
"""The server's names of texts."""


@dataclass(frozen=True, repr=False)
class RemoteComparer:
    """Compares what a server's judge compares."""

    connection: Connection
    name: str
    """The server's name for its model."""
    max_length: int
    tokens_at_once: int
    verifies: bool
    markers: tuple[str, ...]
    portion: "Portion"
    make: Any
    """Makes the judge of this comparer anew: what it is pickled as."""
    mode: Mode = "full"
    """How the server is to read pairs."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.connection.url!r}, {self.name!r})"

    def __reduce__(self) -> tuple[Reload, tuple[()]]:
        return partial(_comparer_of, self.make), ()

    def __deepcopy__(self, memo: object) -> "RemoteComparer":
        """The comparer itself, whose connection any number of threads may use."""
        return self

    def flags(self, text: str) -> tuple[str, ...]:
        """Finds the lines of the judge's template, its special tokens and marks of chats in a text."""
        return flags_of(text, self.markers)

    def in_mode(self, mode: Mode) -> "RemoteComparer":
        """The comparer of the same server in another mode; the server says where its judge was not trained for it."""
        return replace(self, mode=mode)

    def unfit(self, groups: Sequence[Group], pairs: Sequence[Pairs], orders: Orders) -> dict[str, str]:
        """Asks the server what it could not compare, as in `Comparer`."""
        rounds = {g: of_group.tolist() for g, of_group in enumerate(pairs) if len(of_group)}
        reasons: dict[str, str] = {}
        for part in self.portion.divide(groups, rounds):
            asked = _Asked.of(groups, part)
            reasons |= asked.renamed(
                _told(self.connection.post("/v1/unfit", asked.body(orders, self.mode)), "reasons", dict)
            )
        return reasons

    @contextmanager
    def open(
        self, groups: Sequence[Group], orders: Orders, *, num_pairs: Sequence[int], has_one_round: bool
    ) -> "Iterator[RemoteSession]":
        """Opens a call; nothing is sent before its first round."""
        yield RemoteSession(self, groups, orders)


def _comparer_of(make: Any) -> Any:
    return make().comparer


@dataclass
class RemoteSession:
    """One call, with its rounds."""

    comparer: RemoteComparer
    groups: Sequence[Group]
    orders: Orders
    started: float = field(default_factory=time.perf_counter)
    costs: list[Stats] = field(default_factory=list)

    def compare(self, rounds: Rounds) -> Answers:
        """Asks for all pairs, in one request or in as many as the server's limits want. Raises as `Connection.post`."""
        answers: dict[int, list[Preference]] = {}
        for part in self.comparer.portion.divide(self.groups, rounds):
            if stop_of_call()():
                raise StoppedError("the call was stopped before its next request")
            answers |= self._compare(part)
        return answers

    def _compare(self, rounds: Rounds) -> dict[int, list[Preference]]:
        asked = _Asked.of(self.groups, rounds)
        # The replica that has read a prompt is asked about it again.
        session = digest([*dict.fromkeys(group.prompt for group in asked.groups)])
        try:
            answer = self.comparer.connection.post("/v1/pairs", asked.body(self.orders, self.comparer.mode), session)
        except InputError as error:
            raise InputError.of(asked.renamed(error.reasons)) if error.reasons else error from None
        rows, cost = _told(answer, "preferences", list), _told(answer, "stats", dict)
        try:
            self.costs.append(ForwardStats(**cost) if "passes" in cost else Stats(**cost))
            if len(rows) != len(asked.pairs):
                raise ValueError
            left = iter(rows)
            mode = self.comparer.mode
            return {g: [_preference(i, j, *next(left), mode=mode) for i, j in pairs] for g, pairs in rounds.items()}
        except (TypeError, ValueError):
            raise ServerError(f"{self.comparer.connection.url}/v1/pairs: expected one preference a pair") from None

    @property
    def stats(self) -> Stats:
        """Cost of the requests so far, which the server counts; `seconds` are the wall time here."""
        seconds = time.perf_counter() - self.started
        return total_stats(self.costs, seconds) if self.costs else Stats(comparisons=0, seconds=seconds)


@dataclass(frozen=True)
class Portion:
    """What one request to a server may ask."""

    texts: int
    presentations: int
    body_bytes: int
    has_one_prompt: bool
    """Whether a request is of one prompt alone, which goes to the replica that has read it."""

    def divide(self, groups: Sequence[Group], rounds: Rounds) -> Iterator[Rounds]:
        """Divides rounds into parts of whole groups; one that is too much by itself is a part of its own."""
        part: dict[int, Sequence[Pair]] = {}
        used, prompt = [0, 0, 0], ""
        for g, pairs in rounds.items():
            texts = {text for pair in pairs for text in pair}
            characters = len(groups[g].prompt) + sum(len(groups[g].texts[text]) for text in texts)
            # JSON takes at most six bytes of a character, and a pair some more.
            needed = [len(texts), 2 * len(pairs), 6 * characters + 64 * (len(pairs) + len(texts) + 1)]
            limits = (self.texts, self.presentations, self.body_bytes)
            is_full = any(u + n > most for u, n, most in zip(used, needed, limits, strict=True))
            if part and (is_full or (self.has_one_prompt and groups[g].prompt != prompt)):
                yield part
                part, used = {}, [0, 0, 0]
            prompt = groups[g].prompt
            part[g], used = pairs, [u + n for u, n in zip(used, needed, strict=True)]
        if part:
            yield part


@dataclass(frozen=True)
class _Asked:
    """Pairs as a request has them: of the groups that have some, and of those the texts that are compared."""

    groups: list[Group]
    texts: list[list[int]]
    """Of each group the numbers of its texts that are sent."""
    pairs: list[tuple[int, int, int]]
    """Number of the group among these, and of both texts among those that are sent."""

    @classmethod
    def of(cls, groups: Sequence[Group], rounds: Mapping[int, Sequence[Sequence[int]]]) -> "_Asked":
        found = cls([], [], [])
        for number, (g, pairs) in enumerate(rounds.items()):
            place = {text: k for k, text in enumerate(sorted({text for pair in pairs for text in pair}))}
            found.groups.append(groups[g])
            found.texts.append(list(place))
            found.pairs.extend((number, place[i], place[j]) for i, j in pairs)
        return found

    def body(self, orders: Orders, mode: Mode) -> dict[str, Any]:
        """The body of the request; servers of earlier versions have no modes."""
        sent = [
            {"prompt": group.prompt, "texts": [group.texts[k] for k in texts], "has_reference": group.numbers[0] < 0}
            for group, texts in zip(self.groups, self.texts, strict=True)
        ]
        found = {"groups": sent, "pairs": self.pairs, "orders": orders}
        return found if mode == "full" else {**found, "mode": mode}

    def renamed(self, reasons: Mapping[str, str]) -> dict[str, str]:
        """Reasons under the caller's names; the server's are "groups[0][1]" and "prompts[0]"."""
        own: dict[str, list[str]] = {}
        for g, (group, texts) in enumerate(zip(self.groups, self.texts, strict=True)):
            own[f"prompts[{g}]"] = [group.prompt_name]
            for k, text in enumerate(texts):
                own[f"groups[{g}][{k}]"] = [
                    name for name, of in zip(group.names, group.text_of, strict=True) if of == text
                ]

        def name(place: "re.Match[str]") -> str:
            return own.get(place[0], [place[0]])[0]

        reasons = {place: _PLACE.sub(name, reason) for place, reason in reasons.items()}
        return {name: reason for place, reason in reasons.items() for name in own.get(place, [place])}


def _told(answer: Any, name: str, kind: type[T]) -> T:
    """A field of an answer. Raises ServerError where it has another form."""
    found = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(found, kind):
        raise ServerError(f"expected {name!r} in the answer of a gram-fast server, got {type(found).__name__}")
    return found


def _preference(
    i: int, j: int, p: float, margin: float, p_ab: float | None, p_ba: float | None, *, mode: Mode
) -> Preference:
    ab, ba = (None if value is None else float(value) for value in (p_ab, p_ba))
    return Preference(i, j, float(p), float(margin), ab, ba, mode=mode)
