"""The two networks of a block in training, on one device or several.

The blocks before it are frozen: each is its best path with that path's batch statistics, in
evaluation mode, run once without a graph for both networks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nas.blockwise import Blockwise, Path, SearchBlock
from nas.methods.bossnas.ensemble import ensemble_target, path_loss
from nas.methods.bossnas.heads import Head, HeadSizes, Stage
from nas.methods.bossnas.ranking import Views
from zoo.rng import derive_seed
from zoo.spec import TensorSpec


class FrozenBlock(nn.Module):
    """A block whose path is chosen, and what comes before it."""

    def __init__(self, entry: nn.Module, block: SearchBlock, path: Path) -> None:
        super().__init__()
        self.entry, self.block, self.path = entry, block, path
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.entry(x), self.path)


@dataclass
class Replica:
    """Online and target network of the current block and the frozen blocks, on one device."""

    device: torch.device
    online: Stage
    target: Stage
    frozen: list[FrozenBlock] = field(default_factory=list)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Run the frozen blocks: the input of the current block."""
        for block in self.frozen:
            images = block(images)
        return images

    @torch.no_grad()
    def targets(
        self, paths: Sequence[Path], interfaces: Sequence[int], inputs: Sequence[Views]
    ) -> Views:
        """Return the ensemble's targets of view 1 and view 2, ``(batch, projection)``.

        Path i of the set sees the i-th pair of views.
        """
        projected: tuple[list[Tensor], list[Tensor]] = ([], [])
        for path, interface, views in zip(paths, interfaces, inputs, strict=True):
            for kept, view in zip(projected, views, strict=True):
                kept.append(self.target(view, path, interface))
        return ensemble_target(projected[0]), ensemble_target(projected[1])

    def gradients(
        self,
        paths: Sequence[Path],
        interfaces: Sequence[int],
        pairs: Sequence[Views],
        *,
        share: float,
    ) -> Tensor:
        """Add the gradient of ``share`` times the sum of the paths' losses; return their mean."""
        inputs = self._inputs(pairs)
        targets = self.targets(paths, interfaces, inputs)
        total = torch.zeros((), device=self.device)
        for path, interface, views in zip(paths, interfaces, inputs, strict=True):
            predicted = (
                self.online(views[0], path, interface),
                self.online(views[1], path, interface),
            )
            loss = path_loss(predicted, targets)
            torch.autograd.backward(share * loss)
            total += loss.detach()
        return total / len(paths)

    def _inputs(self, pairs: Sequence[Views]) -> list[Views]:
        """Return the block's inputs; a pair that several paths share is run once."""
        known: dict[int, Views] = {}
        for pair in pairs:
            if id(pair) not in known:
                known[id(pair)] = (self.features(pair[0]), self.features(pair[1]))
        return [known[id(pair)] for pair in pairs]


class Siamese:
    """The networks of one block after another.

    Args:
        cut: How the space is cut into blocks.
        inputs: The images.
        sizes: Widths of projector and predictor.
        seed: Determines the weights.
        devices: Where to train; each takes its share of every batch, the first one updates.
    """

    def __init__(
        self,
        cut: Blockwise,
        *,
        inputs: TensorSpec,
        sizes: HeadSizes,
        seed: int,
        devices: Sequence[torch.device],
    ) -> None:
        self._cut, self._inputs, self._sizes, self._seed = cut, inputs, sizes, seed
        self._devices = tuple(devices)
        self.chosen: list[Path] = []
        self.replicas: list[Replica] = []
        self._start([])

    @property
    def interface(self) -> int:
        """The interface before the current block."""
        return self._interface(len(self.chosen))

    @property
    def main(self) -> Replica:
        return self.replicas[0]

    @property
    def online(self) -> Stage:
        return self.main.online

    @property
    def target(self) -> Stage:
        return self.main.target

    def choose(self, path: Path) -> None:
        """Freeze the current block at ``path``, as it is, and begin the next one if any is left."""
        stage = self.main.online
        frozen = [*self.main.frozen, FrozenBlock(stage.entry, stage.block, path)]
        self.chosen.append(path)
        self._start(frozen)

    def _start(self, frozen: list[FrozenBlock]) -> None:
        block = len(self.chosen)
        if block == self._cut.num_blocks:
            self.replicas = [Replica(item.device, item.online, item.target, frozen)
                             for item in self.replicas[:1]]  # fmt: skip
            return
        online, target = self._stages(block)
        main = Replica(self._devices[0], online, target, frozen)
        self.replicas = [main, *(_copied(main, device) for device in self._devices[1:])]

    def _stages(self, block: int) -> tuple[Stage, Stage]:
        interface = self._interface(block)
        outputs = {
            left: self._cut.output(block, left)
            for left in sorted(
                {self._cut.interface(block, path) for path in self._cut.paths(block, interface)}
            )
        }
        stages = []
        for predicts in (True, False):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(self._seed, "bossnas", "weights", block))
                entry = nn.Identity() if block else self._cut.stem(self._inputs)
                body = self._cut.block(block, interface, self._inputs)
                head = Head(outputs, self._sizes, predicts=predicts)
            stage = Stage(entry, body, head)
            stage.to(self._devices[0], memory_format=torch.channels_last)  # type: ignore[call-overload]
            stages.append(stage.train())
        online, target = stages
        copied = target.state_dict().keys()
        target.load_state_dict({k: v for k, v in online.state_dict().items() if k in copied})
        target.requires_grad_(False)
        return online, target

    def _interface(self, block: int) -> int:
        if block == 0:
            return self._cut.start
        return self._cut.interface(block - 1, self.chosen[block - 1])

    def gradients(
        self, paths: Sequence[Path], pairs: Sequence[Views], *, accumulate: int = 1
    ) -> Tensor:
        """Add the gradient of a batch, summed over paths, divided by ``accumulate``.

        Args:
            paths: The sampled set, one for both networks.
            pairs: Two views for every path; the same object if paths share them.
            accumulate: Number of batches of one step.

        Returns:
            The mean loss.
        """
        block = len(self.chosen)
        interfaces = [self._cut.interface(block, path) for path in paths]
        batch = len(pairs[0][0])
        losses = []
        for replica, shard in zip(self.replicas, self._shards(pairs), strict=True):
            share = len(shard[0][0]) / batch
            loss = replica.gradients(paths, interfaces, shard, share=share / accumulate)
            losses.append(loss.to(self._devices[0]) * share)
        return torch.stack(losses).sum()

    def _shards(self, pairs: Sequence[Views]) -> list[Sequence[Views]]:
        """Cut all views into one part a device."""
        if len(self.replicas) == 1:
            return [pairs]
        known = {id(pair): [view.chunk(len(self.replicas)) for view in pair] for pair in pairs}
        shards: list[Sequence[Views]] = []
        for at, replica in enumerate(self.replicas):
            moved = {
                key: (first[at].to(replica.device), second[at].to(replica.device))
                for key, (first, second) in known.items()
            }
            shards.append([moved[id(pair)] for pair in pairs])
        return shards

    @torch.no_grad()
    def reduce(self) -> None:
        """Add the other devices' gradients to the first one's."""
        weights = dict(self.main.online.named_parameters())
        for replica in self.replicas[1:]:
            for name, other in replica.online.named_parameters():
                if other.grad is not None:
                    grad = other.grad.to(self.main.device)
                    mine = weights[name].grad
                    weights[name].grad = grad.clone() if mine is None else mine + grad
                    other.grad = None

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the target towards the online network, θt ← m θt + (1 - m) θo; then all devices.

        Only parameters follow; the target's batch statistics are its own.
        """
        online = dict(self.online.named_parameters())
        names, targets = zip(*self.target.named_parameters(), strict=True)
        torch._foreach_lerp_(list(targets), [online[name] for name in names], 1 - momentum)
        for replica in self.replicas[1:]:
            for mine, other in (
                (self.main.online, replica.online),
                (self.main.target, replica.target),
            ):
                for source, copied in zip(mine.parameters(), other.parameters(), strict=True):
                    copied.copy_(source)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all weights and statistics of the first device."""
        return {
            "chosen": [list(path) for path in self.chosen],
            "frozen": [_state(block) for block in self.main.frozen],
            "online": _state(self.online),
            "target": _state(self.target),
            "replicas": [
                {"online": _state(item.online), "target": _state(item.target)}
                for item in self.replicas[1:]
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Rebuild the blocks that ``state`` had chosen and load all weights.

        Raises:
            KeyError: A part is missing.
            RuntimeError: A part is of another shape.
        """
        self.chosen, self.replicas = [], []
        self._start([])
        for path, weights in zip(state["chosen"], state["frozen"], strict=True):
            self.choose(tuple(int(choice) for choice in path))
            self.main.frozen[-1].load_state_dict(weights)
        for replica in self.replicas[1:]:
            replica.frozen = [copy.deepcopy(item).to(replica.device) for item in self.main.frozen]
        states = [state, *state["replicas"]]
        for replica, kept in zip(self.replicas, states, strict=False):
            replica.online.load_state_dict(kept["online"])
            replica.target.load_state_dict(kept["target"])
        for replica in self.replicas[len(states) :]:
            replica.online.load_state_dict(state["online"])
            replica.target.load_state_dict(state["target"])


def _copied(main: Replica, device: torch.device) -> Replica:
    return Replica(
        device,
        copy.deepcopy(main.online).to(device),
        copy.deepcopy(main.target).to(device),
        [copy.deepcopy(item).to(device) for item in main.frozen],
    )


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: item.detach().clone() for name, item in module.state_dict().items()}
