"""The hybrid space cut into stages, and ranked by BossNAS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
import torch

from nas.blockwise import Blockwise, Path
from nas.data import DataSet, load_dataset
from nas.methods.bossnas import BossNAS, blockwise
from nas.plugins import MethodContext
from nas.spaces.hybrid import HybridSpace
from nas.spaces.hybrid_strings import CONSTRAINTS
from zoo.builders import build_chain
from zoo.schemas import Limit
from zoo.spec import TensorSpec

TINY: dict[str, Any] = {
    "widths": (8, 16), "depths": ((1, 2), (1, 3)), "strides": (1, 2), "multipliers": (0.5, 1),
    "stem": 8, "stem_stride": 1, "attention_from": 1, "last": 16,
    "conv_settings": {"expand": 2}, "attention_settings": {"head_dim": 4, "expand": 2},
}  # fmt: skip
SMALLER = TINY | {"depths": ((1, 2), (1, 2)), "multipliers": (1,)}
DIGITS = TensorSpec(shape=(1, 8, 8))


def networks(cut: Blockwise) -> Iterator[tuple[Path, ...]]:
    """Yield every network as its paths, block after block."""
    pending: list[tuple[tuple[Path, ...], int]] = [((), cut.start)]
    while pending:
        paths, interface = pending.pop()
        if len(paths) == cut.num_blocks:
            yield paths
            continue
        block = len(paths)
        pending += [
            ((*paths, path), cut.interface(block, path)) for path in cut.paths(block, interface)
        ]


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_the_paths_of_all_stages_are_the_space(constraint: str) -> None:
    space = HybridSpace(**TINY, constraint=constraint)
    cut = blockwise(space)
    found = list(networks(cut))
    joined = {cut.join(paths) for paths in found}
    assert len(joined) == len(found) == space.size()
    for paths in found:
        assert cut.split(cut.join(paths)) == paths


def test_the_default_stages_have_as_many_paths_as_strings_and_widths() -> None:
    cut = blockwise(HybridSpace())
    assert [len(cut.paths(block, cut.start)) for block in range(4)] == [3, 36, 360, 84]
    rising = blockwise(HybridSpace(constraint="non-decreasing"))
    after = rising.interface(1, rising.split(HybridSpace(constraint="non-decreasing").parse(
        "CC-CT-TTT-TT"))[1])  # fmt: skip
    texts = {path[1:] for path in rising.paths(2, after)}
    assert (0, 0, 1, 2, 2, 2) not in texts  # CCT: a third, after a half
    assert (0, 1, 1, 2, 2, 2) in texts


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_a_path_computes_what_the_derived_blocks_do(constraint: str) -> None:
    space = HybridSpace(**TINY, constraint=constraint)
    cut = blockwise(space)
    architecture = space.parse("CT-CTT @ 1,0.5")
    given, interface, x = DIGITS, cut.start, torch.randn(3, 1, 8, 8)
    specs = []
    for block, path in enumerate(cut.split(architecture)):
        shared = cut.block(block, interface, DIGITS).eval()
        derived = cut.specs(block, interface, path, given)
        body = list(derived)
        if block == 0:
            stem = cut.stem(DIGITS).eval()
            x, body = stem(x), body[1:]
        chain = build_chain(body).eval()
        for depth, module in enumerate(chain, 1):
            module.load_state_dict(shared.part(path, depth).state_dict())
        torch.testing.assert_close(chain(x), shared(x, path))
        x, given, interface = shared(x, path), derived[-1].outputs[0], cut.interface(block, path)
        assert cut.output(block, interface) == (given.shape[0], 1)
        specs += derived
    specs += cut.tail(given, num_classes=10)
    assert tuple(specs) == space.blocks(architecture, inputs=DIGITS, num_classes=10)
    assert x.shape[1:] == given.shape


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    labels = np.arange(60) % 3
    noise = np.random.default_rng(0).integers(0, 60, (60, 1, 8, 8))
    path: File = tmp_path_factory.mktemp("data") / "x.npz"
    np.savez(path, images=(noise + 90 * labels[:, None, None, None]).astype("u1"), labels=labels)
    return load_dataset(f"npz:{path}", root=None, seed=0)


def search(data: DataSet, space: HybridSpace, limits: tuple[Limit, ...] = ()) -> BossNAS:
    method = BossNAS(
        MethodContext(space=space, seed=1, data=data, limits=limits),
        epochs=2, warmup_epochs=1, batch_size=16, accumulate=1, features=8, hidden=8, projection=4,
    )  # fmt: skip
    while not method.step().done:
        pass
    return method


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_the_same_ranker_searches_hybrid_strings(data: DataSet, constraint: str) -> None:
    space = HybridSpace(**SMALLER, constraint=constraint)
    best = search(data, space).best(5)
    assert len(set(best)) == 5
    for architecture in best:
        space.check(architecture)


def test_a_limit_on_cost_holds_for_what_is_derived(data: DataSet) -> None:
    space = HybridSpace(**SMALLER)
    free = search(data, space).best(1)[0]
    most = space.cost(free, inputs=DIGITS, num_classes=3).macs - 1
    tight = search(data, space, (Limit(metric="flops", max=most),)).best(3)
    for architecture in tight:
        assert space.cost(architecture, inputs=DIGITS, num_classes=3).macs <= most
