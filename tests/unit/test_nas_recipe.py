"""Every element of a recipe against its formula, and how recipes are named and identified."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from nas import regularisation
from nas.auxiliary import AuxiliaryHead, AuxiliaryTap, auxiliary_place
from nas.drop_path_schedules import keep_at_depth, scheduled_keep
from nas.learning_rates import cosine, linear_epoch, rate_of
from nas.recipe import FixedRecipe, describe_recipe, preset
from nas.spaces.darts import DartsSpace
from nas.spaces.nasnet import NASNET_A, NasnetSpace
from nas.training import smoothed_cross_entropy
from zoo.builders import ChainModule
from zoo.canonical import canonical_json
from zoo.errors import InvalidInputError, UnknownNameError
from zoo.families.darts import Cell
from zoo.families.drop_path import DropPath
from zoo.families.mbconv import MBConvBlock
from zoo.recipes import PRESETS, SCHEDULES
from zoo.schemas import Recipe
from zoo.spec import TensorSpec

PC_DARTS_CIFAR = (
    "normal: sep_conv_3x3(1) + skip_connect(0) | sep_conv_3x3(0) + dil_conv_3x3(1) | "
    "sep_conv_5x5(0) + sep_conv_3x3(1) | avg_pool_3x3(0) + dil_conv_3x3(1); "
    "reduce: sep_conv_5x5(1) + max_pool_3x3(0) | sep_conv_5x5(1) + sep_conv_5x5(2) | "
    "sep_conv_3x3(0) + sep_conv_3x3(3) | sep_conv_3x3(1) + sep_conv_3x3(2)"
)


def rates(recipe: FixedRecipe, steps: int = 1) -> list[float]:
    return [rate_of(recipe, step, steps) for step in range(recipe.epochs * steps)]


def test_an_epochwise_cosine_is_that_of_darts() -> None:
    recipe = FixedRecipe(epochs=600, lr=0.025, schedule="cosine-epoch", lr_min=0.001)
    wanted = [0.001 + 0.012 * (1 + math.cos(math.pi * e / 600)) for e in range(600)]
    assert rates(recipe) == pytest.approx(wanted, rel=1e-12)
    stepwise = rates(replace(recipe, epochs=3), steps=4)
    assert len(set(stepwise)) == 3
    assert stepwise[:4] == [0.025] * 4


def test_a_linear_schedule_is_that_of_pc_darts_on_imagenet() -> None:
    recipe = preset("pc-darts-imagenet")
    found = rates(recipe)
    warm = [0.5 * (245 - e) / 245 * (e + 1) / 5 for e in range(5)]
    long = [0.5 * (245 - e) / 245 for e in range(5, 245)]
    tail = [0.5 * (250 - e) / (245 * 5) for e in range(245, 250)]
    assert found == pytest.approx(warm + long + tail, rel=1e-12)
    assert [linear_epoch(e, 4, 1.0) for e in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_darts_on_imagenet_is_trained_as_its_code_says() -> None:
    recipe = preset("darts-imagenet")
    assert rates(recipe) == pytest.approx([0.1 * 0.97**e for e in range(250)], rel=1e-12)
    assert rates(recipe, steps=2)[:4] == [0.1, 0.1, 0.1 * 0.97, 0.1 * 0.97]
    assert rates(replace(recipe, lr_min=0.05))[-1] == 0.05
    warm = replace(recipe, warmup_epochs=2)
    assert rates(warm)[:3] == pytest.approx([0.05, 0.1 * 0.97, 0.1 * 0.97**2])
    stated = {
        "epochs": 250, "batch_size": 128, "lr": 0.1, "momentum": 0.9, "weight_decay": 3e-5,
        "nesterov": False, "clip_norm": 5.0, "label_smoothing": 0.1, "auxiliary": 0.4,
        "drop_path": 0.0, "cutout": 0, "augment": True, "crop": "resized",
        "color_jitter": (0.4, 0.4, 0.4, 0.2), "schedule": "exponential", "gamma": 0.97,
    }  # fmt: skip
    assert {name: getattr(recipe, name) for name in stated} == stated


def test_a_stepwise_cosine_with_stated_warm_up_covers_the_rest_of_the_steps() -> None:
    recipe = FixedRecipe(epochs=5, lr=0.4, warmup_epochs=2, lr_min=0.1)
    found = rates(recipe, steps=3)
    assert found[:6] == pytest.approx([0.4 * (t + 1) / 6 for t in range(6)])
    assert found[6:] == pytest.approx(
        [0.1 + 0.15 * (1 + math.cos(math.pi * t / 9)) for t in range(9)]
    )
    published = rates(replace(recipe, warmup_epochs=0, lr_min=0.0), steps=3)
    assert published == pytest.approx([cosine(t, 15, 0.4) for t in range(15)])


def test_cosine_power_is_chosen_by_its_name() -> None:
    found = rates(preset("sharpdarts-cifar", epochs=20), steps=2)[::2]
    shares = [2 ** ((1 + math.cos(math.pi * e / 15)) / 2 + 1) for e in range(1, 16)]
    top, low = 4.0, 2.0
    falling = [1e-8 + (q - low) / (top - low) * (0.025 - 1e-8) for q in shares]
    assert found[6:] == pytest.approx(falling[1:], rel=1e-9)
    assert found[5] == 0.025
    assert found[-1] == pytest.approx(1e-8, rel=1e-6)


def test_an_unknown_schedule_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="cosine-epoch"):
        rate_of(FixedRecipe(epochs=1, schedule="step"), 0, 1)
    with pytest.raises(ValueError, match="choose one of: cosine, cosine-epoch"):
        Recipe(epochs=1, schedule="step")
    for name in SCHEDULES:
        assert rate_of(FixedRecipe(epochs=3, schedule=name), 0, 2) > 0


def test_cutout_blackens_a_square_clipped_at_the_border() -> None:
    for row in range(8):
        for column in range(6):
            mask = regularisation.cutout_mask(
                torch.tensor([row]), torch.tensor([column]), 8, 6, side=4
            )[0, 0]
            wanted = torch.zeros(8, 6, dtype=torch.bool)
            wanted[max(row - 2, 0) : row + 2, max(column - 2, 0) : column + 2] = True
            assert torch.equal(mask, wanted)


def test_cutout_changes_nothing_outside_its_square_and_repeats_with_its_generator() -> None:
    images = torch.rand(64, 3, 8, 8) + 1
    once, again = (
        regularisation.cutout(images, 4, torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert torch.equal(once, again)
    gone = once == 0
    assert torch.equal(once[~gone], images[~gone])
    per_image = gone[:, 0].flatten(1).sum(1)
    assert int(per_image.min()) >= 4
    assert int(per_image.max()) == 16
    assert len({tuple(image.flatten().tolist()) for image in gone[:, 0]}) > 10
    assert torch.equal(gone[:, 0], gone[:, 2])


def test_keep_probabilities_follow_nasnet_s_formula() -> None:
    for cell in range(20):
        for step in (0, 1, 468_750, 937_500, 2_000_000):
            keep_layer = 1 - (cell + 1) / 20 * (1 - 0.6)
            wanted = 1 - min(1, step / 937_500) * (1 - keep_layer)
            found = keep_at_depth(0.6, (cell + 1) / 20, step=step, steps=937_500)
            assert found == pytest.approx(wanted, abs=1e-15)
            assert found == scheduled_keep(0.6, cell=cell, cells=20, step=step, steps=937_500)
    assert keep_at_depth(0.6, 1.0, step=937_500, steps=937_500) == pytest.approx(0.6)
    assert regularisation.linear_drop_path(0.3, 0, 600) == 0
    assert regularisation.linear_drop_path(0.3, 599, 600) == pytest.approx(0.2995)


def test_drop_path_keeps_the_mean_and_drops_whole_samples() -> None:
    path = DropPath().train()
    path.rate = 0.3
    torch.manual_seed(0)
    out = path(torch.ones(20_000, 2, 2))
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)
    samples = out.flatten(1)
    assert torch.equal(samples.amin(1), samples.amax(1))
    assert set(samples[:, 0].tolist()) == {0.0, float(torch.tensor(1 / 0.7))}
    assert float((samples[:, 0] == 0).float().mean()) == pytest.approx(0.3, abs=0.01)


def test_a_cell_drops_every_edge_but_plain_skips() -> None:
    nodes = ((("skip_connect", 0), ("skip_connect", 1)), (("sep_conv_3x3", 0), ("none", 1)))
    settings: dict[str, Any] = {"reduction": False, "reduction_prev": False, "last": True}
    cell = Cell((4, 4), 4, nodes, **settings)
    assert not any("drop_path" in name for name in cell.state_dict())
    x = torch.randn(8, 4, 5, 5)
    cell.drop_path.rate = 0.999999
    cell.train()
    out = cell(x, x)
    assert bool((out[:, :4] != 0).any())
    assert not bool(out[:, 4:].any())
    cell.eval()
    assert bool((cell(x, x)[:, 4:] != 0).any())


def test_an_inverted_residual_drops_its_path_and_keeps_its_shortcut() -> None:
    block = MBConvBlock(4, 4, expand=3, kernel=3, stride=1, skip=True).train()
    block.drop_path.rate = 0.999999
    x = torch.randn(4, 4, 5, 5)
    assert torch.equal(block(x), x)


def test_a_network_without_paths_refuses_a_drop_rate() -> None:
    with pytest.raises(InvalidInputError, match="no path that could be dropped"):
        regularisation.drop_paths(nn.Linear(2, 2))
    with pytest.raises(InvalidInputError, match="no linear layer"):
        regularisation.drop_before_classifier(nn.ReLU(), 0.5)


def test_dropout_stands_before_the_classifier_until_it_is_undone() -> None:
    network = nn.Sequential(nn.Linear(4, 100, bias=False), nn.Linear(100, 1, bias=False))
    for layer in network:
        nn.init.ones_(layer.weight)  # type: ignore[arg-type]
    undo = regularisation.drop_before_classifier(network, 0.5)
    x = torch.ones(1, 4)
    dropped = {float(network(x).detach()) for _ in range(5)}
    assert len(dropped) > 1
    assert all(value % 8 == 0 for value in dropped)
    assert float(network.eval()(x).detach()) == 400
    undo()
    assert float(network.train()(x).detach()) == 400


def test_weight_decay_spares_what_it_is_told_to() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    sizes = {
        ("norms",): [18 + 2 + 4 + 2, 2 + 2],
        ("biases",): [18 + 4 + 2 + 2, 2 + 2],
        ("norms", "biases"): [18 + 4, 2 + 2 + 2 + 2],
    }
    for no_decay, wanted in sizes.items():
        groups = regularisation.parameter_groups(network, no_decay)
        assert [sum(p.numel() for p in group["params"]) for group in groups] == wanted
        assert groups[1]["weight_decay"] == 0


def test_averaged_weights_follow_the_formula_and_copy_counters() -> None:
    network = nn.BatchNorm1d(2, dtype=torch.float64)
    average = regularisation.AveragedWeights(network, 0.9)
    expected = network.weight.detach().clone()
    for step in range(40):
        with torch.no_grad():
            network.weight.add_(1.0)
            network.running_mean.copy_(network.weight)
            network.num_batches_tracked.add_(1)
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network.weight.detach()
    torch.testing.assert_close(average.average["weight"], expected, rtol=1e-12, atol=0)
    assert int(average.average["num_batches_tracked"]) == 40
    mean = average.average["running_mean"]
    assert bool((mean > 30).all())
    assert bool((mean < network.running_mean).all())


def test_label_smoothing_is_the_published_loss() -> None:
    logits, labels = torch.randn(6, 5), torch.tensor([0, 4, 2, 2, 1, 3])
    targets = 0.9 * functional.one_hot(labels, 5) + 0.1 / 5
    wanted = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(smoothed_cross_entropy(logits, labels, 0.1), wanted)
    half = smoothed_cross_entropy(logits.bfloat16(), labels, 0.1)
    assert half.dtype == torch.float32


def test_the_final_network_and_its_auxiliary_head_have_the_published_sizes() -> None:
    space = DartsSpace(cells=20, channels=36)
    architecture = space.parse(PC_DARTS_CIFAR)
    with torch.device("meta"):
        network = space.build(architecture, inputs=TensorSpec(shape=(3, 32, 32)), num_classes=10)
    assert isinstance(network, ChainModule)
    assert sum(p.numel() for p in network.parameters()) == 3_634_678
    place = auxiliary_place(list(network))
    assert place == 1 + 13  # behind the stem, after cell 13
    head = AuxiliaryHead(576, (8, 8), 10)
    assert sum(p.numel() for p in head.parameters()) == 476_426
    assert head(torch.zeros(2, 576, 8, 8)).shape == (2, 10)
    nasnet = AuxiliaryHead(384, (16, 16), 10)
    assert sum(p.numel() for p in nasnet.parameters()) == 1_631_498
    imagenet = AuxiliaryHead(768, (7, 7), 1000).eval()
    assert [layer for layer in imagenet if isinstance(layer, nn.Conv2d)][1].kernel_size == (2, 2)
    for side in range(1, 20):
        assert AuxiliaryHead(2, (side, 3), 4).eval()(torch.zeros(1, 2, side, 3)).shape == (1, 4)


def test_a_nasnet_says_itself_where_its_head_stands_and_how_deep_its_paths_are() -> None:
    space = NasnetSpace(preset="cifar", outputs="free")
    with torch.device("meta"):
        network = space.build(
            space.encode(NASNET_A), inputs=TensorSpec(shape=(3, 32, 32)), num_classes=10
        )
    assert isinstance(network, ChainModule)
    place = auxiliary_place(list(network))
    assert place == 1 + 6 + 1 + 6 - 1  # stem, six cells, a reduction, the last cell before another
    depths = sorted({path.depth for path in regularisation.drop_paths(network)})
    assert depths == pytest.approx([(cell + 1) / 20 for cell in range(20)])


def test_the_auxiliary_head_reads_the_cell_it_stands_after() -> None:
    space = DartsSpace(cells=3, channels=2, nodes=1)
    inputs = TensorSpec(shape=(1, 8, 8))
    architecture = space.parse(
        "normal: sep_conv_3x3(0) + skip_connect(1); reduce: max_pool_3x3(0) + skip_connect(1)"
    )
    network = space.build(architecture, inputs=inputs, num_classes=3)
    before = canonical_json(sorted(network.state_dict()))
    x = torch.randn(4, 1, 8, 8)
    tap = AuxiliaryTap(network, x, num_classes=3, seed=5)
    assert auxiliary_place(list(network)) == 3
    network.train()
    network(x)
    tap.head.eval()
    second = tap.logits()
    with torch.no_grad():
        state: Any = x
        outputs = (x,)
        for block in list(network)[:4]:
            made = block.train()(*outputs)
            outputs = made if isinstance(made, tuple) else (made,)
            state = outputs[-1]
        torch.testing.assert_close(second, tap.head(state))
    second.sum().backward()
    assert network[0].layers[0].weight.grad is not None  # type: ignore[union-attr,index]
    assert network[-1][-1].weight.grad is None  # type: ignore[index,union-attr]
    tap.detach()
    assert canonical_json(sorted(network.state_dict())) == before
    again = AuxiliaryTap(network, x, num_classes=3, seed=5)
    assert torch.equal(again.head[2].weight, tap.head[2].weight)  # type: ignore[arg-type]
    again.detach()


def test_an_auxiliary_head_without_a_place_to_stand_is_an_error() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(InvalidInputError, match="chain of blocks"):
        AuxiliaryTap(nn.Linear(2, 2), x, num_classes=2, seed=0)
    short = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(InvalidInputError, match="at least 3 blocks, not 2"):
        AuxiliaryTap(short, x, num_classes=2, seed=0)
    flat = nn.Sequential(*short, nn.Linear(2, 2))
    with pytest.raises(InvalidInputError, match=r"reads images, not \[1, 2\]"):
        AuxiliaryTap(flat, x, num_classes=2, seed=0)


# Names and identity.

CHANGED: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 32,
    "lr": 0.1,
    "momentum": 0.5,
    "weight_decay": 0.0,
    "clip_norm": None,
    "augment": False,
    "label_smoothing": 0.1,
    "schedule": "linear",
    "warmup_epochs": 0,
    "lr_min": 0.01,
    "power": 3.0,
    "gamma": 0.9,
    "nesterov": False,
    "no_decay": ("norms",),
    "crop": "resized",
    "color_jitter": (0.4, 0.4, 0.4, 0.2),
    "auto_augment": True,
    "cutout": 2,
    "drop_path": 0.1,
    "drop_path_schedule": "scheduled",
    "dropout": 0.1,
    "auxiliary": 0.4,
    "ema": 0.99,
    "precision": "auto",
}


def test_a_recipe_of_defaults_keeps_the_key_that_it_always_had() -> None:
    known = (
        '{"augment":true,"batch_size":64,"clip_norm":5.0,"epochs":3,"label_smoothing":0.0,'
        '"lr":0.05,"momentum":0.9,"weight_decay":0.0003}'
    )
    for recipe in (FixedRecipe(epochs=3), Recipe(epochs=3)):
        assert canonical_json(describe_recipe(recipe)) == canonical_json(json.loads(known))


def test_every_field_changes_the_description_and_both_forms_agree() -> None:
    names = {item.name for item in fields(FixedRecipe)}
    assert names == CHANGED.keys() == Recipe.model_fields.keys()
    plain = describe_recipe(FixedRecipe(epochs=3))
    for name, value in CHANGED.items():
        chosen: dict[str, Any] = {"epochs": 3, name: value}
        described = describe_recipe(FixedRecipe(**chosen))
        assert described != plain
        assert canonical_json(described) == canonical_json(describe_recipe(Recipe(**chosen)))


def test_a_recipe_that_lacks_newer_fields_has_their_defaults() -> None:
    class Old:
        epochs, batch_size, lr, momentum = 3, 64, 0.05, 0.9
        weight_decay, clip_norm, augment, label_smoothing = 3e-4, 5.0, True, 0.0

    assert describe_recipe(Old()) == describe_recipe(FixedRecipe(epochs=3))


def test_presets_state_what_their_papers_do_and_can_be_overruled() -> None:
    assert preset("pc-darts-cifar").drop_path == 0.3
    nasnet = preset("nasnet-cifar")
    assert 1 - nasnet.drop_path == pytest.approx(0.6)
    assert nasnet.epochs * 50_000 / nasnet.batch_size == 937_500
    for name in PRESETS:
        given = Recipe.model_validate({"preset": name})
        assert describe_recipe(given) == describe_recipe(preset(name))
    short = Recipe.model_validate({"preset": "pc-darts-cifar", "epochs": 2})
    assert (short.epochs, short.cutout, short.auxiliary) == (2, 16, 0.4)
    with pytest.raises(UnknownNameError, match="pc-darts-cifar"):
        preset("darts-mnist")
    with pytest.raises(ValueError, match="nasnet-cifar"):
        Recipe.model_validate({"preset": "darts-mnist"})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"lr": 0.1, "lr_min": 0.2}, "lr_min 0.2 is above lr 0.1"),
        ({"warmup_epochs": 4}, "warmup_epochs 4 are more than the 3 epochs"),
        ({"schedule": "cosine-power", "warmup_epochs": 3}, "must be below the 3 epochs"),
        ({"no_decay": ["weights"]}, "no_decay"),
        ({"crop": "centre"}, "crop"),
        ({"color_jitter": [0.4, 0.4]}, "give four strengths"),
        ({"color_jitter": [0.4, 0.4, 0.4, 0.6]}, "at most 0.5"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"precision": "int8"}, "precision"),
    ],
)
def test_what_a_recipe_cannot_be_is_said(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Recipe.model_validate({"epochs": 3, **wrong})
