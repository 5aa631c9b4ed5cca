"""What every block offers once it is ranked: options with scores and counted costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nas.blockwise import Blockwise, Path
from nas.cost.blocks import chain_cost
from nas.methods.bossnas.derive import Option
from nas.methods.bossnas.ensemble import SCORE_OFFSET
from zoo.spec import TensorSpec


class Costs:
    """Multiply-accumulates and parameters of paths, the sums of their blocks'.

    Args:
        cut: How the space is cut.
        inputs: The images.
        num_classes: Classes of the derived network's head.
    """

    def __init__(self, cut: Blockwise, *, inputs: TensorSpec, num_classes: int) -> None:
        self._cut, self._inputs, self._num_classes = cut, inputs, num_classes

    def of(
        self, block: int, interface: int, path: Path, given: TensorSpec
    ) -> tuple[dict[str, float], TensorSpec]:
        """Return the costs of a path on ``given``, the last block's with the head's, and what
        it returns."""
        specs = self._cut.specs(block, interface, path, given)
        outputs = specs[-1].outputs[0] if specs else given
        if block == self._cut.num_blocks - 1:
            specs = (*specs, *self._cut.tail(outputs, num_classes=self._num_classes))
        counted = chain_cost(specs)
        return {
            "flops": float(counted.macs),
            "num_params": float(counted.num_params),
        }, outputs


def options(
    cut: Blockwise,
    rankings: Sequence[Mapping[Path, float]],
    *,
    costs: Costs | None = None,
    metric: str | None = None,
    second: str | None = None,
    inputs: TensorSpec | None = None,
) -> list[dict[int, list[Option]]]:
    """Return what every block offers, its score raised by 4 so that it is at least 0.

    A ranked block offers, after every interface, those of its legal paths there that run
    what a ranked one does. A block that is not ranked yet offers all its paths at score 0.

    Args:
        cut: How the space is cut.
        rankings: The scores of the blocks ranked so far.
        costs: Counts costs; None for none.
        metric: Which cost.
        second: Which other cost, if two are limited.
        inputs: The images; needed with ``costs``.
    """
    found: list[dict[int, list[Option]]] = []
    given: dict[int, TensorSpec | None] = {cut.start: inputs}
    for block in range(cut.num_blocks):
        ranked = None
        if block < len(rankings):
            ranked = {cut.computed(block, path): it for path, it in rankings[block].items()}
        rows: dict[int, list[Option]] = {}
        after: dict[int, TensorSpec | None] = {}
        for interface, images in given.items():
            rows[interface] = []
            for path in cut.paths(block, interface):
                computed, score = cut.computed(block, path), 0.0
                if ranked is not None:
                    if computed not in ranked:
                        continue
                    score = ranked[computed] + SCORE_OFFSET
                left, prices, outputs = cut.interface(block, path), [0.0, 0.0], None
                if costs is not None and images is not None:
                    priced, outputs = costs.of(block, interface, path, images)
                    prices = [priced[name] if name else 0.0 for name in (metric, second)]
                after.setdefault(left, outputs)
                rows[interface].append(Option(path, score, prices[0], left, prices[1]))
        found.append(rows)
        given = after
    return found
