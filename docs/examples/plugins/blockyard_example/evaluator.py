"""An evaluator of one's own: how well a network's untrained features separate the classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.cost import cost
from nas.data import Split
from nas.evaluation import EvaluatorContext, fresh_network
from nas.training import describe_recipe
from zoo.builders import ChainModule
from zoo.canonical import Json
from zoo.errors import InvalidInputError
from zoo.spec import Architecture, Evaluation


class LinearProbe:
    """Fits a linear classifier in closed form on the features of the untrained network.

    The features are what the last block but one returns, averaged over a 4x4 grid.

    Args:
        context: Space, data, seed, device and how to measure; the recipe is not used.
        ridge: Strength of the ridge penalty.

    Raises:
        InvalidInputError: ``ridge`` is not positive.
    """

    def __init__(self, context: EvaluatorContext, *, ridge: float = 1e-3) -> None:
        if ridge <= 0:
            raise InvalidInputError(f"ridge is {ridge}; it must be positive")
        self._context = context
        self._data = context.data.to(context.device)
        self._ridge = ridge

    def describe(self) -> dict[str, Json]:
        return {
            "evaluator": "linear-probe",
            "version": 1,
            "data": self._data.digest,
            "recipe": describe_recipe(self._context.recipe),
            "seed": self._context.seed,
            "ridge": self._ridge,
            "target": self._context.target,
        }

    def evaluate(self, architecture: Architecture) -> Evaluation:
        context = self._context
        started = context.clock()
        network = fresh_network(context.space, architecture, self._data, seed=context.seed)
        metrics = cost(network, self._data.inputs).metrics()
        blocks = list(network.to(context.device).train().children())
        metrics["accuracy"] = self._probe(ChainModule(*blocks[:-1]))
        device = None
        if context.measure is not None:
            latency = context.measure(architecture)
            metrics |= {"latency_ms": latency.median_ms, "latency_p95_ms": latency.p95_ms}
            device = latency.device
        return Evaluation(metrics=metrics, cost_s=context.clock() - started, device=device)

    def _probe(self, body: nn.Module) -> float:
        features = self._features(body, self._data.train)
        targets = functional.one_hot(self._data.train.labels, self._data.num_classes).double()
        gram = features.T @ features
        gram += self._ridge * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
        weights = torch.linalg.solve(gram, features.T @ targets)
        guessed = (self._features(body, self._data.val) @ weights).argmax(1)
        return float((guessed == self._data.val.labels).double().mean())

    def _features(self, body: nn.Module, split: Split) -> Tensor:
        with torch.inference_mode():
            parts = []
            for images in split.images.split(512):
                maps = body(self._data.normalize(images))
                newest = maps[-1] if isinstance(maps, tuple) else maps
                parts.append(functional.adaptive_avg_pool2d(newest, 4).flatten(1))
        pooled = torch.cat(parts).double()
        return torch.cat((pooled, pooled.new_ones(len(pooled), 1)), dim=1)
