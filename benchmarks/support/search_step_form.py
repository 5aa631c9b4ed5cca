"""One form of the PC-DARTS search step in a process of its own: a line in, a step, a line out.

The forms, on the same network, weights, batch and settings:

- ``reference``: the original's step. Every mixed edge on its own, all gradients computed
  in both halves (those of the weights in the architecture's, and the reverse), one
  optimiser update per tensor.
- ``unfused``: Blockyard's updates on the same network, edge by edge.
- ``fused``: Blockyard's updates as a search takes them; on a GPU in bfloat16, as graphs.

After each line on standard input it takes one step (architecture, then weights) and
prints how long it took in seconds. After the last one it prints its memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from nas.cuda_graphs import GraphedStep
from nas.methods.bilevel_settings import BilevelSettings
from nas.methods.bilevel_updates import BilevelUpdates
from nas.spaces.darts import DartsSpace
from nas.supernet import ArchParameters, SearchCell, Supernet
from nas.supernet_fused import FusedCell

SETTINGS = BilevelSettings(
    epochs=50,
    warmup_epochs=15,
    batch_size=256,
    k=4,
    edge_normalisation=True,
    order=1,
    lr=0.1,
    lr_min=0.0,
    lr_warmup_epochs=0,
    momentum=0.9,
    weight_decay=3e-4,
    clip_norm=5.0,
    arch_lr=6e-4,
    arch_weight_decay=1e-3,
    arch_clip_norm=None,
    weight_share=0.5,
    arch_share=0.5,
    augment=True,
    fused=True,
    precision="auto",
    report_every=0,
)

Batch = tuple[Tensor, Tensor]
Step = Callable[[Batch, Batch], None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("form", choices=("reference", "unfused", "fused"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    before = resident_mib()
    net, arch = networks(options, device)
    batches = [batch(options, device, seed) for seed in (0, 1)]
    step = reference(net, arch) if options.form == "reference" else blockyard(net, arch, device)
    for _ in sys.stdin:
        print(timed(lambda: step(batches[0], batches[1]), device), flush=True)
    print(json.dumps(memory(net, arch, batches[0], device, before)), flush=True)
    return 0


def networks(options: argparse.Namespace, device: torch.device) -> tuple[Supernet, ArchParameters]:
    """Build the CIFAR supernet of PC-DARTS in the asked form, with seeded weights."""
    space = DartsSpace(cells=options.cells, channels=16, nodes=4)
    torch.manual_seed(0)
    drawn = Supernet(space, in_chans=3, num_classes=10, k=SETTINGS.k).state_dict()
    cell: Callable[..., nn.Module] = FusedCell if options.form == "fused" else SearchCell
    net = Supernet(space, in_chans=3, num_classes=10, k=SETTINGS.k, cell=cell)
    net.load_state_dict(drawn)
    generator = torch.Generator().manual_seed(0)
    arch = ArchParameters(space.nodes, len(space.ops), generator=generator)
    return net.to(device).train(), arch.to(device)


def batch(options: argparse.Namespace, device: torch.device, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(options.batch, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (options.batch,), generator=generator)
    if options.form == "fused":
        images = images.contiguous(memory_format=torch.channels_last)
    return images.to(device), labels.to(device)


def reference(net: Supernet, arch: ArchParameters) -> Step:
    """Return the original's step, on modules of the same mathematics."""
    plain = {"foreach": False, "fused": False}
    sgd = torch.optim.SGD(
        net.parameters(),
        SETTINGS.lr,
        SETTINGS.momentum,
        weight_decay=SETTINGS.weight_decay,
        **plain,
    )
    adam = torch.optim.Adam(
        arch.parameters(),
        SETTINGS.arch_lr,
        (0.5, 0.999),
        weight_decay=SETTINGS.arch_weight_decay,
        **plain,
    )

    def step(searched: Batch, trained: Batch) -> None:
        adam.zero_grad()
        torch.autograd.backward(loss(net, arch, searched))
        adam.step()
        sgd.zero_grad()
        torch.autograd.backward(loss(net, arch, trained))
        nn.utils.clip_grad_norm_(net.parameters(), SETTINGS.clip_norm, foreach=False)
        sgd.step()

    return step


def blockyard(net: Supernet, arch: ArchParameters, device: torch.device) -> Step:
    gpu = device.type == "cuda"
    updates = BilevelUpdates(net, arch, SETTINGS, half_precision=gpu)
    search = GraphedStep(updates.architecture) if gpu else updates.architecture
    train = GraphedStep(updates.weights) if gpu else updates.weights

    def step(searched: Batch, trained: Batch) -> None:
        search(*searched, *trained)
        train(*trained)

    return step


def loss(net: Supernet, arch: ArchParameters, given: Batch) -> Tensor:
    images, labels = given
    return F.cross_entropy(net(images, arch()), labels)


def timed(step: Callable[[], None], device: torch.device) -> float:
    """Return the seconds of one step, the device's work included."""
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def memory(
    net: Supernet, arch: ArchParameters, given: Batch, device: torch.device, before: float
) -> dict[str, float]:
    """Return in MiB what the steps took at most, and what one forward pass keeps.

    ``peak`` is the process's highest resident memory over what it had before the network
    was built; on a GPU, the allocator's highest. ``saved`` counts the storages that the
    forward pass of a weight step holds for its backward pass, each once.
    """
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0
    peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - before
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    net.requires_grad_(True)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        kept = loss(net, arch, given)
    del kept
    return {"peak": peak, "saved": sum(held.values()) / 2**20}


def resident_mib() -> float:
    """Return the memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    sys.exit(main())
