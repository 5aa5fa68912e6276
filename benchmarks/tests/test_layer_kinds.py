"""The benchmark of layer kinds compares what it times, for every kind."""

import argparse

import numpy as np
import pytest

from benchmarks import layer_kinds

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", layer_kinds.KINDS)
def test_every_kind_is_measured_and_exact(kind):
    row = layer_kinds.measure(kind, argparse.Namespace(prompt=12, response=5, n=2, repeats=1))
    assert (row["tokens"], row["tokens_computed"]) == (2 * (12 + 5 + 5), 12 + 4 * 5)
    assert row["largest_difference"] < 1e-4 * max(1, row["largest_logit"])
    assert set(row["seconds"]) == {"tree", "batches of 1", f"batches of {layer_kinds.BATCH}"}
    assert np.isfinite(list(row["seconds"].values())).all()
    assert kind in layer_kinds.table([row])
