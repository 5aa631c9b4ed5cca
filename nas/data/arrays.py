"""Arrays in npz files, checked before they are used as images and labels."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.errors import InvalidInputError, MissingDataError

_UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


def load_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read every array of an npz file; nothing in it is unpickled.

    Raises:
        MissingDataError: There is no such file.
        InvalidInputError: It is no npz file, or torn.
    """
    if not path.is_file():
        raise MissingDataError(f"there is no file {path}; give an npz with images and labels")
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise InvalidInputError(f"{path} is one array; give an npz with images and labels")
            return {key: loaded[key] for key in loaded.files}
    except _UNREADABLE as error:
        raise InvalidInputError(f"{path} cannot be read as an npz file: {error}") from error


def check_images(arrays: dict[str, NDArray[Any]], key: str, path: Path) -> NDArray[np.uint8]:
    """Return the array ``key`` as ``(n, channels, height, width)``.

    Raises:
        InvalidInputError: It is not there, not uint8, or has another shape.
    """
    images = _array(arrays, key, path)
    if images.dtype != np.uint8:
        raise InvalidInputError(
            f"{path}: {key} are {images.dtype}, not uint8; scale them to 0..255 and convert"
        )
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or 0 in images.shape or images.shape[1] > 4:
        raise InvalidInputError(
            f"{path}: {key} have shape {images.shape}; give (n, height, width) or "
            "(n, channels, height, width) with 1 to 4 channels"
        )
    return images


def check_labels(
    arrays: dict[str, NDArray[Any]], key: str, count: int, path: Path
) -> NDArray[np.int64]:
    """Return the array ``key`` as ``count`` labels.

    Raises:
        InvalidInputError: It is not there, not of whole numbers from 0, or has another length.
    """
    labels = _array(arrays, key, path)
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise InvalidInputError(
            f"{path}: {key} are {labels.dtype}{list(labels.shape)}; "
            f"give {count} whole numbers, one an image"
        )
    labels = labels.astype(np.int64)
    if int(labels.min()) < 0:
        raise InvalidInputError(f"{path}: {key} hold {int(labels.min())}; labels start at 0")
    return labels


def _array(arrays: dict[str, NDArray[Any]], key: str, path: Path) -> NDArray[Any]:
    if key not in arrays:
        known = ", ".join(sorted(arrays)) or "nothing"
        raise InvalidInputError(f"{path} has no array {key!r}; it has {known}")
    return arrays[key]
