"""Weights as safetensors bytes, and blocks and chains made from them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor, nn

from zoo.builders import ChainModule, build
from zoo.errors import CorruptArtifactError, IncompatibleShapeError
from zoo.spec import Block, BlockSpec, Chain
from zoo.store.protocols import Files


def pack(weights: nn.Module | Mapping[str, Tensor]) -> bytes:
    """Encode weights as safetensors; equal weights give equal bytes on every machine.

    Tensors that share memory are written once each, under their own names.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    return safetensors_torch.save(
        {
            name: state[name].detach().to("cpu").clone(memory_format=torch.contiguous_format)
            for name in sorted(state)
        }
    )


def unpack(data: bytes) -> dict[str, Tensor]:
    """Decode safetensors bytes into CPU tensors.

    Raises:
        CorruptArtifactError: They are no safetensors file.
    """
    try:
        return safetensors_torch.load(data)
    except SafetensorError as error:
        raise CorruptArtifactError(
            f"{len(data)} bytes are no safetensors file: {error}; save the weights again"
        ) from error


def block_of(
    spec: BlockSpec, module: nn.Module, files: Files, *, signature: str | None = None
) -> Block:
    """Store the weights of ``module`` and return the block; ``size_bytes`` counts its tensors."""
    state = module.state_dict()
    return Block(
        spec=spec,
        weights=files.put(pack(state)),
        num_params=sum(parameter.numel() for parameter in module.parameters()),
        size_bytes=sum(tensor.numel() * tensor.element_size() for tensor in state.values()),
        signature=signature,
    )


def load_block(block: Block, files: Files) -> nn.Module:
    """Build a block with its weights, in eval mode, on the CPU and in the weights' own types.

    Raises:
        NotFoundError: Its weights are not in ``files``.
        CorruptArtifactError: Its weights changed on disk.
        UnknownNameError: No installed family builds ``block.spec.op``.
        IncompatibleShapeError: The weights are not those of the operation.
    """
    state = unpack(files.get(block.weights))
    with torch.random.fork_rng(devices=[]):
        module = build(block.spec)
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise IncompatibleShapeError(
            f"weights {block.weights} do not fit operation {block.spec.op!r}: {error}"
        ) from error
    return module.eval()


def load_chain(chain: Chain, files: Files) -> ChainModule:
    """Build a chain with its weights, in eval mode; a block that recurs is one module.

    Raises:
        BlockyardError: As for ``load_block``.
    """
    modules = {block.id: block for block in chain.blocks}
    loaded = {block_id: load_block(block, files) for block_id, block in modules.items()}
    chained = ChainModule(*(loaded[block.id] for block in chain.blocks))
    chained.eval()
    return chained
