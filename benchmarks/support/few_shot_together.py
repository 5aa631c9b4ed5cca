"""Gradients of four sub-supernets: in turns, side by side, as one network of stacked weights."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

from nas.methods.few_shot.lanes import Lanes
from nas.spaces.nasbench201 import NasBench201Space
from nas.supernet import Mixture
from nas.supernet_nasbench201 import KIND, NasBench201Supernet

GROUPS = ((0, 1), (2, 3, 4))
EVERY = (0, 1, 2, 3, 4)


def seconds(
    channels: int, *, device: torch.device, batch: int = 48, repeats: int = 5
) -> dict[str, float]:
    """Return the least time by the clock of each form, after two splits of a supernet.

    All forms have PyTorch's present number of threads, or the GPU, for themselves.
    """
    active = [(first, second, *[EVERY] * 4) for first, second in product(GROUPS, GROUPS)]
    ops = torch.zeros(4, 6, 5)
    for net, rows in enumerate(active):
        for edge, row in enumerate(rows):
            ops[net, edge, list(row)] = 1 / len(row)
    ops, edges = ops.to(device), torch.ones(6, device=device)
    nets = [supernet(channels).to(device) for _ in active]
    images = torch.randn(batch, 3, 32, 32, device=device)
    labels = torch.randint(10, (batch,), device=device)

    def gradients(net: nn.Module, weights: Tensor, rows: tuple[tuple[int, ...], ...]) -> None:
        mixture = Mixture(ops=weights, edges=edges, active=rows)
        loss = F.cross_entropy(net(images, {KIND: mixture}), labels)
        torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)

    calls = [partial(gradients, *each) for each in zip(nets, ops, active, strict=True)]
    lanes = Lanes(device, len(calls))

    def in_turns() -> None:
        for call in calls:
            call()

    parameters, buffers = stack_module_state(nets)
    base = copy.deepcopy(nets[0]).to("meta")

    def loss(weights: dict[str, Tensor], kept: dict[str, Tensor], mixed: Tensor) -> Tensor:
        mixture = Mixture(ops=mixed, edges=edges)
        found: Any = functional_call(base, (weights, kept), (images, {KIND: mixture}))
        return F.cross_entropy(found, labels)

    stacked = vmap(grad(loss))
    forms: dict[str, Callable[[], Any]] = {
        "together": lambda: lanes.run(calls),
        "in turns": in_turns,
        "stacked": lambda: stacked(parameters, buffers, ops),
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(1 + repeats):
        for name, form in forms.items():
            started = time.perf_counter()
            form()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - started)
    # The first round starts threads and chooses kernels.
    return {name: min(found[1:]) for name, found in times.items()}


def supernet(channels: int) -> nn.Module:
    """Return a supernet whose batch norms keep no statistics, as vmap demands."""
    net = NasBench201Supernet(
        NasBench201Space(channels=channels, cells=1), in_chans=3, num_classes=10
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return net.train()
