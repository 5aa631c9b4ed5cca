"""What spaces have in common whose architectures are tuples of independent choices."""

from __future__ import annotations

import abc
import random
from collections.abc import Iterator, Sequence
from math import prod

from torch import nn

from nas.protocols import SearchSpace
from zoo.builders import build_chain
from zoo.canonical import Json, plain
from zoo.errors import InvalidInputError
from zoo.spec import Architecture, BlockSpec, TensorSpec


class CategoricalSpace(abc.ABC):
    """A space in which every variable takes one of finitely many options.

    Every tuple within ``cardinalities()`` is an architecture, unless ``_fault`` refuses it;
    a space that refuses some counts itself in ``size``.
    """

    @abc.abstractmethod
    def describe(self) -> dict[str, Json]: ...

    @abc.abstractmethod
    def cardinalities(self) -> tuple[int, ...]: ...

    @abc.abstractmethod
    def blocks(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> tuple[BlockSpec, ...]: ...

    @abc.abstractmethod
    def summary(self, architecture: Architecture) -> str: ...

    @abc.abstractmethod
    def parse(self, text: str) -> Architecture:
        """Return an architecture whose ``summary`` is ``text``.

        Raises:
            InvalidInputError: ``text`` is of another form, or names what this space lacks.
        """

    def size(self) -> int:
        return prod(self.cardinalities())

    def sample(self, rng: random.Random) -> Architecture:
        """Return an architecture drawn uniformly."""
        while True:
            choices = tuple(rng.randrange(options) for options in self.cardinalities())
            if self._fault(choices) is None:
                return self.architecture(choices)

    def mutate(self, architecture: Architecture, rng: random.Random) -> Architecture:
        """Return a neighbour; all are equally likely that differ in the same variable.

        Raises:
            InvalidInputError: The architecture has no neighbour.
        """
        self.check(architecture)
        free = [at for at, options in enumerate(self.cardinalities()) if options > 1]
        rng.shuffle(free)
        for at in free:
            others = list(self._turned(architecture, at))
            if others:
                return self.architecture(rng.choice(others))
        raise InvalidInputError("this architecture has no neighbour; nothing can be mutated")

    def neighbours(self, architecture: Architecture) -> Iterator[Architecture]:
        self.check(architecture)
        for at in range(len(self.cardinalities())):
            for choices in self._turned(architecture, at):
                yield self.architecture(choices)

    def check(self, architecture: Architecture) -> None:
        check_choices(self, architecture)
        fault = self._fault(architecture.choices)
        if fault is not None:
            raise InvalidInputError(fault)

    def build(
        self, architecture: Architecture, *, inputs: TensorSpec, num_classes: int
    ) -> nn.Module:
        return build_chain(self.blocks(architecture, inputs=inputs, num_classes=num_classes))

    def architecture(self, choices: Sequence[int]) -> Architecture:
        """Return the architecture of these choices, unchecked."""
        return Architecture(space=self.describe(), choices=tuple(choices))

    def _fault(self, choices: tuple[int, ...]) -> str | None:
        """Say why choices within the cardinalities are no architecture; None if they are one."""
        return None

    def _turned(self, architecture: Architecture, at: int) -> Iterator[tuple[int, ...]]:
        choices = architecture.choices
        for shift in range(1, self.cardinalities()[at]):
            option = (choices[at] + shift) % self.cardinalities()[at]
            turned = (*choices[:at], option, *choices[at + 1 :])
            if self._fault(turned) is None:
                yield turned


def check_choices(space: SearchSpace, architecture: Architecture) -> None:
    """Raise unless ``architecture`` is of ``space`` and each choice within its cardinality.

    Raises:
        InvalidInputError: It is of another space, or a choice is missing or out of range.
    """
    if plain(architecture.space) != space.describe():
        raise InvalidInputError(
            f"the architecture belongs to {plain(architecture.space)}, not to {space.describe()}"
        )
    limits = space.cardinalities()
    if len(architecture.choices) != len(limits):
        raise InvalidInputError(
            f"the architecture has {len(architecture.choices)} choices; "
            f"this space has {len(limits)} variables"
        )
    for at, (choice, options) in enumerate(zip(architecture.choices, limits, strict=True)):
        if type(choice) is not int or not 0 <= choice < options:
            raise InvalidInputError(
                f"choice {at} is {choice!r}; variable {at} takes an integer from 0 to {options - 1}"
            )


def count(name: str, value: object, *, least: int = 1, most: int | None = None) -> int:
    """Return ``value`` if it is an integer within the bounds.

    Raises:
        InvalidInputError: It is not.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or value < least
        or (most is not None and value > most)
    ):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InvalidInputError(f"{name} is {value!r}; it must be an integer {bounds}")
    return value
