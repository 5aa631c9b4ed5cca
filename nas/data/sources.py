"""Where named data come from: a package's own digits, known files, a user's folder or arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch.nn import functional

from nas.data.arrays import check_images, check_labels, load_npz
from nas.data.dataset import Images
from zoo.errors import InvalidInputError, MissingDataError

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})

FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
CIFAR_LICENCE = "none stated by the authors (A. Krizhevsky, 2009: please cite)"
FASHION_LICENCE = "MIT (Zalando SE, 2017)"
OWN_LICENCE = "not stated: the user's own files"


def digits() -> Images:
    """Read scikit-learn's 1,797 handwritten digits, enlarged from 8x8 to 16x16 pixels.

    The bilinear weights and the grey levels are exact in binary, so that the pixels are
    equal on every machine. No flips: a mirrored digit is another sign.
    """
    table = _digits_table()
    grey = torch.from_numpy(table[:, :-1].reshape(-1, 1, 8, 8)) * (255 / 16)
    large = functional.interpolate(grey, size=(16, 16), mode="bilinear", align_corners=False)
    return Images(
        images=large.round().to(torch.uint8).numpy(),
        labels=table[:, -1].astype(np.int64),
        class_names=tuple(str(digit) for digit in range(10)),
        licence="CC BY 4.0 (E. Alpaydin and C. Kaynak, UCI Machine Learning Repository)",
        flips=False,
    )


def _digits_table() -> NDArray[np.float64]:
    """Return 64 grey levels, from 0 to 16, and the label of every digit.

    scikit-learn's file is read without scikit-learn, which takes as long to import as torch;
    through it, should the file no longer lie where it did.
    """
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise MissingDataError("the data set digits is scikit-learn's: pip install scikit-learn")
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    raw = load_digits()
    return np.column_stack([raw.data, raw.target])


def cifar10(root: Path | None) -> Images:
    """Read CIFAR-10 from WebP sheets under ``cifar10/``, an npz there, or torchvision's files."""
    if root is not None and (root / "cifar10" / "labels.npz").is_file():
        return _sheets(root / "cifar10")
    return _known(root, "cifar10", "CIFAR10", CIFAR10_CLASSES, CIFAR_LICENCE)


def cifar100(root: Path | None) -> Images:
    """Read CIFAR-100 from ``cifar100/cifar100.npz`` or torchvision's files."""
    return _known(root, "cifar100", "CIFAR100", None, CIFAR_LICENCE)


def fashion_mnist(root: Path | None) -> Images:
    """Read Fashion-MNIST from ``fashion_mnist/fashion_mnist.npz`` or torchvision's files."""
    return _known(root, "fashion_mnist", "FashionMNIST", FASHION_CLASSES, FASHION_LICENCE)


def npz(path: Path) -> Images:
    """Read arrays ``images`` and ``labels``, or ``train_images`` … ``test_labels``.

    Images are uint8 ``(n, height, width)`` or ``(n, channels, height, width)``, labels
    whole numbers from 0; ``class_names`` is optional.

    Raises:
        MissingDataError: There is no such file.
        InvalidInputError: It is no npz file, or an array has a wrong shape, type or value.
    """
    arrays = load_npz(path)
    prefix = "" if "images" in arrays else "train_"
    images = check_images(arrays, f"{prefix}images", path)
    labels = check_labels(arrays, f"{prefix}labels", len(images), path)
    test_images = test_labels = None
    if "test_images" in arrays:
        test_images = check_images(arrays, "test_images", path)
        test_labels = check_labels(arrays, "test_labels", len(test_images), path)
        if test_images.shape[1:] != images.shape[1:]:
            raise InvalidInputError(
                f"{path}: test_images have shape {test_images.shape[1:]}, "
                f"the training images {images.shape[1:]}; they must be equal"
            )
    if "class_names" in arrays:
        names = tuple(str(name) for name in arrays["class_names"].reshape(-1))
    else:
        names = tuple(str(label) for label in range(int(labels.max()) + 1))
    for array in (labels, test_labels):
        if array is not None and int(array.max()) >= len(names):
            raise InvalidInputError(
                f"{path}: label {int(array.max())} has no class among {len(names)} class names"
            )
    return Images(
        images=images,
        labels=labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=names,
        licence=OWN_LICENCE,
        flips=images.shape[1] >= 3,
    )


def folder(path: Path) -> Images:
    """Read one sub-folder of images a class, or such folders under ``train/`` and ``test/``.

    All images have one size; they are read as grey if all are grey, else as RGB.

    Raises:
        MissingDataError: There is no such folder, or no sub-folder in it.
        InvalidInputError: A file is no image, or has another size than the first.
    """
    if not path.is_dir():
        raise MissingDataError(f"there is no folder {path}; give a folder with one per class")
    official = {entry.name for entry in _entries(path)} == {"train", "test"}
    base = path / "train" if official else path
    names = tuple(entry.name for entry in _entries(base) if entry.is_dir())
    stray = next((entry for entry in _entries(base) if not entry.is_dir()), None)
    if stray is not None or not names:
        found = f"the file {stray.name}" if stray else "nothing"
        raise MissingDataError(f"{base} holds {found}; put one sub-folder of images a class there")
    images, labels = _read_classes(base, names)
    test_images = test_labels = None
    if official:
        test_images, test_labels = _read_classes(path / "test", names, like=images)
    return Images(
        images=images,
        labels=labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=names,
        licence=OWN_LICENCE,
        flips=images.shape[1] >= 3,
    )


def _known(
    root: Path | None, name: str, loader: str, classes: Sequence[str] | None, licence: str
) -> Images:
    if root is None:
        raise MissingDataError(
            f"data {name!r} needs files: set BLOCKYARD_DATA (or --data) to the folder with "
            f"{name}/{name}.npz or the files of torchvision.datasets.{loader}"
        )
    path = root / name / f"{name}.npz"
    if path.is_file():
        arrays = load_npz(path)
        parts = {
            f"{prefix}images": check_images(arrays, f"{prefix}images", path)
            for prefix in ("train_", "test_")
        }
        train, test = parts["train_images"], parts["test_images"]
        labels = check_labels(arrays, "train_labels", len(train), path)
        test_labels = check_labels(arrays, "test_labels", len(test), path)
    else:
        train, labels, test, test_labels, classes = _torchvision(root, name, loader, classes)
    return Images(
        images=train,
        labels=labels,
        test_images=test,
        test_labels=test_labels,
        class_names=tuple(classes or (str(i) for i in range(int(labels.max()) + 1))),
        licence=licence,
        flips=True,
    )


def _torchvision(root: Path, name: str, loader: str, classes: Sequence[str] | None) -> Any:
    from zoo.compat import declare_torchvision_operators

    declare_torchvision_operators()
    from torchvision import datasets

    open_split: Callable[..., Any] = getattr(datasets, loader)
    try:
        parts = [open_split(str(root), train=train, download=False) for train in (True, False)]
    except (RuntimeError, OSError, ValueError) as error:
        raise MissingDataError(
            f"data {name!r} is not under {root}: put {name}/{name}.npz there (train_images, "
            f"train_labels, test_images, test_labels), or the files of "
            f"torchvision.datasets.{loader}"
        ) from error
    arrays: list[NDArray[Any]] = []
    for part in parts:
        pixels = np.asarray(part.data)
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
        arrays += [np.ascontiguousarray(pixels), np.asarray(part.targets, dtype=np.int64)]
    return (*arrays, tuple(classes or parts[0].classes))


def _sheets(path: Path) -> Images:
    """Read lossless WebP sheets of 25 rows x 40 columns of 32x32 tiles, in file order."""
    arrays = load_npz(path / "labels.npz")
    parts = {}
    for split in ("train", "test"):
        files = sorted(path.glob(f"{split}_*.webp"))
        labels = np.asarray(arrays.get(f"{split}_labels", ()), dtype=np.int64)
        if not files or len(files) * 1000 != len(labels):
            raise MissingDataError(
                f"{path} has {len(files)} sheets {split}_*.webp for {len(labels)} labels; "
                "a sheet holds 1,000 images"
            )
        images = np.empty((len(labels), 3, 32, 32), dtype=np.uint8)
        for number, file in enumerate(files):
            sheet = _open(file, "RGB")
            if sheet.shape != (800, 1280, 3):
                raise InvalidInputError(f"{file} has shape {sheet.shape}, not (800, 1280, 3)")
            tiles = sheet.reshape(25, 32, 40, 32, 3).transpose(0, 2, 4, 1, 3)
            images[number * 1000 : (number + 1) * 1000] = tiles.reshape(1000, 3, 32, 32)
        parts[split] = images, labels
    return Images(
        images=parts["train"][0],
        labels=parts["train"][1],
        test_images=parts["test"][0],
        test_labels=parts["test"][1],
        class_names=CIFAR10_CLASSES,
        licence=CIFAR_LICENCE,
        flips=True,
    )


def _read_classes(
    base: Path, names: Sequence[str], like: NDArray[np.uint8] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        if not (base / name).is_dir():
            raise MissingDataError(f"there is no folder {base / name}; every class needs one")
        for file in _entries(base / name):
            if file.suffix.lower() not in IMAGE_SUFFIXES:
                raise InvalidInputError(
                    f"{file} is no image ({', '.join(sorted(IMAGE_SUFFIXES))}); move it away"
                )
            files.append(file)
            labels.append(label)
    if not files:
        raise MissingDataError(f"the sub-folders of {base} hold no images")
    grey = like.shape[1] == 1 if like is not None else all(_is_grey(file) for file in files)
    images: NDArray[np.uint8] | None = None
    size = None if like is None else like.shape[2:]
    for number, file in enumerate(files):
        pixels = _open(file, "L" if grey else "RGB")
        pixels = pixels[None] if grey else pixels.transpose(2, 0, 1)
        size = size or pixels.shape[1:]
        if pixels.shape[1:] != size:
            raise InvalidInputError(
                f"{file} is {pixels.shape[2]}x{pixels.shape[1]} pixels, others are "
                f"{size[1]}x{size[0]}; resize all images to one size"
            )
        if images is None:
            images = np.empty((len(files), *pixels.shape), dtype=np.uint8)
        images[number] = pixels
    return images, np.array(labels, dtype=np.int64)  # type: ignore[return-value]


def _entries(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))


def _is_grey(file: Path) -> bool:
    try:
        with Image.open(file) as image:
            return image.mode in ("1", "L")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InvalidInputError(f"{file} cannot be read as an image: {error}") from error


def _open(file: Path, mode: str) -> NDArray[np.uint8]:
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert(mode))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidInputError(f"{file} cannot be read as an image: {error}") from error
