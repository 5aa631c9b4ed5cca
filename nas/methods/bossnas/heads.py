"""What is put on a block while it is trained: adapter, projector, predictor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from nas.blockwise import Path, SearchBlock
from zoo.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True)
class HeadSizes:
    """Widths of projector and predictor.

    ``features`` channels are pooled; the projector maps them to ``hidden`` and then to
    ``projection`` numbers, the predictor maps those to ``hidden`` and back.
    """

    features: int = 2048
    hidden: int = 4096
    projection: int = 256

    def __post_init__(self) -> None:
        for name in ("features", "hidden", "projection"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InvalidInputError(f"{name} is {value!r}; it must be an integer of at least 1")


class Adapter(nn.Sequential):
    """Maps a block's output to ``features`` channels at the smallest size: 1x1 and batch norm.

    Where images must shrink, a depthwise convolution of that kernel and stride comes first.
    """

    def __init__(self, in_chans: int, features: int, shrink: int) -> None:
        before: list[nn.Module] = []
        if shrink > 1:
            before = [
                PadToMultiple(shrink),
                nn.Conv2d(in_chans, in_chans, shrink, shrink, groups=in_chans, bias=False),
            ]
        super().__init__(
            *before, nn.Conv2d(in_chans, features, 1, bias=False), nn.BatchNorm2d(features)
        )


class PadToMultiple(nn.Module):
    """Pads with zeros at the right and the bottom, up to multiples of ``size``."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        below, right = (-side % self.size for side in x.shape[-2:])
        return functional.pad(x, (0, right, 0, below)) if below or right else x


def multilayer(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    """Build linear, batch norm, ReLU, linear; the last layer has no norm."""
    return nn.Sequential(
        nn.Linear(in_features, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, out_features),
    )


class Head(nn.Module):
    """Adapter by shape of the output, global average pooling, projector and, online, predictor.

    Args:
        outputs: Channels and remaining shrinkage of the block's outputs, by interface.
        sizes: Widths. The projector's weights are drawn as Kaiming's, the predictor's are
            normal with deviation 0.01; biases are zero.
        predicts: Whether there is a predictor.
    """

    def __init__(
        self, outputs: Mapping[int, tuple[int, int]], sizes: HeadSizes, *, predicts: bool
    ) -> None:
        super().__init__()
        # Interfaces that stand for outputs of one shape share an adapter, the first one's.
        names: dict[tuple[int, int], str] = {}
        self._adapters = {
            interface: names.setdefault(output, str(interface))
            for interface, output in outputs.items()
        }
        self.adapters = nn.ModuleDict(
            {
                name: Adapter(channels, sizes.features, shrink)
                for (channels, shrink), name in names.items()
            }
        )
        self.projector = multilayer(sizes.features, sizes.hidden, sizes.projection)
        for part in linears(self.projector):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        self.predictor: nn.Module | None = None
        if predicts:
            self.predictor = multilayer(sizes.projection, sizes.hidden, sizes.projection)
            for part in linears(self.predictor):
                nn.init.normal_(part.weight, std=0.01)

    def forward(self, x: Tensor, interface: int) -> Tensor:
        """Map ``(batch, channels, height, width)`` to ``(batch, projection)``."""
        projected = self.projector(self.adapters[self._adapters[interface]](x).mean((2, 3)))
        return projected if self.predictor is None else self.predictor(projected)


class Stage(nn.Module):
    """One block as it is trained: what comes before it (a stem, or nothing), block and head.

    The online network's head predicts; the target's has no predictor, and all its
    parameters have the names of the online ones that they follow.
    """

    def __init__(self, entry: nn.Module, block: SearchBlock, head: Head) -> None:
        super().__init__()
        self.entry, self.block, self.head = entry, block, head

    def forward(self, x: Tensor, path: Path, interface: int) -> Tensor:
        """Return ``(batch, projection)`` for one path; ``interface`` is the one it leaves."""
        return self.head(self.block(self.entry(x), path), interface)


def linears(module: nn.Module) -> Iterator[nn.Linear]:
    """Yield the linear layers, their biases set to zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
            yield part
