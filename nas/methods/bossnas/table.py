"""What every block offers once it is ranked: options with scores and counted costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nas.blockwise import Blockwise, Path
from nas.cost.analytic import cost
from nas.methods.bossnas.derive import Option
from nas.methods.bossnas.ensemble import SCORE_OFFSET
from zoo.builders import build
from zoo.spec import BlockSpec, TensorSpec


class Costs:
    """Multiply-accumulates and parameters of paths, counted block spec by block spec.

    Args:
        cut: How the space is cut.
        inputs: The images.
        num_classes: Classes of the derived network's head.
    """

    def __init__(self, cut: Blockwise, *, inputs: TensorSpec, num_classes: int) -> None:
        self._cut, self._inputs, self._num_classes = cut, inputs, num_classes
        self._known: dict[str, dict[str, float]] = {}

    def of(
        self, block: int, interface: int, path: Path, given: TensorSpec
    ) -> tuple[dict[str, float], TensorSpec]:
        """Return the costs of a path on ``given``, the last block's with the head's, and what
        it returns."""
        specs = self._cut.specs(block, interface, path, given)
        outputs = specs[-1].outputs[0] if specs else given
        if block == self._cut.num_blocks - 1:
            specs = (*specs, *self._cut.tail(outputs, num_classes=self._num_classes))
        parts = [self._of_spec(spec) for spec in specs]
        return {
            name: sum(part[name] for part in parts) for name in ("flops", "num_params")
        }, outputs

    def _of_spec(self, spec: BlockSpec) -> dict[str, float]:
        if spec.id not in self._known:
            self._known[spec.id] = cost(build(spec), spec.inputs[0]).metrics()
        return self._known[spec.id]


def options(
    cut: Blockwise,
    rankings: Sequence[Mapping[Path, float]],
    *,
    costs: Costs | None = None,
    metric: str | None = None,
    inputs: TensorSpec | None = None,
) -> list[dict[int, list[Option]]]:
    """Return what every block offers, its score raised by 4 so that it is at least 0.

    A ranked block offers, after every interface, those of its ranked paths that are legal
    there. A block that is not ranked yet offers all its paths at score 0.

    Args:
        cut: How the space is cut.
        rankings: The scores of the blocks ranked so far.
        costs: Counts costs; None for none.
        metric: Which cost.
        inputs: The images; needed with ``costs``.
    """
    found: list[dict[int, list[Option]]] = []
    given: dict[int, TensorSpec | None] = {cut.start: inputs}
    for block in range(cut.num_blocks):
        rows: dict[int, list[Option]] = {}
        after: dict[int, TensorSpec | None] = {}
        for interface, images in given.items():
            ranked = rankings[block] if block < len(rankings) else None
            rows[interface] = []
            for path in cut.paths(block, interface):
                if ranked is not None and path not in ranked:
                    continue
                left, price, outputs = cut.interface(block, path), 0.0, None
                if costs is not None and metric is not None and images is not None:
                    priced, outputs = costs.of(block, interface, path, images)
                    price = priced[metric]
                after.setdefault(left, outputs)
                score = 0.0 if ranked is None else ranked[path] + SCORE_OFFSET
                rows[interface].append(Option(path, score, price, left))
        found.append(rows)
        given = after
    return found
