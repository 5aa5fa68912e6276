"""Fast, exact scoring, ranking and rewards with generative pairwise reward models.

import gram_fast

judge = gram_fast.PairwiseJudge.from_pretrained("NiuTrans/GRAM-Qwen3-1.7B-RewardModel")
ranking = judge.rank("What is the capital of France?", ["Paris.", "Lyon.", "It is Paris, on the Seine."])
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gram_fast.errors import (
    BackendError,
    GramFastError,
    InputError,
    NumericalError,
    ServerError,
    UnsupportedModelError,
)
from gram_fast.judge import PairwiseJudge
from gram_fast.reasoning_judge import ReasoningJudge
from gram_fast.rendezvous import Rendezvous
from gram_fast.results import (
    Comparison,
    Comparisons,
    ForwardStats,
    Preference,
    PreferenceMatrix,
    Ranking,
    Reasoning,
    ReasoningStats,
    Rewards,
    Selection,
    Stats,
    Verification,
    Vote,
)
from gram_fast.scoring.stops import to_thread
from gram_fast.text.prompts import preset_names

if TYPE_CHECKING:
    from gram_fast.remote.comparer import from_server
    from gram_fast.remote.rendezvous import RemoteRendezvous

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
    "Reasoning",
    "ReasoningJudge",
    "ReasoningStats",
    "RemoteRendezvous",
    "Rendezvous",
    "Rewards",
    "Selection",
    "ServerError",
    "Stats",
    "UnsupportedModelError",
    "Verification",
    "Vote",
    "from_server",
    "preset_names",
    "to_thread",
]

_OF_SERVERS = {"from_server": "gram_fast.remote.comparer", "RemoteRendezvous": "gram_fast.remote.rendezvous"}


def __getattr__(name: str) -> Any:
    """Imports what talks to servers when it is first asked for: httpx takes as long to import as all the rest."""
    if name in _OF_SERVERS:
        return getattr(import_module(_OF_SERVERS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
