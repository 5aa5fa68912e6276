"""Scores a tree of sequences with a tiny model, and compares the label logits with those of plain forwards."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig

from benchmarks.families.attention import Seen, attention_of, watched
from benchmarks.families.tiny import VOCAB
from gram_fast.errors import UnsupportedModelError
from gram_fast.models.dense.weights import FAMILIES as DENSE
from gram_fast.models.known_answers import cannot_run
from gram_fast.models.loading import load_runners
from gram_fast.models.options import JudgeOptions
from gram_fast.models.supported import plain_attention
from gram_fast.models.transformers_runner import TransformersRunner
from gram_fast.scoring.engine import Engine
from gram_fast.text.encoded import EncodedRound

TOLERANCE = 1e-4
_LABELS = (5, 7)
_LENGTH = 60
# Far fewer tokens than the sequences have, so that keys and values of earlier passes are read.
_BUDGET = 24

Logits = NDArray[np.float32]
Rounds = Sequence[Sequence[Sequence[Sequence[int]]]]


@dataclass(frozen=True)
class Scored:
    """What became of one model."""

    family: str
    attention: str
    tells: float
    """How far wrong attention moves a label logit."""
    runner: str = "refused"
    problem: str = ""
    """Why the model is refused, where it is."""
    limit: str = ""
    """What limits the length of sequences to less than those of the tree, if anything does."""
    error: float = 0.0
    """Largest difference of a label logit, per unit of the logits' size (at least 1)."""

    @property
    def verdict(self) -> str:
        """Whether the model is scored exactly, or why not."""
        if self.problem:
            return self.problem
        if not self.error <= TOLERANCE:
            return "no"
        if self.tells < 10 * TOLERANCE:
            return "not told: wrong attention changes too little"
        return f"up to {self.limit}" if self.limit else "yes"


def scored(family: str, model: Any) -> Scored:
    """Scores the tree and compares."""
    ids = _whole(tree(_LENGTH))[0]
    seen, tells = _watch(model, ids)
    attention = _describe(model, seen)
    try:
        runner = _runner(model)
        limit = runner.max_length_reason.partition(";")[0] if runner.max_length < _LENGTH else ""
        rounds = tree(min(_LENGTH, runner.max_length))
        try:
            ours = score(runner, rounds)
        except (TypeError, AttributeError, LookupError, RuntimeError, ValueError) as error:
            raise cannot_run(model, error) from error
    except UnsupportedModelError as error:
        return Scored(family, attention, tells, problem=shortened(str(error)))
    expected = np.stack([plain(model, ids) for ids in _whole(rounds)])
    difference = float(np.abs(ours - expected).max() / max(1.0, np.abs(expected).max()))
    kind = type(runner).__name__.removesuffix("Runner").lower()
    return Scored(family, attention, tells, kind, limit=limit, error=difference)


def tree(longest: int) -> Rounds:
    """Two rounds of sequences of segments, which share prefixes several nodes deep."""
    rng = np.random.default_rng(0)

    def text(count: int) -> list[int]:
        return rng.integers(8, VOCAB, max(1, count * longest // _LENGTH)).tolist()  # type: ignore[no-any-return]

    stem, left, right, tails = text(17), text(13), text(11), [text(n) for n in (11, 14, 19, 13)]
    first = [[stem, left, tails[0]], [stem, left, tails[1]], [stem, right, tails[2]], [stem, left, tails[2]]]
    return first, [[stem, right, tails[0]], [stem, right, left, tails[3]], [stem, left, tails[3]]]


def score(runner: Any, rounds: Rounds) -> Logits:
    """Label logits [P, 2] of the sequences of all rounds, by the engine with a small budget."""
    results = []
    with Engine(runner, max_batch_tokens=_BUDGET).request(np.zeros(0, np.int32)) as request:
        for number, sequences in enumerate(rounds):
            for sequence in sequences:
                row = np.arange(request.num_segments, request.num_segments + len(sequence), dtype=np.int32)
                request.add(EncodedRound([np.array(ids, np.int32) for ids in sequence], row[None], 2))
            results.append(request.score(more_rounds=number + 1 < len(rounds)))
    return np.concatenate(results)


def plain(model: Any, ids: Sequence[int]) -> Logits:
    """Label logits [2] of one sequence, by the model's own code."""
    # Some models whose attention is their own want a mask, which is made for this name alone.
    with attention_of(model, plain_attention(model) if model._supports_attention_backend else "eager"):
        return _logits(model, ids)


@torch.no_grad()
def _logits(model: Any, ids: Sequence[int]) -> Logits:
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
    return logits[0, -1, list(_LABELS)].float().numpy()  # type: ignore[no-any-return]


def _whole(rounds: Rounds) -> list[list[int]]:
    return [[*itertools.chain(*sequence)] for sequences in rounds for sequence in sequences]


def _runner(model: Any) -> Any:
    """The runner that a judge of this model would have: a dense one is read from files."""
    if model.config.model_type not in DENSE:
        return TransformersRunner(model, _LABELS, "auto")
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = AutoConfig.from_pretrained(folder)
        return next(load_runners(folder, loaded, _LABELS, [torch.device("cpu")], JudgeOptions(dtype="float32")))


def _watch(model: Any, ids: Sequence[int]) -> tuple[Seen, float]:
    """What the model's attention is, and how far label logits move where it is plain, or else has a token less."""
    expected = plain(model, ids)
    try:
        with watched(model) as seen:
            _logits(model, ids)
        if seen.is_plain:
            return seen, float(np.abs(plain(model, ids[1:]) - expected).max())
        with watched(model, as_plain=True):
            return seen, float(np.abs(_logits(model, ids) - expected).max())
    except (AttributeError, RuntimeError):
        # Code that does not know the interface, and wants what another attention does not give it.
        return Seen(), float(np.abs(plain(model, ids[1:]) - expected).max())


def _describe(model: Any, seen: Seen) -> str:
    """What layers do, in words, by what ran and by the kinds of layers in the configuration."""
    config = model.config.get_text_config(decoder=True)
    layers = {*(getattr(config, "layer_types", None) or ()), *(getattr(config, "layers_block_type", None) or ())}
    others = sorted(kind for kind in layers if not re.search("full|sliding|chunked|^attention$", kind))
    experts = [m for m in model.modules() if re.search("experts|moe", type(m).__name__, re.IGNORECASE)]
    words = [*dict.fromkeys(seen.kinds), *sorted(seen.more)] or ["of its own"]
    return ", ".join([*words, *(kind.replace("_", " ") for kind in others), *(["experts"] if experts else [])])


def shortened(sentence: str) -> str:
    """A message of UnsupportedModelError without what it is about, and without details in brackets."""
    return re.sub(r"^(model type '[^']*'|\w+) (cannot be [^:]*: )?| \(.*\)$", "", sentence)
