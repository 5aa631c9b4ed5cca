"""Training and augmentation on a GPU."""

from __future__ import annotations

import random

import pytest
import torch

from nas.data import DataSet, load_dataset
from nas.evaluation import fresh_network
from nas.spaces.darts import DartsSpace
from nas.training import FixedRecipe, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load_dataset("digits", root=None, seed=0)


def test_augmentation_draws_alike_on_every_device(data: DataSet) -> None:
    images = data.train.images[:64]
    here = data.augment(images, torch.Generator().manual_seed(1))
    there = data.augment(images.cuda(), torch.Generator().manual_seed(1))
    assert there.is_cuda
    assert torch.equal(here, there.cpu())


def test_training_on_the_gpu_learns(data: DataSet) -> None:
    space = DartsSpace(cells=3, channels=8, nodes=2)
    network = fresh_network(space, space.sample(random.Random(2)), data, seed=0)
    recipe = FixedRecipe(epochs=6)
    result = train(network, data, recipe, device=torch.device("cuda"), seed=0)
    assert result.metrics["accuracy"] > 0.8
    assert all(parameter.is_cuda for parameter in network.parameters())
