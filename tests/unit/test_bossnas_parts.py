"""The arithmetic of BossNAS: LARS, schedules, sampling, targets, losses, views."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.blockwise import all_paths
from nas.data import DataSet, Split
from nas.methods.bossnas import (
    Lars,
    ema_momentum,
    ensemble_target,
    fair_paths,
    lars_groups,
    lars_step,
    learning_rate,
    network_score,
    path_loss,
    random_paths,
)
from nas.methods.bossnas.heads import Head, HeadSizes
from nas.methods.bossnas.lars import local_rate
from nas.methods.bossnas.paths import fair_options
from nas.methods.bossnas.views import BYOL, augment, blur, turn_hue, two_views
from nas.spaces.hytra import legal_paths
from zoo.builders import build, placed
from zoo.errors import UnknownNameError
from zoo.families.hytra import Body
from zoo.spec import TensorSpec


def test_a_lars_step_is_the_one_by_hand() -> None:
    """‖w‖ = 5, ‖g‖ = 10, λ = 0.1, η = 0.01: r = 0.05 / 10.5."""
    weight, grad = torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0])
    moved, buffer = lars_step(weight, grad, None, lr=2.0, weight_decay=0.1, eta=0.01)
    update = 2.0 * 0.05 / 10.5 * (grad + 0.1 * weight)
    torch.testing.assert_close(buffer, update)
    torch.testing.assert_close(moved, weight - update)
    again, second = lars_step(moved, grad, buffer, lr=1.0, weight_decay=0.1, eta=0.01)
    norm = float(moved.norm())
    rate = 0.01 * norm / (10 + 0.1 * norm)
    torch.testing.assert_close(second, 0.9 * buffer + rate * (grad + 0.1 * moved))
    torch.testing.assert_close(again, moved - second)


def test_the_optimiser_takes_that_step_and_excludes_norms_and_biases() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.BatchNorm1d(4)), nn.Linear(4, 2))
    groups = lars_groups(net)
    assert {id(item) for item in groups[0]["params"]} == {id(net[0].weight), id(net[2].weight)}
    assert len(groups[1]["params"]) == 4
    optimizer = Lars(groups, lr=0.5, weight_decay=0.01)
    before = {name: item.detach().clone() for name, item in net.named_parameters()}
    buffers: dict[str, Tensor | None] = dict.fromkeys(before)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        net(torch.randn(6, 3)).pow(2).sum().backward()
        for name, item in net.named_parameters():
            assert item.grad is not None
            excluded = name not in ("0.weight", "2.weight")
            before[name], buffers[name] = lars_step(
                before[name], item.grad, buffers[name], lr=0.5, excluded=excluded,
                weight_decay=0.0 if excluded else 0.01,
            )  # fmt: skip
        optimizer.step()
        for name, item in net.named_parameters():
            torch.testing.assert_close(item.detach(), before[name])


def test_what_no_path_used_gets_neither_decay_nor_momentum() -> None:
    used, unused, zero = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = Lars([used, unused, zero], lr=1.0, weight_decay=0.1)
    used.grad, zero.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    moved, buffer = zero.detach().clone(), optimizer.state[zero]["momentum_buffer"].clone()
    used.grad, zero.grad = torch.ones(2), torch.zeros(2)
    optimizer.step()
    assert unused.tolist() == [1, 1]
    assert unused not in optimizer.state
    assert torch.equal(zero.detach(), moved)
    assert torch.equal(optimizer.state[zero]["momentum_buffer"], buffer)


def test_a_weight_of_zeros_can_move() -> None:
    assert local_rate(torch.tensor(0.0), torch.tensor(2.0), 1e-3, 1e-6) == 1
    body = Body(16, kind="attention", head_dim=2)
    assert float(body.last_norm.weight.detach().abs().max()) == 0
    excluded = {id(item) for item in lars_groups(body)[1]["params"]}
    assert id(body.last_norm.weight) in excluded


def test_a_scale_near_zero_moves_at_the_full_rate() -> None:
    """ConvNeXt's starts at 1e-6: a rate proportional to it would keep its branch shut."""
    block = build(placed("convnext.block", TensorSpec(shape=(4, 8, 8)), channels=4))
    excluded = {id(item) for item in lars_groups(block)[1]["params"]}
    apart = {name for name, item in block.named_parameters() if id(item) in excluded}
    assert "scale" in apart
    assert all(item.ndim > 1 or name in apart for name, item in block.named_parameters())


def test_the_momentum_rises_along_a_cosine_to_one() -> None:
    assert ema_momentum(0, 100) == pytest.approx(0.99)
    assert ema_momentum(50, 100) == pytest.approx(1 - 0.01 / 2)
    assert ema_momentum(100, 100) == 1
    assert ema_momentum(25, 100, 0.9) == pytest.approx(1 - 0.1 * (math.sqrt(0.5) + 1) / 2)


def test_the_rate_warms_up_and_falls_by_epochs() -> None:
    rates = [learning_rate(step, 10, 4, 2.0, warmup_epochs=1) for step in range(40)]
    assert rates[0] == pytest.approx(2.0 * 1e-4)
    assert rates[5] == pytest.approx(2.0 * (1 - 0.5 * (1 - 1e-4)))
    for epoch in (1, 2, 3):
        expected = 1 + math.cos(math.pi * epoch / 4)
        assert rates[10 * epoch : 10 * epoch + 10] == pytest.approx([expected] * 10)


def test_fair_sampling_has_each_operation_exactly_once_in_a_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    sets = [fair_paths((4, 4, 4), generator) for _ in range(20)]
    for paths in sets:
        assert len(paths) == 4
        for layer in zip(*paths, strict=True):
            assert sorted(layer) == [0, 1, 2, 3]
    assert len(set(sets)) > 1


def test_random_sampling_draws_distinct_legal_paths_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    legal = legal_paths(1)
    counts = dict.fromkeys(legal, 0)
    for _ in range(800):
        drawn = random_paths(legal, 4, generator)
        assert len(set(drawn)) == 4
        for path in drawn:
            counts[path] += 1
    assert all(140 < count < 260 for count in counts.values())
    assert set(random_paths(legal[:3], 4, generator)) == set(legal[:3])


def test_only_free_layers_of_equal_choice_can_be_sampled_fairly() -> None:
    assert fair_options(all_paths((3, 3))) == (3, 3)
    assert fair_options(all_paths((3, 2))) is None
    assert fair_options(legal_paths(2)) is None
    assert fair_options([(0,) * 30, (9,) * 30]) is None  # their product is not listed


def test_the_ensemble_target_is_the_mean_of_normalised_projections() -> None:
    first, second = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, -2.0]])
    torch.testing.assert_close(
        ensemble_target([first, second]), torch.tensor([[0.3, (0.8 - 1.0) / 2]])
    )
    assert not torch.equal(ensemble_target([first, second]), ensemble_target([first]))


def test_the_loss_of_a_path_crosses_the_views_and_lies_within_four() -> None:
    q1, q2 = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    t1, t2 = torch.tensor([[0.0, 3.0]]), torch.tensor([[5.0, 0.0]])
    assert path_loss((q1, q2), (t1, t2)) == -4
    assert path_loss((q1, q2), (-t1, -t2)) == 4
    assert path_loss((q1, q2), (t2, t1)) == 0
    torch.manual_seed(0)
    a, b = torch.randn(9, 5), torch.randn(9, 5)
    assert path_loss((a, a), (a, a)) == pytest.approx(-4)
    expected = (
        -2 * (F.normalize(a, dim=1) * F.normalize(b, dim=1)).sum(1).mean()
        - 2 * (F.normalize(b, dim=1) * F.normalize(a, dim=1)).sum(1).mean()
    )
    torch.testing.assert_close(path_loss((a, b), (a, b)), expected)


def test_a_network_scores_the_sum_over_its_blocks_above_minus_four() -> None:
    assert network_score([-4.0, -3.5, -1.0]) == pytest.approx(3.5)


def test_projector_and_predictor_have_the_published_form() -> None:
    torch.manual_seed(0)
    head = Head({0: (8, 4)}, HeadSizes(), predicts=True)
    assert head.predictor is not None
    for part, shape in ((head.projector, (2048, 4096, 256)), (head.predictor, (256, 4096, 256))):
        first, norm, relu, last = part
        assert (first.in_features, first.out_features, last.out_features) == shape
        assert isinstance(norm, nn.BatchNorm1d)
        assert isinstance(relu, nn.ReLU)
        assert first.bias is not None
        assert last.bias is not None
    assert float(head.predictor[0].weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert head(torch.randn(2, 8, 7, 7), 0).shape == (2, 256)


@pytest.fixture
def data() -> DataSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8, generator=generator)
    split = Split(images=images, labels=torch.arange(6) % 3)
    return DataSet(
        name="made", digest="0" * 64, num_classes=3, class_names=("a", "b", "c"), licence="none",
        inputs=TensorSpec(shape=(3, 16, 16)), mean=(0.5,) * 3, std=(0.3,) * 3, train=split,
        val=split, test=split,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["byol", "crop"])
def test_views_differ_and_are_a_function_of_the_generator(data: DataSet, kind: str) -> None:
    def made(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return two_views(data, data.train.images, kind, generator)  # type: ignore[arg-type]

    first, second = made(0)
    assert first.shape == second.shape == (6, 3, 16, 16)
    assert not torch.equal(first, second)
    assert torch.equal(made(0)[1], second)
    assert not torch.equal(made(1)[0], first)
    with pytest.raises(UnknownNameError):
        two_views(data, data.train.images, "crops", torch.Generator())  # type: ignore[arg-type]


def test_the_second_view_alone_is_always_blurred_and_sometimes_solarised() -> None:
    assert [recipe.blur for recipe in BYOL] == [0.1, 1.0]
    assert [recipe.solarise for recipe in BYOL] == [0.0, 0.2]
    noise = torch.rand(200, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    rough = [
        float(augment(noise, recipe, torch.Generator().manual_seed(1)).diff(dim=3).abs().mean())
        for recipe in BYOL
    ]
    assert rough[1] < rough[0]


def test_blurring_keeps_a_flat_image_and_turning_the_hue_keeps_brightness() -> None:
    sigma = torch.full((2, 1, 1, 1), 2.0)
    flat = torch.full((2, 3, 32, 32), 0.25)
    torch.testing.assert_close(blur(flat, sigma), flat)
    image = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    angle = torch.tensor([0.7, 0.0]).view(2, 1, 1, 1)
    turned = turn_hue(image, angle)
    shares = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    torch.testing.assert_close((turned * shares).sum(1), (image * shares).sum(1), atol=2e-3, rtol=0)
    torch.testing.assert_close(turned[1], image[1])
    assert not torch.allclose(turned[0], image[0], atol=0.01)
