"""Training in the trainer: to the end for the zoo, and kept after its epochs in any case."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from nas import checkpoint
from nas.cost import cost
from nas.data import DataSet
from nas.training import Keep, Progress, Training, accuracy, train
from serving.runners.onnx_export import export_onnx
from workers.wire import Message
from zoo.builders import build_chain
from zoo.rng import derive_seed
from zoo.schemas import Recipe
from zoo.signature import block_signature
from zoo.spec import BlockSpec
from zoo.weights import pack, unpack

CHECKPOINT_SHARE = 0.05
"""At most this share of the time goes into keeping states; big ones are kept less often."""

Curve = dict[str, list[float]]


class StateKeeper:
    """Sends the state of a training upwards every ``every_s`` seconds, between two epochs.

    ``to_the_last`` sends it after the last epoch in any case: what follows may still fail.
    """

    def __init__(
        self, send: Callable[..., None], curve: Curve, *, every_s: float, to_the_last: bool
    ) -> None:
        self._send, self._curve = send, curve
        self._every_s, self._to_the_last = every_s, to_the_last
        self._due = time.monotonic() + every_s

    def __call__(self, training: Training) -> None:
        started = time.monotonic()
        last = training.epoch == training.recipe.epochs
        if (last and not self._to_the_last) or (not last and started < self._due):
            return
        state = {"training": training.state_dict(), "curve": self._curve}
        self._send(checkpoint.pack(state), epoch=training.epoch)
        now = time.monotonic()
        self._due = now + max(self._every_s, (now - started) / CHECKPOINT_SHARE)


def kept_state(
    args: Mapping[str, Any], blobs: Sequence[bytes], curve: Curve
) -> Mapping[str, Any] | None:
    """Return the state to go on from, if the worker sent one, and fill in its ``curve``."""
    curve.clear()
    if not args.get("resume"):
        return None
    state: dict[str, Any] = checkpoint.unpack(blobs[-1])
    curve.update(state["curve"])
    training: dict[str, Any] = state["training"]
    return training


def fit(
    specs: Sequence[BlockSpec],
    data: DataSet,
    args: Mapping[str, Any],
    blobs: Sequence[bytes],
    *,
    curve: Curve,
    progress: Progress,
    keep: Keep,
    exporting: Callable[[], None],
) -> Message:
    """Train a chain to the end and return its blocks and its ONNX file.

    ``blobs`` are the weights of its first ``args["weights"]`` blocks, the others being fresh,
    and with ``args["resume"]`` a kept state. The answer's blobs are each block's weights,
    then the ONNX file.
    """
    device = torch.device(args["device"])
    module = build_chain(specs, seed=derive_seed(args["seed"], "weights"))
    for block, blob in zip(module, blobs[: args.get("weights", 0)], strict=False):
        block.load_state_dict(unpack(blob))
    counted = cost(module, data.inputs).metrics()
    result = train(
        module,
        data,
        Recipe.model_validate(args["recipe"]),
        device=device,
        seed=args["seed"],
        progress=progress,
        resume=kept_state(args, blobs, curve),
        keep=keep,
    )
    exporting()
    on_device = data.to(device)
    metrics = {
        **counted,
        "accuracy": accuracy(module, on_device, on_device.test),
        "val_accuracy": accuracy(module, on_device, on_device.val),
    }
    module = module.cpu().eval()
    onnx = export_onnx(module, specs[0].inputs, specs[-1].outputs)
    head = {
        "kind": "fitted",
        "blocks": [_block_json(spec, block) for spec, block in zip(specs, module, strict=True)],
        "metrics": metrics,
        "cost_s": result.cost_s,
        "curve": curve,
    }
    return Message(head, (*(pack(block) for block in module), onnx))


def _block_json(spec: BlockSpec, module: torch.nn.Module) -> dict[str, Any]:
    """Return what a ``zoo.spec.Block`` says beside the digest of its weights."""
    return {
        "spec": spec.to_json(),
        "num_params": sum(parameter.numel() for parameter in module.parameters()),
        "size_bytes": sum(t.numel() * t.element_size() for t in module.state_dict().values()),
        "signature": block_signature(spec, module),
    }
