"""Self-test of a loaded judge: scores one pair with the engine and by a plain forward, and compares the logits.

The plain forward of the transformers runner is the model's own code. That of the dense runner runs the references of
all ops on one sequence: it finds a wrong kernel, not a wrong model; tests compare the model with transformers.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from gram_fast.errors import GramFastError, UnsupportedModelError, one_line
from gram_fast.scoring.engine import Engine
from gram_fast.scoring.runner import Runner
from gram_fast.text.encoded import EncodedTexts, Presentation
from gram_fast.text.tokens import PairTokenizer

PROMPT = "What is the capital of France?"
RESPONSES = ["The capital of France is Paris.", "I think it is Lyon,\nbut I am not sure..."]
# Largest |logit| difference that rounding explains, per unit of the logits' size (at least 1). Wrong attention differs
# by more in float32; for the 16-bit types this finds gross errors only.
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# What torch may round float32 to in products, and the type that has as few bits (TF32 as many as float16).
_FLOAT32_PRODUCTS = {"tf32": torch.float16, "bf16": torch.bfloat16}
# Of FP8 (e4m3: three bits of mantissa). A rounding errs by at most 2**-4 of a number, 2**-4 / sqrt(3) in standard
# deviation, and so does a product of numbers with independent errors. Four products follow each other in a layer; the
# updates of all layers add up, and so do the squares of their errors, which stay as large in proportion. Where one of
# two computations rounds a sum otherwise, later numbers of FP8 are rounded otherwise, until the two are independent
# draws. Six standard deviations of their difference: 0.61.
_FP8_TOLERANCE = 6 * math.sqrt(2 * 4 / 3) * 2**-4
# Fewer tokens than the pair has, so that keys and values kept from an earlier pass are read too.
_BUDGET = 128


@dataclass(frozen=True)
class KnownAnswer:
    """Logits of one presentation of the pair, by the engine and by the plain forward."""

    logits: tuple[float, float]
    plain_logits: tuple[float, float]
    tolerance: float

    @property
    def difference(self) -> float:
        """Largest absolute difference of a logit."""
        return max(abs(ours - plain) for ours, plain in zip(self.logits, self.plain_logits, strict=True))

    @property
    def is_right(self) -> bool:
        """Whether the difference is within the tolerance; false where a logit is NaN."""
        return self.difference <= self.tolerance


def known_answers(tokenizer: PairTokenizer, runner: Runner) -> list[KnownAnswer]:
    """Scores one pair in both orders, with the engine and by the plain forward on the token ids of the whole text.

    With a verifier's template, each response by itself. Raises UnsupportedModelError when the text is longer than the
    model allows, or the model cannot be run.
    """
    presentations: list[Presentation] = [(0, 0), (0, 1)] if tokenizer.template.is_verifier else [(0, 0, 1), (0, 1, 0)]
    name = type(runner.model).__name__
    whole = tokenizer.whole_ids([(PROMPT, *(RESPONSES[k] for k in shown)) for _, *shown in presentations])
    longest = max(map(len, whole))
    if longest > runner.max_length:
        raise UnsupportedModelError(
            f"{name} takes {runner.max_length} tokens ({runner.max_length_reason}), too few for this prompt: with "
            f"short sentences it has {longest}"
        )
    if (highest := max(int(ids.max()) for ids in whole)) >= runner.num_embeddings:
        raise UnsupportedModelError(
            f"the prompt has token {highest}, {tokenizer.token_text(highest)!r}, but {name} has embeddings of "
            f"{runner.num_embeddings} tokens: the tokenizer is another model's, or tokens were added to it alone"
        )
    encoded = EncodedTexts.of(tokenizer, [PROMPT], [RESPONSES])
    try:
        with Engine(runner, max_batch_tokens=_BUDGET).request(encoded.head_ids) as request:
            request.add(encoded.round(presentations, request.num_segments))
            ours = request.score(more_rounds=False)
        plain_logits = [runner.plain_logits(torch.from_numpy(ids).long()).tolist() for ids in whole]
    except (GramFastError, torch.OutOfMemoryError):
        raise
    except (TypeError, AttributeError, LookupError, RuntimeError, ValueError) as error:
        raise cannot_run(runner.model, error) from error
    answers, relative = [], rounding(runner)[1]
    for logits, plain in zip(ours.tolist(), plain_logits, strict=True):
        size = max(1.0, *map(abs, plain))
        answers.append(KnownAnswer(tuple(logits), tuple(plain), relative * size))
    return answers


def cannot_run(model: Any, error: Exception) -> UnsupportedModelError:
    """The error of a model that takes other arguments, or gives other results, than transformers' decoders do."""
    reason = one_line(error)
    if getattr(model, "_supports_attention_backend", None) is False:
        reason = f"its layers do not attend through transformers' attention interface ({reason})"
    return UnsupportedModelError(f"{type(model).__name__} cannot be run as a judge: {reason}")


def rounding(runner: Runner) -> tuple[str, float]:
    """The coarsest format that a runner rounds to, for messages, and the tolerance for it, a unit of logits' size."""
    if runner.products == "fp8":
        return "FP8, by up to 2**-4 of a number,", _FP8_TOLERANCE
    library = torch.backends.cuda if runner.device.type == "cuda" else torch.backends.mkldnn
    precision = library.matmul.fp32_precision
    if runner.dtype == torch.float32 and precision in _FLOAT32_PRODUCTS:
        return f"{precision} (torch's fp32_precision of products)", _TOLERANCES[_FLOAT32_PRODUCTS[precision]]
    return str(runner.dtype), _TOLERANCES[runner.dtype]
