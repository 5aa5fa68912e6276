"""The judge of a process: loaded when it is first needed, once, whoever asks."""

import logging
import os
import threading
from collections.abc import Mapping
from typing import Any

from gram_fast import InputError, PairwiseJudge

log = logging.getLogger(__name__)

RANK = "rank"
"""Device name: the GPU of this process's local rank, or what "auto" finds where there is no GPU or no launcher."""

# One copy of the weights a process, however many reward functions name them. Guarded by the lock, which is held while a
# judge loads: whoever comes then waits for it.
_loaded: dict[str, PairwiseJudge] = {}
_lock = threading.Lock()


def _new_lock() -> None:
    """In a forked child: a thread of the parent that held the lock does not go on there."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


class LazyJudge:
    """A judge, or the name of one that is loaded at the first `get`.

    It pickles and deep-copies as a name with options, so that a reward function can go to other processes; one that
    was made from a judge in memory copies as that judge does.
    """

    def __init__(self, judge: PairwiseJudge | str | os.PathLike[str], **options: Any) -> None:
        """`judge`: one in memory, or a folder or a name on the hub.

        `options`: of `PairwiseJudge.from_pretrained`, beside a name; `device` also takes "rank", the default: the GPU
        of the process's local rank. Raises InputError on anything else.
        """
        if not isinstance(judge, PairwiseJudge | str | os.PathLike):
            raise InputError(f"judge: expected a PairwiseJudge, a folder or a name, got {type(judge).__name__}")
        if isinstance(judge, PairwiseJudge) and options:
            raise InputError(f"judge: expected no options beside a judge in memory, got {', '.join(options)}")
        self._judge = judge
        self._options: Mapping[str, Any] = {"device": RANK, **options}

    @classmethod
    def of(cls, judge: "AnyJudge") -> "LazyJudge":
        """The judge of a reward function: itself where it is lazy already. Raises InputError as above."""
        return judge if isinstance(judge, LazyJudge) else cls(judge)

    def get(self) -> PairwiseJudge:
        """The judge. Threads that ask while it loads wait for it; the same name with the same options is loaded once.

        Raises errors like `PairwiseJudge.from_pretrained`; the next call tries again.
        """
        if isinstance(self._judge, PairwiseJudge):
            return self._judge
        options = dict(self._options)
        if options["device"] == RANK:
            options["device"] = rank_device()
        key = repr((str(self._judge), sorted(options.items())))
        with _lock:
            if key not in _loaded:
                _loaded[key] = PairwiseJudge.from_pretrained(str(self._judge), **options)
            return _loaded[key]


AnyJudge = PairwiseJudge | LazyJudge | str | os.PathLike[str]
"""A judge, a lazy one, or a folder or a name on the hub, which is loaded at the first call on the rank's device."""


def rank_device() -> str:
    """The device of this process: "cuda:N" of the local rank N that a launcher set, else "auto"."""
    import torch

    if torch.version.cuda is not None and not torch.cuda.is_available():
        # As in actors of Ray that ask for none: that the judge then takes minutes must not come as a surprise.
        log.warning('this process sees no GPU: the judge is loaded on the CPU (device="cpu" says that it shall be)')
    local = os.environ.get("LOCAL_RANK", "")
    # Ray and some schedulers show each process one GPU, whatever its rank.
    if local.isdigit() and int(local) < torch.cuda.device_count():
        return f"cuda:{local}"
    return "auto"
