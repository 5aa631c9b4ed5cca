"""What knowing an architecture costs beside the shortest evaluation that a job could ask for.

The evaluation is what a hit spares: the evaluator of searches builds the network, trains it
for one epoch, validates it and counts its cost (its latency, kept apart, is left out). It is
that of the network of a space that has the least multiply-adds, found by going through the
choices once, each time for the cheapest option; on digits, the smallest data set that there
is, and on CIFAR-10, where an epoch is estimated from its first steps and nothing else is
counted. Hash and proof are those of random architectures. Seconds are those of one core, so
that what else the machine does counts for neither.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

import torch

from nas.cost.analytic import ChainCosts
from nas.data import DataSet, load_dataset
from nas.evaluation import EvaluatorContext, TrainingEvaluator, fresh_network
from nas.identity import identify, network_signature
from nas.protocols import SearchSpace
from nas.training import FixedRecipe, train
from zoo.errors import InvalidInputError
from zoo.spec import Architecture

BATCH_SIZE = 64
STEPS = 8
"""Training steps that are timed; an epoch takes as long for each."""

LONG_S = 20.0
"""An evaluation that takes longer is not repeated."""

WHOLE = 5_000
"""Most training images for which an evaluation is run to its end."""


def data_sets(root: Path | None) -> dict[str, DataSet]:
    """Return the data sets on which evaluations are timed; CIFAR-10 only if it is there."""
    names = ["digits"] if root is None else ["digits", "cifar10"]
    return {name: load_dataset(name, root=root, seed=0) for name in names}


def smallest(space: SearchSpace, data: DataSet) -> Architecture:
    """Return an architecture of few multiply-adds."""
    best, costs = space.sample(random.Random(0)), ChainCosts()

    def flops(architecture: Architecture) -> int:
        chain = space.blocks(architecture, inputs=data.inputs, num_classes=data.num_classes)
        return costs.cost(chain, data.inputs).flops

    for at, options in enumerate(space.cardinalities()):
        others = []
        for option in range(options):
            choices = (*best.choices[:at], option, *best.choices[at + 1 :])
            other = Architecture(space=space.describe(), choices=choices)
            try:
                space.check(other)
            except InvalidInputError:
                continue
            others.append(other)
        best = min(others, key=flops)
    return best


def epoch_seconds(space: SearchSpace, architecture: Architecture, data: DataSet) -> float:
    """Return what an epoch of training takes on the CPU, judged by its first steps."""
    moments: list[float] = []

    def stop() -> bool:
        moments.append(time.process_time())
        return len(moments) > STEPS

    train(
        fresh_network(space, architecture, data, seed=0),
        data,
        FixedRecipe(epochs=1, batch_size=BATCH_SIZE),
        device=torch.device("cpu"),
        seed=0,
        should_stop=stop,
    )
    steps = median(after - before for before, after in pairwise(moments))
    return steps * len(data.train) / BATCH_SIZE


def evaluation_seconds(space: SearchSpace, architecture: Architecture, data: DataSet) -> float:
    """Return what an evaluation takes on the CPU, but for the latency."""
    recipe = FixedRecipe(epochs=1, batch_size=BATCH_SIZE)
    evaluator = TrainingEvaluator(EvaluatorContext(space=space, data=data, recipe=recipe))
    started = time.process_time()
    evaluator.evaluate(architecture)
    return time.process_time() - started


Hash = Callable[..., object]


def hash_seconds(space: SearchSpace, data: DataSet, hashed: Hash, count: int = 12) -> float:
    """Return what ``hashed`` of a random architecture takes, the mean of ``count``."""
    rng = random.Random(0)

    def timed(architecture: Architecture) -> float:
        started = time.process_time()
        hashed(space, architecture, inputs=data.inputs, num_classes=data.num_classes)
        return time.process_time() - started

    timed(space.sample(rng))
    return mean(timed(space.sample(rng)) for _ in range(count))


def shares(space: SearchSpace, data: DataSet) -> dict[str, float]:
    """Return seconds of a hash, with its proof too, and of the evaluation, and both shares.

    They are timed in turns, so that all meet the same machine.
    """
    architecture = smallest(space, data)
    whole = len(data.train) <= WHOLE
    evaluation = evaluation_seconds if whole else epoch_seconds
    hashes, identities, evaluations = [], [], []
    for _ in range(3):
        hashes.append(hash_seconds(space, data, network_signature))
        identities.append(hash_seconds(space, data, identify))
        evaluations.append(evaluation(space, architecture, data))
        if evaluations[-1] > LONG_S:
            break
    shortest = median(evaluations)
    return {
        "hash_s": median(hashes),
        "identity_s": median(identities),
        "evaluation_s": shortest,
        "share": median(hashes) / shortest,
        "share_with_proof": median(identities) / shortest,
    }
