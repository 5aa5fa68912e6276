"""Converts label logits to preferences: softmax over the two labels, mean over the orders (arXiv 2506.14175)."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from gram_fast.results import Preference


def preference(i: int, j: int, logits_O2: NDArray[np.float32], orders: str, mode: str = "full") -> Preference:
    """Computes the preference of i over j from label logits float32 [O, 2], one row per presentation as in `shown`.

    P(slot A better) = softmax over the labels A and B = sigmoid(logit A - logit B); in order "ba", i is in slot B.
    """
    margins = logits_O2[:, 0].astype(np.float64) - logits_O2[:, 1]
    margin_ab = float(margins[0]) if orders != "ba" else None
    margin_ba = -float(margins[-1]) if orders != "ab" else None
    p_ab = None if margin_ab is None else float(expit(margin_ab))
    p_ba = None if margin_ba is None else float(expit(margin_ba))
    margin = _mean(margin_ab, margin_ba)
    return Preference(
        i,
        j,
        # Margins that cancel are a draw; rounding of the two probabilities must not decide it.
        p=_mean(p_ab, p_ba) if margin else 0.5,
        margin=margin,
        p_ab=p_ab,
        p_ba=p_ba,
        mode=mode,
    )


def _mean(first: float | None, second: float | None) -> float:
    values = [value for value in (first, second) if value is not None]
    return sum(values) / len(values)
