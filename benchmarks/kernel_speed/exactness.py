"""Whether attention over a forest is right, for benchmarks/kernel_speed/run.py.

Shape letters: T packed tokens, H query heads, E head width, N tokens of a sample, X keys or rows.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.kernel_speed.rivals import Problem

SAMPLE = 64
# Of the norm of one head's output. Rounding weights and output to bfloat16 costs 0.003 at most; a key too few, where a
# query sees 1,700, costs 0.015 at least in the worst of eight heads (random inputs, head width 128).
TOLERANCE = 0.01


def visible_keys(subtree_ends: NDArray[np.int64], token: int) -> Tensor:
    """Lists the packed tokens that one token sees: itself and all above it on its path."""
    return torch.from_numpy(np.flatnonzero(subtree_ends[: token + 1] > token))


def exact_rows(problem: Problem, tokens: Sequence[int]) -> Tensor:
    """Computes attention of some tokens in float64 -> [N, H, E], from the tree, without the tables of kernels."""
    found = []
    for token in tokens:
        keys = visible_keys(problem.forest.subtree_ends, token).to(problem.device)
        group = problem.heads.group
        k_XHE, v_XHE = (x[keys].double().repeat_interleave(group, dim=1) for x in (problem.k, problem.v))
        weights_HX = (torch.einsum("he,xhe->hx", problem.q[token].double(), k_XHE) * problem.scale).softmax(dim=-1)
        found.append(torch.einsum("hx,xhe->he", weights_HX, v_XHE))
    return torch.stack(found)


def row_error(actual: Tensor, expected: Tensor) -> float:
    """Finds the largest error of a head's output [.., E], relative to its norm. NaN stays NaN."""
    difference = torch.linalg.vector_norm(actual.double() - expected.double(), dim=-1)
    return float((difference / torch.linalg.vector_norm(expected.double(), dim=-1)).max())


def error_against(out_XHE: Tensor, rows_X: Tensor | None, expected_THE: Tensor, chunk: int = 8192) -> float:
    """Finds the `row_error` of a rival, whose rows are these tokens of ours, in chunks that fit into memory."""
    if rows_X is None:
        rows_X = torch.arange(len(expected_THE), device=expected_THE.device)
    if len(out_XHE) != len(rows_X):
        return float("nan")
    errors = []
    for first in range(0, len(rows_X), chunk):
        rows = rows_X[first : first + chunk]
        errors.append(row_error(out_XHE[first : first + chunk][rows >= 0], expected_THE[rows[rows >= 0]]))
    return float(np.max(errors))


def is_right(error: float) -> bool:
    """Whether an error is within tolerance; NaN is not."""
    return error <= TOLERANCE


def sample_of(count: int) -> list[int]:
    """Picks up to SAMPLE numbers below `count`, evenly, with the first and the last."""
    return sorted({int(number) for number in np.linspace(0, count - 1, min(count, SAMPLE))})
