"""sharpDARTS: operations, published cells, Max-W, cosine power annealing, and the search."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nas.data import DataSet, Split
from nas.data.policies import auto_augment
from nas.derivation import derive
from nas.methods.sharp_darts import SharpDarts
from nas.plugins import MethodContext
from nas.regularisation import cutout
from nas.schedules import cosine_power
from nas.spaces import darts_published
from nas.spaces.darts import DartsSpace, Genotype
from nas.supernet import ArchParameters, Supernet, max_w
from nas.supernet_fused import FusedCell, unstack
from zoo.errors import InvalidInputError, UnknownNameError
from zoo.families.darts_operations import (
    ALL_OPERATIONS,
    CHOKE_CHANNELS,
    PRIMITIVE_SETS,
    operation,
)
from zoo.spec import TensorSpec

SPACE = DartsSpace(cells=3, channels=4, nodes=1, ops="sharp")  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "params"), [("sep", 800), ("flood", 2768), ("choke", 1456)])
def test_operations_have_their_published_number_of_parameters(kind: str, params: int) -> None:
    built = operation(f"sharp_{kind}_conv_3x3", 16, stride=1, affine=False)
    assert sum(parameter.numel() for parameter in built.parameters()) == params


@pytest.mark.parametrize("name", ALL_OPERATIONS)
def test_every_operation_keeps_or_halves_the_size(name: str) -> None:
    x = torch.zeros(1, 16, 9, 7)
    assert operation(name, 16, stride=1, affine=False)(x).shape == (1, 16, 9, 7)
    assert operation(name, 16, stride=2, affine=False)(x).shape == (1, 16, 5, 4)


def test_a_choke_is_as_narrow_in_the_derived_network_as_in_the_supernet() -> None:
    edges = (("sharp_choke_conv_3x3", 0), ("sharp_dil_choke_conv_3x3", 1))
    space = replace(SPACE, channels=64)
    genotype = Genotype(normal=(edges,), reduce=(edges,))
    net = space.build(space.encode(genotype), inputs=TensorSpec(shape=(3, 8, 8)), num_classes=2)
    widths = {m.num_features for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert CHOKE_CHANNELS in widths


def test_named_sets_have_their_published_sizes() -> None:
    sizes = {name: len(ops) for name, ops in PRIMITIVE_SETS.items()}
    assert sizes == {"darts": 8, "sharp-darts": 8, "sharp": 9, "sharper": 12}
    assert SPACE.ops == PRIMITIVE_SETS["sharp"]
    assert DartsSpace().ops == PRIMITIVE_SETS["darts"]
    with pytest.raises(InvalidInputError, match="sharpest.*sharp-darts"):
        DartsSpace(ops="sharpest")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("genotype", "ops", "params"),
    [
        (darts_published.DARTS, "darts", 3_349_342),
        (darts_published.DARTS_SHARP, "sharp-darts", 3_529_270),
        (darts_published.SHARPSEPCONV_DARTS, "sharp-darts", 3_555_622),
    ],
)
def test_published_cells_have_their_number_of_parameters(
    genotype: Genotype, ops: str, params: int
) -> None:
    space = DartsSpace(cells=20, channels=36, ops=PRIMITIVE_SETS[ops])
    image = TensorSpec(shape=(3, 32, 32))
    with torch.device("meta"):
        net = space.build(space.encode(genotype), inputs=image, num_classes=10)
    assert sum(parameter.numel() for parameter in net.parameters()) == params


def test_max_w_gives_the_strongest_operation_the_weight_one() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    wanted = torch.tensor([[1.0, 0.8, 0.7], [1.0, 1.0, 1.0]], dtype=torch.float64)
    for stop in (False, True):
        torch.testing.assert_close(max_w(weights, stop_gradient=stop), wanted)


def test_the_gradient_of_max_w_flows_through_the_maximum_or_stops_there() -> None:
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64, requires_grad=True)
    upstream = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)
    (flowing,) = torch.autograd.grad(max_w(weights), weights, upstream)
    (stopped,) = torch.autograd.grad(max_w(weights, stop_gradient=True), weights, upstream)
    assert flowing.tolist() == [2 - (2 + 3 + 5), 3, 5]
    assert stopped.tolist() == upstream.tolist()


@pytest.mark.parametrize("weighting", ["max_w", "max_w_stopped"])
@pytest.mark.parametrize("dense_channels", [0, 16])
def test_under_max_w_the_fused_network_is_the_unfused_one(
    weighting: str, dense_channels: int
) -> None:
    torch.manual_seed(0)
    space = replace(SPACE, nodes=2)
    cell = partial(FusedCell, dense_channels=dense_channels)
    plain = Supernet(space, in_chans=3, num_classes=4, k=1).double()
    fused = Supernet(space, in_chans=3, num_classes=4, k=1, cell=cell).double()
    fused.load_state_dict(plain.state_dict())
    arch = alphas(space, weighting).double()
    x, labels = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.arange(4)
    found: list[dict[str, Tensor]] = []
    for net in (plain, fused):
        arch.zero_grad()
        loss = F.cross_entropy(net(x, arch()), labels)
        torch.autograd.backward(loss)
        named = [*net.named_parameters(), *arch.named_parameters()]
        gradients = {name: value.grad for name, value in named if value.grad is not None}
        unstack(net, gradients)
        found.append(gradients | {"loss": loss.detach()})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=1e-10, msg=name)


def alphas(space: DartsSpace, weighting: str) -> ArchParameters:
    arch = ArchParameters(
        space.nodes,
        len(space.ops),
        generator=torch.Generator().manual_seed(1),
        edge_normalisation=False,
        weighting=weighting,
    )
    with torch.no_grad():
        for parameter in arch.parameters():
            parameter.mul_(1e3)
    return arch


def test_a_cell_is_derived_from_softmaxes_whatever_weighs_the_operations() -> None:
    space = replace(SPACE, nodes=3)
    sharp, scalar = alphas(space, "max_w"), alphas(space, "scalar")
    assert derive(space, sharp.shares()) == derive(space, scalar())
    assert derive(space, sharp()) != derive(space, scalar())
    with pytest.raises(UnknownNameError, match="max_w_stopped"):
        alphas(space, "mean")


@pytest.mark.parametrize(
    ("epochs", "power", "warmup"), [(50, 2, 5), (300, 10, 10), (20, 1, 0), (12, 2, 8), (9, 3, 0)]
)
def test_cosine_power_annealing_follows_the_published_formula(
    epochs: int, power: float, warmup: int
) -> None:
    e = np.arange(1, epochs + 1) - warmup
    c = (1 + np.cos(np.pi * e / (epochs - warmup))) / 2
    q = c if power == 1 else power ** (c + 1)
    r = (q - q.min()) / (q.max() - q.min())
    if warmup:
        r[: warmup + 1] = np.arange(1, warmup + 2) / (warmup + 1)
    ours = [
        cosine_power(
            epoch, epochs=epochs, lr_max=0.025, lr_min=1e-4, power=power, warmup_epochs=warmup
        )
        for epoch in range(epochs)
    ]
    np.testing.assert_allclose(ours, 1e-4 + r * (0.025 - 1e-4), rtol=1e-13)
    assert ours[warmup] == max(ours) == 0.025
    assert ours[-1] == 1e-4


def test_power_one_is_the_cosine_and_one_epoch_has_the_highest_rate() -> None:
    rates = [
        cosine_power(e, epochs=11, lr_max=1.0, lr_min=0.0, power=1, warmup_epochs=1)
        for e in range(11)
    ]
    cosine = [(1 + math.cos(math.pi * e / 10)) / 2 for e in range(11)]
    assert rates[2:] == pytest.approx(cosine[2:], abs=1e-15)
    assert cosine_power(0, epochs=1, lr_max=0.3, lr_min=0.1, power=2) == 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 5}, "epoch is 5"),
        ({"power": 0.5}, "power is 0.5"),
        ({"warmup_epochs": 5}, "0 to 4"),
    ],
)
def test_impossible_annealings_are_refused(change: dict[str, float], message: str) -> None:
    settings = {"epoch": 0, "epochs": 5, "lr_max": 1.0, "lr_min": 0.0, "power": 2.0} | change
    with pytest.raises(InvalidInputError, match=message):
        cosine_power(**settings)  # type: ignore[arg-type]


def test_augmentation_follows_its_generator_and_leaves_the_process_s_alone() -> None:
    images = torch.arange(4 * 3 * 64, dtype=torch.int32).remainder(251).to(torch.uint8)
    images = images.view(4, 3, 8, 8).repeat(4, 1, 1, 1)
    before = torch.random.get_rng_state()
    first, second, other = (
        auto_augment(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.dtype == torch.uint8
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    # Images are changed each by itself: equal ones come out unequal.
    assert len({tuple(image.flatten().tolist()) for image in first[::4]}) > 1
    with pytest.raises(InvalidInputError, match="not 2"):
        auto_augment(images[:, :2], torch.Generator())


def test_cutout_blanks_one_square_around_a_pixel() -> None:
    found = cutout(torch.ones(200, 2, 32, 32), 16, torch.Generator().manual_seed(0)) == 0
    assert torch.equal(found[:, 0], found[:, 1])
    for square in found[:, 0]:
        rows, columns = square.any(1).sum(), square.any(0).sum()
        assert square.sum() == rows * columns
        assert 8 <= rows <= 16
        assert 8 <= columns <= 16
    assert not cutout(torch.ones(1, 1, 8, 8), 0, torch.Generator()).eq(0).any()


def task() -> DataSet:
    images = torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8, generator=_generator())
    split = Split(images=images, labels=torch.arange(32) % 2)
    return DataSet(
        name="noise",
        digest="0" * 64,
        num_classes=2,
        class_names=("a", "b"),
        licence="none",
        inputs=TensorSpec(shape=(3, 8, 8)),
        mean=(0.5,) * 3,
        std=(0.3,) * 3,
        train=split,
        val=split,
        test=split,
    )


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_defaults_are_the_published_settings() -> None:
    settings = SharpDarts(MethodContext(space=SPACE, data=task())).settings
    assert (settings.epochs, settings.batch_size, settings.k) == (50, 64, 1)
    assert (settings.lr, settings.lr_min, settings.lr_power) == (0.025, 1e-4, 2.0)
    assert (settings.lr_warmup_epochs, settings.warmup_epochs) == (5, 0)
    assert (settings.arch_lr, settings.arch_weight_decay) == (3e-4, 1e-3)
    assert (settings.auto_augment, settings.cutout) == (True, 0.5)
    assert not settings.edge_normalisation
    assert settings.learning_rate(5) == 0.025
    assert settings.learning_rate(49) == 1e-4
    with pytest.raises(InvalidInputError, match="below epochs"):
        SharpDarts(MethodContext(space=SPACE, data=task()), epochs=5)


def test_fused_and_unfused_searches_find_the_same() -> None:
    made = [
        SharpDarts(
            MethodContext(space=SPACE, data=task(), seed=3),
            epochs=2,
            batch_size=8,
            lr_warmup_epochs=1,
            weighting="max_w",
            fused=fused,
        )
        for fused in (True, False)
    ]
    for _ in range(made[0].total):
        first, second = (method.step() for method in made)
        assert first.metrics["loss"] == pytest.approx(second.metrics["loss"], abs=1e-3)
    assert made[0].genotype() == made[1].genotype()
