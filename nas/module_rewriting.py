"""Pairs of modules known to compute the same, and pairs known not to, for spaces without a drawing.

As ``nas.rewriting``, but what is rewritten is the built module: its graph where torch.fx can
trace it, and else its leaves, which only need to be called with one tensor. Near misses
change what is computed of the live parameters: a bent line after a layer, an activation that
differs in large values only, a term of a sum left out, one layer used where there were two.
"""

from __future__ import annotations

import copy
import operator
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, fx, nn

from nas.identity import LOUD
from nas.protocols import SearchSpace
from nas.rewriting import Bend
from zoo.signature import drawn
from zoo.spec import TensorSpec

_REWRITES = 6
_SUMS = (operator.add, operator.iadd, torch.add)

Rule = Callable[[nn.Module, random.Random, Sequence[str]], bool]
"""Changes a module in place, at one of the leaves named; False where it does not apply."""


def equal_modules(
    space: SearchSpace, count: int, *, inputs: TensorSpec, num_classes: int, seed: int = 0
) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield ``count`` built random architectures, and each rewritten a few times."""
    rng = random.Random(seed)
    for _ in range(count):
        module = _build(space, rng, inputs, num_classes)
        other = _traced(module)
        for rule in rng.choices(EQUAL_RULES, k=_REWRITES):
            rule(other, rng, _leaves(other))
        yield module, other


def near_modules(
    space: SearchSpace, count: int, *, inputs: TensorSpec, num_classes: int, seed: int = 0
) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield ``count`` pairs that differ in one thing, and in function.

    Networks whose output does not depend on any layer are passed over.
    """
    rng, probe = random.Random(seed), _probe(inputs)
    for _ in range(count):
        live: list[str] = []
        while not live:
            module = _build(space, rng, inputs, num_classes)
            changed = copy.deepcopy(module).double().train()
            live = _live(changed, probe)
        yield module, _near(changed, live, probe, rng)


def _near(module: nn.Module, live: Sequence[str], probe: Tensor, rng: random.Random) -> nn.Module:
    """Return a changed copy in which what was changed mattered."""
    while True:
        other = _traced(module)
        if rng.choice(NEAR_RULES)(other, rng, live) and not _agree(module, other, probe):
            return other


def _probe(inputs: TensorSpec) -> Tensor:
    return drawn((4, *(size or 8 for size in inputs.shape)), "float64", seed=1)


def _live(module: nn.Module, probe: Tensor) -> list[str]:
    """Return the leaves of which the output is a function."""
    leaves = _leaves(module)
    weights = [module.get_parameter(f"{name}.weight") for name in leaves]
    loss = module(probe).square().sum()
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    peaks = [0.0 if item is None else float(item.abs().max()) for item in gradients]
    return [name for name, peak in zip(leaves, peaks, strict=True) if peak > 2.0**-36 * max(peaks)]


def _agree(module: nn.Module, other: nn.Module, probe: Tensor) -> bool:
    """Return whether two networks agree, with loud inputs, scales and offsets, too."""
    with torch.no_grad():
        if not _close(module(probe), other(probe)):
            return False
        return _close(*(_louder(item)(probe * LOUD) for item in (module, other)))


def _close(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-6, atol=1e-9)


def _louder(module: nn.Module) -> nn.Module:
    module = copy.deepcopy(module)
    for parameter in module.parameters():
        if parameter.ndim < 2:
            parameter.mul_(LOUD)
    return module


def _build(
    space: SearchSpace, rng: random.Random, inputs: TensorSpec, num_classes: int
) -> nn.Module:
    return space.build(space.sample(rng), inputs=inputs, num_classes=num_classes)


def _traced(module: nn.Module) -> nn.Module:
    """Return a copy of its graph, or of the module itself if its code cannot be traced."""
    copied = copy.deepcopy(module)
    try:
        return fx.symbolic_trace(copied)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError):
        return copied


def _leaves(module: nn.Module) -> list[str]:
    """Return the names of leaf modules with weights, other than norms."""
    return [
        name
        for name, part in module.named_modules()
        if name and not list(part.children()) and getattr(part, "weight", None) is not None
        if part.weight.ndim > 1
    ]


def _put(module: nn.Module, name: str, part: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    setattr(module.get_submodule(owner), last, part)


# Rules that change nothing.


def _pass_through(module: nn.Module, rng: random.Random, leaves: Sequence[str]) -> bool:
    """Put an identity before or after a layer."""
    name = rng.choice(leaves)
    around = rng.sample([module.get_submodule(name), nn.Identity()], 2)
    _put(module, name, nn.Sequential(*around))
    return True


class _Besides(nn.Module):
    """Runs a layer, and something else that nobody reads."""

    def __init__(self, layer: nn.Module, dead: nn.Module) -> None:
        super().__init__()
        self.dead = dead
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        self.dead(x)
        return self.layer(x)


def _add_dead_branch(module: nn.Module, rng: random.Random, leaves: Sequence[str]) -> bool:
    """Run a layer's copy beside it and let nobody read it."""
    name = rng.choice(leaves)
    layer = module.get_submodule(name)
    _put(module, name, _Besides(layer, copy.deepcopy(layer)))
    return True


def _register_anew(module: nn.Module, rng: random.Random, leaves: Sequence[str]) -> bool:
    """Register submodules in another order."""
    owners = [
        part
        for part in module.modules()
        # The order of a container is that in which it runs.
        if len(part._modules) > 1 and not isinstance(part, nn.Sequential | nn.ModuleList)
    ]
    if not owners:
        return False
    parts = rng.choice(owners)._modules
    shuffled = rng.sample(list(parts.items()), len(parts))
    parts.clear()
    parts.update(shuffled)
    return True


def _commute(module: nn.Module, rng: random.Random, leaves: Sequence[str]) -> bool:
    """Swap the terms of a sum."""
    sums = _sums(module)
    if not sums:
        return False
    node = rng.choice(sums)
    node.target = torch.add
    node.args = _terms(node)[::-1]
    _recompile(module)
    return True


def _associate(module: nn.Module, rng: random.Random, leaves: Sequence[str]) -> bool:
    """Turn (a + b) + c into a + (b + c)."""
    sums = _sums(module)
    nested = [node for node in sums if (inner := _terms(node)[0]) in sums and len(inner.users) == 1]
    if not nested:
        return False
    node = rng.choice(nested)
    inner, last = _terms(node)
    first, second = _terms(inner)
    with node.graph.inserting_before(node):
        node.args = (first, node.graph.call_function(torch.add, (second, last)))
    node.target = torch.add
    _recompile(module)
    return True


# Rules that change the function by little.


def _bend(module: nn.Module, rng: random.Random, leaves: Sequence[str]) -> bool:
    """Bend what a layer returns."""
    name = rng.choice(leaves)
    _put(module, name, nn.Sequential(module.get_submodule(name), Bend()))
    return True


_KIN: dict[type[nn.Module], tuple[Callable[[], nn.Module], ...]] = {
    nn.ReLU: (nn.ReLU6, partial(nn.Hardtanh, 0.0, 20.0)),
    nn.ReLU6: (nn.ReLU, partial(nn.Hardtanh, 0.0, 20.0)),
}
"""Activations that are one for values between 0 and 6."""


def _change_activation(module: nn.Module, rng: random.Random, leaves: Sequence[str]) -> bool:
    """Put an activation that is the same for small values in the place of another one."""
    names = [name for name, part in module.named_modules() if name and type(part) in _KIN]
    if not names:
        return False
    name = rng.choice(names)
    _put(module, name, rng.choice(_KIN[type(module.get_submodule(name))])())
    return True


def _leave_out(module: nn.Module, rng: random.Random, leaves: Sequence[str]) -> bool:
    """Leave out the second term of a sum."""
    sums = _sums(module)
    if not sums:
        return False
    node = rng.choice(sums)
    node.replace_all_uses_with(_terms(node)[0])
    node.graph.erase_node(node)
    _recompile(module)
    return True


def _share(module: nn.Module, rng: random.Random, leaves: Sequence[str]) -> bool:
    """Use one layer where there were two alike: not the same, they had weights each."""
    kinds: dict[str, list[str]] = {}
    for name in leaves:
        kinds.setdefault(repr(module.get_submodule(name)), []).append(name)
    twins = [names for names in kinds.values() if len(names) > 1]
    if not twins:
        return False
    first, second = rng.sample(rng.choice(twins), 2)
    _put(module, second, module.get_submodule(first))
    return True


def _sums(module: nn.Module) -> list[fx.Node]:
    if not isinstance(module, fx.GraphModule):
        return []
    return [
        node
        for node in module.graph.nodes
        if node.op == "call_function"
        and node.target in _SUMS
        and len(node.args) == 2
        and all(isinstance(item, fx.Node) for item in node.args)
    ]


def _terms(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    first, second = node.args
    assert isinstance(first, fx.Node)
    assert isinstance(second, fx.Node)
    return first, second


def _recompile(module: nn.Module) -> None:
    assert isinstance(module, fx.GraphModule)
    module.recompile()


EQUAL_RULES: tuple[Rule, ...] = (
    _pass_through,
    _add_dead_branch,
    _register_anew,
    _commute,
    _associate,
)
NEAR_RULES: tuple[Rule, ...] = (_bend, _change_activation, _leave_out, _share)
