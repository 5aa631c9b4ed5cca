"""Training and augmentation on a GPU."""

from __future__ import annotations

import random

import pytest
import torch

from nas import checkpoint
from nas.data import DataSet, load_dataset
from nas.evaluation import fresh_network
from nas.spaces.darts import DartsSpace
from nas.training import FixedRecipe, Training, train

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


def test_a_whole_recipe_trains_in_half_precision_and_goes_on_from_its_state(
    data: DataSet,
) -> None:
    space = DartsSpace(cells=3, channels=8, nodes=2)
    architecture = space.sample(random.Random(2))
    recipe = FixedRecipe(
        epochs=8,
        precision="auto",
        cutout=2,
        drop_path=0.1,
        dropout=0.1,
        auxiliary=0.4,
        ema=0.9,
        label_smoothing=0.1,
        no_decay=("norms",),
    )
    cuda, kept = torch.device("cuda"), []

    def keep(training: Training) -> None:
        if training.epoch == 4:
            kept.append(checkpoint.pack(training.state_dict()))

    network = fresh_network(space, architecture, data, seed=0)
    whole = train(network, data, recipe, device=cuda, seed=0, keep=keep)
    network = fresh_network(space, architecture, data, seed=0)
    state = checkpoint.unpack(kept[0])
    resumed = train(network, data, recipe, device=cuda, seed=0, resume=state)
    assert min(whole.metrics["accuracy"], resumed.metrics["accuracy"]) > 0.7
    assert all(p.dtype == torch.float32 for p in network.parameters())
