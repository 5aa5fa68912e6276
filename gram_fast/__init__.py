"""Fast, exact scoring, ranking and rewards with generative pairwise reward models.

import gram_fast

judge = gram_fast.PairwiseJudge.from_pretrained("NiuTrans/GRAM-Qwen3-1.7B-RewardModel")
ranking = judge.rank("What is the capital of France?", ["Paris.", "Lyon.", "It is Paris, on the Seine."])
"""

from pathlib import Path

from gram_fast.errors import (
    BackendError,
    GramFastError,
    InputError,
    NumericalError,
    UnsupportedModelError,
)
from gram_fast.judge import PairwiseJudge
from gram_fast.rendezvous import Rendezvous
from gram_fast.results import (
    Comparison,
    Comparisons,
    ForwardStats,
    Preference,
    PreferenceMatrix,
    Ranking,
    Rewards,
    Selection,
    Stats,
    Verification,
)
from gram_fast.scoring.stops import to_thread
from gram_fast.text.prompts import preset_names

__version__ = "0.1.0"

SMALL_JUDGE = str(Path(__file__).with_name("small_judge"))
"""Path of a small judge checkpoint that ships with the package, for trying things out; its README.md describes it."""

__all__ = [
    "SMALL_JUDGE",
    "BackendError",
    "Comparison",
    "Comparisons",
    "ForwardStats",
    "GramFastError",
    "InputError",
    "NumericalError",
    "PairwiseJudge",
    "Preference",
    "PreferenceMatrix",
    "Ranking",
    "Rendezvous",
    "Rewards",
    "Selection",
    "Stats",
    "UnsupportedModelError",
    "Verification",
    "preset_names",
    "to_thread",
]
