"""Digests tell judges apart, and not copies of one."""

import copy
from dataclasses import dataclass

import pytest
import torch
from helpers.small_models import tiny_judge, tiny_model

from gram_fast.models.digest import config_digest, weights_digest


@dataclass
class Weights:
    """A model of one weight."""

    weight: torch.Tensor


@pytest.mark.parametrize("change", [slice(None), slice(0, None, 2), slice(1, None, 2), slice(2048), slice(2048, None)])
def test_a_matrix_that_training_moved_has_another_digest(change):
    matrix = torch.randn(512, 4096)
    before = weights_digest(Weights(matrix))
    assert weights_digest(Weights(matrix.clone())) == before
    matrix[:, change] += 0.01  # all inputs or half of them
    assert weights_digest(Weights(matrix)) != before


def test_every_tensor_counts():
    model = tiny_model("qwen3")
    before = weights_digest(model)
    assert weights_digest(copy.deepcopy(model)) == before
    for name, tensor in model.state_dict().items():
        tensor += 1
        assert weights_digest(model) != before, name
        tensor -= 1


def test_dtype_and_shape_count():
    zeros = torch.zeros(8)
    different = {weights_digest(Weights(weight)) for weight in (zeros, zeros.view(2, 4), zeros.bfloat16())}
    assert len(different) == 3


def test_a_configuration_is_the_same_wherever_it_is_from():
    config = tiny_model("qwen3").config
    moved, other = copy.deepcopy(config), copy.deepcopy(config)
    moved._name_or_path = "/elsewhere"
    moved.transformers_version = "9.9"
    assert config_digest(moved) == config_digest(config)
    other.rms_norm_eps = 0.5
    assert config_digest(other) != config_digest(config)


def test_a_runner_s_own_model_has_one_too():
    model = tiny_judge().comparer.runner.model
    assert weights_digest(model) == weights_digest(model)
