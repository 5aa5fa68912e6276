"""What a judge's model would write next: whether its prompt ends where the model expects a label.

A judge whose prompt ends elsewhere (another preset, a chat template that begins the answer with reasoning, a model that
is no judge) has two label logits as well, and they say nothing.
"""

from dataclasses import dataclass

import torch

from gram_fast.models.known_answers import PROMPT, RESPONSES
from gram_fast.scoring.runner import Runner
from gram_fast.text.tokens import PairTokenizer

# A label among so many most likely tokens is expected.
_LIKELY = 20
_SHOWN_TOKENS = 5


@dataclass(frozen=True)
class NextTokens:
    """The most likely tokens behind a prompt."""

    labels: tuple[str, str]
    rank: int
    """How many tokens are more likely than the likelier label."""
    likely: tuple[str, ...]
    """Text of the five most likely tokens, best first."""
    prompt_end: str

    @classmethod
    def of(cls, tokenizer: PairTokenizer, runner: Runner) -> "NextTokens":
        """Computes the tokens that follow the prompt of the known answer."""
        ids = tokenizer.whole_ids([(PROMPT, *RESPONSES)[: len(tokenizer.template.slots)]])[0]
        logits_V = runner.next_logits(torch.from_numpy(ids).long())
        label = max(float(logits_V[label_id]) for label_id in tokenizer.label_ids)
        best = logits_V.topk(min(_SHOWN_TOKENS, len(logits_V))).indices.tolist()
        return cls(
            tokenizer.template.labels,
            int((logits_V > label).sum()),
            tuple(tokenizer.token_text(token_id) for token_id in best),
            tokenizer.prompt_end,
        )

    @property
    def problem(self) -> str | None:
        """A sentence where no label is likely; None where one is."""
        if self.rank < _LIKELY:
            return None
        return (
            f"behind a prompt that ends in {self.prompt_end!r} the model expects {self.shown}; neither "
            f"{self.labels[0]!r} nor {self.labels[1]!r} is among its {_LIKELY} most likely tokens: expected a judge, "
            "and the preset (its answer_prefix too) that it was trained with"
        )

    @property
    def shown(self) -> str:
        """The most likely tokens, for messages."""
        return ", ".join(map(repr, self.likely))
