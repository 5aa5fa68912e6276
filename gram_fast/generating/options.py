"""Options of a judge that reasons, for `ReasoningJudge` and the command line."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from gram_fast.errors import BackendError, InputError, shown_value
from gram_fast.text.prompts import PairTemplate
from gram_fast.web import check_retries, check_timeout, check_url

VerdictKind = Literal["soft", "hard"]
"""Which of a pair's two verdicts is its p: see `Reasoning`."""

IN_PROCESS = ("transformers", "transformers-continuous", "vllm")
"""Names of the engines that run in this process; any other is the URL of a server."""

TOP_LOGPROBS = 20
"""Most likely tokens that an engine is asked for where it is to give the labels' probabilities: the most that vLLM and
OpenAI's own servers give by default."""

_SCHEMES = ("http://", "https://")


@dataclass(frozen=True, kw_only=True)
class ReasoningOptions:
    """Options of `ReasoningJudge.from_pretrained`, whose docstring explains each. Raises InputError on wrong ones."""

    engine: str | Sequence[str] = "transformers"
    votes: int = 1
    adaptive: bool = False
    verdict: VerdictKind = "soft"
    temperature: float | None = None
    max_new_tokens: int | None = None
    seed: int = 0
    second_step: bool = True
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 600.0
    retries: int = 6
    concurrency: int = 64

    def __post_init__(self) -> None:
        for name, least in (("votes", 1), ("max_new_tokens", 1), ("seed", 0), ("concurrency", 1)):
            value = getattr(self, name)
            if (value is not None or name != "max_new_tokens") and (type(value) is not int or value < least):
                raise InputError(f"{name}: expected an integer of at least {least}, got {shown_value(value)}")
        for name in ("adaptive", "second_step"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name}: expected True or False, got {shown_value(getattr(self, name))}")
        if self.verdict not in get_args(VerdictKind):
            raise InputError(f"verdict: expected 'soft' or 'hard', got {shown_value(self.verdict)}")
        self._check_temperature()
        self._check_engine()
        check_timeout(self.timeout)
        check_retries(self.retries)

    def _check_temperature(self) -> None:
        value = self.temperature
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 100:
            raise InputError(f"temperature: expected a number from 0 to 100, got {shown_value(value)}")
        if value == 0 and self.votes > 1:
            raise InputError(
                f"temperature: {self.votes} votes with 0 would be one vote {self.votes} times: expected votes=1, or a "
                "temperature above 0"
            )

    def _check_engine(self) -> None:
        named = [self.engine] if isinstance(self.engine, str) else self.engine
        if not isinstance(named, Sequence) or not named or not all(isinstance(one, str) for one in named):
            raise InputError(f"engine: expected a name or URLs, got {shown_value(self.engine)}")
        for one in self._named:
            if one.startswith(_SCHEMES) or "@" in one:
                check_url(one)
        if self.urls:
            return
        if self.engine not in IN_PROCESS:  # a list, which only URLs are given in, is none of them
            raise BackendError(
                f"there is no engine {shown_value(self.engine)}: expected {', '.join(IN_PROCESS)}, or http:// URLs"
            )

    @property
    def urls(self) -> tuple[str, ...]:
        """Base URLs of the servers; none where the engine runs in this process. Text may have several, with commas."""
        return self._named if all(one.startswith(_SCHEMES) for one in self._named) else ()

    @property
    def _named(self) -> tuple[str, ...]:
        named = self.engine.split(",") if isinstance(self.engine, str) else self.engine
        return tuple(one.strip() for one in named)

    @property
    def recorded(self) -> dict[str, Any]:
        """The options on which answers depend, JSON values."""
        names = ("votes", "adaptive", "verdict", "temperature", "second_step")
        return {name: getattr(self, name) for name in names} | {"vote_seed": self.seed}


def check_template(template: PairTemplate, options: ReasoningOptions) -> None:
    """Raises InputError where a template's answers have no place to read the soft verdict at."""
    if options.verdict == "soft" and not template.answer_prefix.strip():
        raise InputError(
            f"preset {template.preset or 'given'}: it has no answer_prefix, behind which the soft verdict reads its "
            "labels: expected a preset with one, such as gram-r2, or verdict='hard'"
        )
