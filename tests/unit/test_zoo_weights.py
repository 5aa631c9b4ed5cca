"""Weights as bytes, and blocks and chains made from them again."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from zoo.builders import register
from zoo.canonical import digest as digest_of
from zoo.errors import CorruptArtifactError, IncompatibleShapeError, NotFoundError, UnknownNameError
from zoo.spec import Block, BlockSpec, Chain, TensorSpec
from zoo.store.files import FileStore
from zoo.weights import block_of, load_block, load_chain, pack, unpack


@register("test.normed")
def build_normed(spec: BlockSpec) -> nn.Module:
    (width,) = spec.inputs[0].shape
    assert width is not None
    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Dropout(0.5))


def spec_of(width: int = 4, op: str = "test.normed") -> BlockSpec:
    interface = (TensorSpec(shape=(width,)),)
    return BlockSpec(op=op, inputs=interface, outputs=interface)


@pytest.fixture
def files(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


def trained(width: int = 4) -> nn.Module:
    module = build_normed(spec_of(width))
    module(torch.randn(8, width))  # moves the running statistics
    return module


def test_weights_come_back_bit_for_bit() -> None:
    state = {
        "b": torch.randn(3, 5),
        "a": torch.tensor(7),
        "half": torch.randn(4).bfloat16(),
        "turned": torch.randn(2, 3).t(),
        "empty": torch.empty(0, 2),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    again = unpack(pack(state))
    assert again.keys() == state.keys()
    for name, tensor in state.items():
        assert again[name].dtype == tensor.dtype
        assert again[name].shape == tensor.shape
        assert (
            again[name].contiguous().view(torch.uint8).equal(tensor.contiguous().view(torch.uint8))
            if tensor.dim()
            else again[name].equal(tensor)
        )


def test_equal_weights_give_equal_bytes_whatever_their_order_and_layout() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    one = {"x": weight, "y": torch.ones(2)}
    two = {"y": torch.ones(4)[:2], "x": weight.t().contiguous().t()}
    assert pack(one) == pack(two)


def test_the_bytes_are_the_same_in_another_process() -> None:
    code = (
        "import torch, sys; from zoo.weights import pack; from zoo.canonical import digest;"
        "print(digest(pack({'w': torch.arange(10.0), 'b': torch.zeros(3)})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = digest_of(pack({"b": torch.zeros(3), "w": torch.arange(10.0)}))
    assert done.stdout.strip() == here


def test_tied_weights_are_kept_under_both_names() -> None:
    shared = torch.randn(3)
    again = unpack(pack({"a": shared, "b": shared}))
    assert again["a"].equal(shared)
    assert again["b"].equal(shared)


@pytest.mark.parametrize("data", [b"", b"{}", b"\x80\x04pickle", bytes(100), b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptArtifactError, match="safetensors"):
        unpack(data)


def test_a_block_computes_the_same_after_its_round_trip(files: FileStore) -> None:
    module = trained()
    block = block_of(spec_of(), module, files, signature="s")
    loaded = load_block(block, files)
    assert not loaded.training
    probe = torch.randn(5, 4)
    assert loaded(probe).equal(module.eval()(probe))
    assert block.signature == "s"
    assert block.num_params == 4 * 4 + 4 + 4 + 4
    assert block.size_bytes == 4 * (16 + 4 + 4 * 4) + 8


def test_a_block_without_weights_is_a_block(files: FileStore) -> None:
    @register("test.identity")
    def build_identity(_: BlockSpec) -> nn.Module:
        return nn.Identity()

    block = block_of(spec_of(op="test.identity"), nn.Identity(), files)
    assert (block.num_params, block.size_bytes) == (0, 0)
    assert load_block(block, files)(torch.ones(1)).equal(torch.ones(1))


def test_loading_leaves_the_global_generator_alone(files: FileStore) -> None:
    block = block_of(spec_of(), trained(), files)
    before = torch.random.get_rng_state()
    load_block(block, files)
    assert torch.random.get_rng_state().equal(before)


def test_weights_keep_their_own_type(files: FileStore) -> None:
    block = block_of(spec_of(), trained().double(), files)
    assert {p.dtype for p in load_block(block, files).parameters()} == {torch.float64}


def test_a_chain_runs_its_blocks_in_order_and_loads_each_once(files: FileStore) -> None:
    first, second = trained(), trained()
    blocks = [block_of(spec_of(), module, files) for module in (first, second)]
    chain = Chain(blocks=(blocks[0], blocks[1], blocks[0]))
    loaded = load_chain(chain, files)
    assert not any(module.training for module in loaded.modules())
    assert loaded[0] is loaded[2]
    probe = torch.randn(3, 4)
    expected = first.eval()(second.eval()(first.eval()(probe)))
    assert loaded(probe).equal(expected)


def test_loading_says_what_is_wrong(files: FileStore) -> None:
    block = block_of(spec_of(), trained(), files)
    wider = dataclasses.replace(block, spec=spec_of(5))
    with pytest.raises(IncompatibleShapeError, match=r"test\.normed"):
        load_block(wider, files)
    with pytest.raises(UnknownNameError, match=r"test\.nothing"):
        load_block(dataclasses.replace(block, spec=spec_of(op="test.nothing")), files)
    absent = Block(spec=spec_of(), weights=digest_of(b"?"), num_params=0, size_bytes=0)
    with pytest.raises(NotFoundError):
        load_block(absent, files)
    damaged = next(iter(files.root.rglob(block.weights)))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x00\x01")
    with pytest.raises(CorruptArtifactError, match=block.weights):
        load_block(block, files)
