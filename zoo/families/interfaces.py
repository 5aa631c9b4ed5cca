"""What the builders of block families check alike: image shapes, parameters, interfaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from zoo.errors import IncompatibleShapeError, InvalidInputError
from zoo.spec import BlockSpec, TensorSpec

T = TypeVar("T")


def image(tensor: TensorSpec) -> tuple[int, int | None, int | None]:
    """Return channels, height and width.

    Raises:
        IncompatibleShapeError: ``tensor`` is no float ``(channels, height, width)``.
    """
    if len(tensor.shape) != 3 or tensor.shape[0] is None or not tensor.dtype.startswith("float"):
        raise IncompatibleShapeError(
            f"an image block takes a float tensor of shape (channels, height, width) with a fixed "
            f"number of channels, not {tensor.dtype}{list(tensor.shape)}"
        )
    return tensor.shape[0], tensor.shape[1], tensor.shape[2]


def widened(tensor: TensorSpec, channels: int, *, stride: int = 1) -> TensorSpec:
    """Return images of ``channels``; a stride of 2 halves height and width, rounding up.

    Raises:
        IncompatibleShapeError: As for ``image``.
        InvalidInputError: ``channels`` is below 1.
    """
    _, *sides = image(tensor)
    if channels < 1:
        raise InvalidInputError(f"channels is {channels}; it must be at least 1")
    sizes = (None if side is None else -(-side // stride) for side in sides)
    return TensorSpec(shape=(channels, *sizes), dtype=tensor.dtype)


def logits(tensor: TensorSpec, num_classes: int) -> TensorSpec:
    """Return what a classifier on images makes of them.

    Raises:
        IncompatibleShapeError: As for ``image``.
        InvalidInputError: ``num_classes`` is below 1.
    """
    image(tensor)
    if num_classes < 1:
        raise InvalidInputError(f"num_classes is {num_classes}; it must be at least 1")
    return TensorSpec(shape=(num_classes,), dtype=tensor.dtype)


def sole_input(spec: BlockSpec) -> TensorSpec:
    """Return the one input of a block.

    Raises:
        IncompatibleShapeError: It has none or several.
    """
    if len(spec.inputs) != 1:
        raise IncompatibleShapeError(f"{spec.op} takes one tensor, not {len(spec.inputs)}")
    return spec.inputs[0]


def width(spec: BlockSpec) -> int:
    """Return the first dimension of a block's first output: its channels, or its classes.

    Raises:
        IncompatibleShapeError: It may vary, or there is none.
    """
    size = spec.outputs[0].shape[0] if spec.outputs and spec.outputs[0].shape else None
    if size is None:
        raise IncompatibleShapeError(f"{spec.op} needs an output of a fixed first dimension")
    return size


def param(spec: BlockSpec, name: str, kind: type[T]) -> T:
    """Return one parameter of a block.

    Raises:
        InvalidInputError: It is missing or of another type.
    """
    value = spec.params.get(name)
    if type(value) is not kind:
        raise InvalidInputError(f"{spec.op} has {name}={value!r}; it takes a {kind.__name__}")
    return value


def confirm(spec: BlockSpec, expected: BlockSpec) -> None:
    """Check that a spec's outputs are what its parameters and inputs make.

    Raises:
        IncompatibleShapeError: They are not.
    """
    if spec.id != expected.id:
        raise IncompatibleShapeError(
            f"{spec.op} of these parameters is {expected.to_json()}, but its spec says "
            f"{spec.to_json()}"
        )


def conv_norm_relu(
    in_chans: int, out_chans: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Build a convolution that keeps the size, batch norm and ReLU."""
    conv = nn.Conv2d(in_chans, out_chans, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out_chans), nn.ReLU()]


def restored(spec: BlockSpec, describe: Callable[..., BlockSpec], **kinds: type) -> dict[str, Any]:
    """Return a block's parameters, its spec checked against what ``describe`` makes of them.

    Args:
        spec: Of one input and one output.
        describe: Takes the input, ``channels`` and the parameters.
        kinds: The parameters' names and types.

    Raises:
        IncompatibleShapeError: The outputs are not what parameters and input make.
        InvalidInputError: A parameter is missing, unfit or of another type.
    """
    settings: dict[str, Any] = {name: param(spec, name, kind) for name, kind in kinds.items()}
    confirm(spec, describe(sole_input(spec), channels=width(spec), **settings))
    return settings


def sides(tensor: TensorSpec) -> tuple[int, int]:
    """Return height and width.

    Raises:
        IncompatibleShapeError: ``tensor`` is no image, or one of them may vary.
    """
    _, height, breadth = image(tensor)
    if height is None or breadth is None:
        raise IncompatibleShapeError(
            f"height and width must be fixed here, but the input is {list(tensor.shape)}"
        )
    return height, breadth


def at_least_one(**numbers: object) -> None:
    """Check settings that count something.

    Raises:
        InvalidInputError: One is no integer of at least 1.
    """
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInputError(f"{name} is {value!r}; it must be an integer of at least 1")


def odd(**numbers: object) -> None:
    """Check sizes of windows around a centre.

    Raises:
        InvalidInputError: One is no odd positive integer.
    """
    at_least_one(**numbers)
    for name, value in numbers.items():
        if isinstance(value, int) and value % 2 == 0:
            raise InvalidInputError(f"{name} is {value}; it must be odd")
