"""What the tests of all ops share: dtypes, devices, and which backend runs where.

`dtype` and `device` are parameters of these names. A test marked gpu is skipped where there is none: fixtures.py.
"""

import pytest
import torch

from gram_fast import ops

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
on_each_dtype = pytest.mark.parametrize("dtype", DTYPES)
on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def skip_what_cannot_run(op: str, backend: str, device: str, dtype: torch.dtype = torch.float32, **needs: bool) -> None:
    """`needs`: as `backend_problem`."""
    if problem := ops.backend_problem(op, backend, torch.device(device), dtype, **needs):
        pytest.skip(problem)
