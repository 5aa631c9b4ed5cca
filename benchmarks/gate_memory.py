"""Memory of ProxylessNAS's gates: every mode against a step on one path.

Counts the bytes of distinct tensors that autograd keeps for ``backward`` in the ImageNet
supernet (21 searched blocks, 224 pixels), parameters and buffers aside. The counts need
no arithmetic, so they are taken on the meta device, exactly, wherever this runs; where
there is a GPU the allocator's peak over forward and backward is measured beside them.

- ``full_v2_vs_single``: an update of alpha as the search runs it, against a weight step.
- ``full_v2_alike``: the same with weights that ask for gradients, as a weight step's do.

Run: ``python benchmarks/gate_memory.py [--batch 4] [--draws 3] [--json]``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

import report
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.methods.proxyless.costs import IMAGENET
from nas.methods.proxyless.gates import Draw
from nas.methods.proxyless.parameters import ArchParameters
from nas.methods.proxyless.supernet import MODES, Mode, Supernet
from nas.spaces.mbconv import MBConvSpace
from serving.runners.devices import resolve

MIB = 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    space = MBConvSpace()
    arch = ArchParameters(space, seed=0, device=torch.device("cpu"), lr=1e-3)
    kinds: list[tuple[str, Mode | None, bool]] = [("single", None, True)]
    kinds += [(mode, mode, False) for mode in MODES]
    kinds += [(f"{mode}, weights with gradients", mode, True) for mode in MODES]
    devices = [torch.device("meta")]
    if resolve("auto").type == "cuda":
        devices.append(resolve("auto"))
    found: dict[str, dict[str, float]] = {}
    for device in devices:
        with device:
            net = Supernet(space, inputs=IMAGENET, num_classes=1000).train()
        gauge = saved_bytes if device.type == "meta" else peak_bytes
        label = "saved_mib" if device.type == "meta" else "peak_mib"
        found[label] = {
            name: statistics.median(
                gauge(net, step(net, mode, arch, number, options.batch, device, weights))
                for number in range(options.draws)
            )
            / MIB
            for name, mode, weights in kinds
        }
    saved = found["saved_mib"]
    results = {
        "full_v2_vs_single": report.result(saved["full_v2"], saved["single"]),
        "full_v2_alike": report.result(saved["full_v2, weights with gradients"], saved["single"]),
    }
    if options.json:
        report.print_json(
            "gate_memory",
            device={"name": str(devices[-1])},
            versions=report.versions("torch"),
            results=results,
            details={"batch": options.batch, "draws": options.draws, **found},
        )
        return 0
    rows = [
        [
            name,
            *(f"{found[label][name]:.1f}" for label in found),
            f"{saved[name] / saved['single']:.2f}",
        ]
        for name, _, _ in kinds
    ]
    report.print_table(
        f"MiB at batch {options.batch}, median of {options.draws} draws",
        ["step", *found, "saved, against single"],
        rows,
    )
    return 0


def step(
    net: Supernet,
    mode: Mode | None,
    arch: ArchParameters,
    number: int,
    batch: int,
    device: torch.device,
    weights: bool,
) -> Callable[[], Tensor]:
    """Return the forward pass of one step, as a function; every mode runs the same path."""
    one, two = arch.draw(number), arch.draw(number, two=True)
    pairs = [
        [path, second if path != second else first]
        for path, (first, second) in zip(one.paths, two.pairs or [], strict=True)
    ]
    draw = Draw(two.probs, one.active, one.paths, two.pair, pairs) if mode == "two" else one
    images = torch.zeros(batch, 3, 224, 224, device=device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    gates = torch.zeros(len(one.paths), 7, device=device)
    gates.scatter_(1, one.active.to(device).unsqueeze(1), 1).requires_grad_()

    def forward() -> Tensor:
        net.requires_grad_(weights)
        net.zero_grad(set_to_none=True)
        logits = net(images, one.paths) if mode is None else net.gated(images, gates, draw, mode)
        return F.cross_entropy(logits, labels)

    return forward


def saved_bytes(net: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Return the bytes of distinct tensors kept for ``backward``, the network's own aside."""
    known = {item.untyped_storage()._cdata for item in (*net.parameters(), *net.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in known:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def peak_bytes(net: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Return the allocator's peak over forward and backward, above what lay there before."""
    torch.autograd.backward(forward())  # libraries take their workspaces on first use
    net.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.autograd.backward(forward())
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


if __name__ == "__main__":
    sys.exit(main())
