"""Published networks are built by their names at their published sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nas.plugins import make_space
from nas.spaces.darts import DartsSpace
from nas.spaces.darts_published import PC_DARTS_CIFAR
from zoo.errors import UnknownNameError
from zoo.networks import NETWORKS, network
from zoo.recipes import PRESETS
from zoo.schemas import TrainRequest
from zoo.spec import TensorSpec


@pytest.mark.parametrize(
    "name",
    ["darts-imagenet", "pc-darts-imagenet", "nasnet-a-mobile", "proxyless-mobile"],
)
def test_a_network_has_its_published_number_of_parameters(name: str) -> None:
    found = network(name)
    space: Any = make_space(found.space, found.params)
    images = TensorSpec(shape=(3, found.size, found.size))
    with torch.device("meta"):
        module = space.build(space.parse(found.genotype), inputs=images, num_classes=found.classes)
    assert sum(weight.numel() for weight in module.parameters()) == found.num_params


def test_every_network_is_in_its_space_and_has_the_recipe_that_it_names() -> None:
    for found in NETWORKS.values():
        space: Any = make_space(found.space, found.params)
        space.check(space.parse(found.genotype))
        assert found.recipe is None or found.recipe in PRESETS


def test_a_named_network_is_the_architecture_that_it_always_was() -> None:
    found = network("pc-darts-cifar")
    space = make_space(found.space, found.params)
    assert isinstance(space, DartsSpace)
    plain = DartsSpace(cells=20, channels=36)
    assert space.parse(found.genotype).id == plain.encode(PC_DARTS_CIFAR).id
    assert len(space.reductions) == 2


def test_a_request_may_name_a_network_and_stores_what_that_is() -> None:
    asked = TrainRequest.model_validate({"network": "darts-imagenet", "data": "npz:x"})
    assert asked.space is not None
    assert asked.space.params["stem"] == "imagenet"
    assert asked.genotype == NETWORKS["darts-imagenet"].genotype
    assert TrainRequest.model_validate(asked.model_dump()) == asked


def test_what_names_no_network_or_two_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="nasnet-a-cifar.*proxyless-mobile"):
        network("vgg")
    with pytest.raises(ValueError, match="'vgg'; choose one of: darts-cifar"):
        TrainRequest.model_validate({"network": "vgg", "data": "digits"})
    with pytest.raises(ValueError, match="'darts-cifar' is given beside chain; name one"):
        TrainRequest.model_validate({"network": "darts-cifar", "chain": "a", "data": "digits"})
