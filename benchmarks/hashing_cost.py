"""What hashing costs beside the shortest evaluation that a job could ask for.

That is one epoch of training, without the scoring after it, of the network of a space that
has the least multiply-adds; found by going through the choices once, each time for the
cheapest option. On digits, the smallest data set that there is, and on CIFAR-10. Seconds are
those of one core, so that what else the machine does counts for neither.
"""

from __future__ import annotations

import random
import time
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

import torch

from nas.cost import cost
from nas.data import DataSet, load_dataset
from nas.evaluation import fresh_network
from nas.identity import network_signature
from nas.protocols import SearchSpace
from nas.training import FixedRecipe, train
from zoo.errors import InvalidInputError
from zoo.spec import Architecture

BATCH_SIZE = 64
STEPS = 8
"""Training steps that are timed; an epoch takes as long for each."""


def data_sets(root: Path | None) -> dict[str, DataSet]:
    """Return the data sets on which evaluations are timed; CIFAR-10 only if it is there."""
    names = ["digits"] if root is None else ["digits", "cifar10"]
    return {name: load_dataset(name, root=root, seed=0) for name in names}


def smallest(space: SearchSpace, data: DataSet) -> Architecture:
    """Return an architecture of few multiply-adds."""
    best = space.sample(random.Random(0))
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
        best = min(others, key=lambda item: _flops(space, item, data))
    return best


def _flops(space: SearchSpace, architecture: Architecture, data: DataSet) -> int:
    module = space.build(architecture, inputs=data.inputs, num_classes=data.num_classes)
    return cost(module, data.inputs).flops


def epoch_seconds(space: SearchSpace, architecture: Architecture, data: DataSet) -> float:
    """Return what an epoch of training takes on the CPU, from its first steps."""
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


def hash_seconds(space: SearchSpace, data: DataSet, count: int = 12) -> float:
    """Return what a hash of a random architecture takes, the mean of ``count``."""
    rng = random.Random(0)

    def timed(architecture: Architecture) -> float:
        started = time.process_time()
        network_signature(space, architecture, inputs=data.inputs, num_classes=data.num_classes)
        return time.process_time() - started

    timed(space.sample(rng))
    return mean(timed(space.sample(rng)) for _ in range(count))


def shares(space: SearchSpace, data: DataSet) -> dict[str, float]:
    """Return seconds of a hash and of the shortest epoch, and the one's share of the other.

    The two are timed in turns, so that both meet the same machine.
    """
    architecture = smallest(space, data)
    hashes, epochs = [], []
    for _ in range(3):
        hashes.append(hash_seconds(space, data))
        epochs.append(epoch_seconds(space, architecture, data))
    return {
        "hash_s": median(hashes),
        "epoch_s": median(epochs),
        "share": median(hashes) / median(epochs),
    }
