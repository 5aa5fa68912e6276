"""A text generator without a model, for tests of what stands on generators."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from gram_fast.generating.generator import Generated, Generation, GenerationRequest, Sampling


@dataclass
class ScriptedGenerator:
    """Writes what `answer(content, random)` says, with a random generator of the request's seed and the answer."""

    answer: Callable[[str, random.Random], Generation | str]
    at_once: int = 8
    name: str = "scripted"
    requests: list[GenerationRequest] = field(default_factory=list)
    samplings: list[Sampling] = field(default_factory=list)

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> Iterator[Generated]:
        self.requests += requests
        self.samplings.append(sampling)
        numbers = list(range(len(requests)))
        random.Random(0).shuffle(numbers)
        for number in numbers:
            request = requests[number]
            answers = [self.answer(request.content, random.Random(f"{request.seed} {k}")) for k in range(request.n)]
            yield number, [a if isinstance(a, Generation) else Generation(a, len(a.split()), False) for a in answers]


def gram_r2_answer(label: str, thought: str = "Feedback:\nsome\n\nConclusion:\nmine") -> str:
    """A well-formed answer of the preset gram-r2."""
    return f"<think>\n{thought}\n</think>\n<answer>\n{label}\n</answer>"
