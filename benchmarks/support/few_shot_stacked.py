"""Gradients of four sub-supernets, one after the other and as one network of stacked weights."""

from __future__ import annotations

import copy
import time
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

from nas.spaces.nasbench201 import NasBench201Space
from nas.supernet import Mixture
from nas.supernet_nasbench201 import KIND, NasBench201Supernet

GROUPS = ((0, 1), (2, 3, 4))
EVERY = (0, 1, 2, 3, 4)


def seconds(channels: int, *, batch: int = 48, repeats: int = 4) -> dict[str, float]:
    """Return the least processor time of either form after two splits of a supernet."""
    active = [(first, second, *[EVERY] * 4) for first, second in product(GROUPS, GROUPS)]
    ops = torch.zeros(4, 6, 5)
    for net, rows in enumerate(active):
        for edge, row in enumerate(rows):
            ops[net, edge, list(row)] = 1 / len(row)
    nets = [supernet(channels) for _ in active]
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    edges = torch.ones(6)

    def one_by_one() -> None:
        for net, weights, rows in zip(nets, ops, active, strict=True):
            mixture = Mixture(ops=weights, edges=edges, active=rows)
            loss = F.cross_entropy(net(images, {KIND: mixture}), labels)
            torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)

    parameters, buffers = stack_module_state(nets)
    base = copy.deepcopy(nets[0]).to("meta")

    def loss(weights: dict[str, Tensor], kept: dict[str, Tensor], mixed: Tensor) -> Tensor:
        mixture = Mixture(ops=mixed, edges=edges)
        found: Any = functional_call(base, (weights, kept), (images, {KIND: mixture}))
        return F.cross_entropy(found, labels)

    stacked = vmap(grad(loss))
    forms = {"one by one": one_by_one, "stacked": lambda: stacked(parameters, buffers, ops)}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats):
        for name, form in forms.items():
            started = time.process_time()
            form()
            times[name].append(time.process_time() - started)
    return {name: min(found) for name, found in times.items()}


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
