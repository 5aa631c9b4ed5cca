"""Data by name: what is read, how it is split, what is said when it is wrong."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from nas.data import DataSet, data_catalogue, load_dataset, sources
from zoo.errors import InvalidInputError, MissingDataError, UnknownNameError

Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_dataset("digits", root=None, seed=0)


def arrays(count: int = 40, classes: int = 4, shape: tuple[int, ...] = (3, 8, 8)) -> Arrays:
    random = np.random.default_rng(0)
    return {
        "images": random.integers(0, 256, (count, *shape), dtype=np.uint8),
        "labels": np.arange(count) % classes,
    }


def save(path: Path, content: Arrays) -> str:
    np.savez(path, **content)  # type: ignore[arg-type]
    return f"npz:{path}"


def test_digits_are_those_of_scikit_learn_wherever_its_file_lies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = sources._digits_table()
    monkeypatch.setattr(sources, "find_spec", lambda _: SimpleNamespace(origin="/absent/it.py"))
    assert np.array_equal(read, sources._digits_table())
    monkeypatch.setattr(sources, "find_spec", lambda _: None)
    with pytest.raises(MissingDataError, match="pip install scikit-learn"):
        sources._digits_table()


def test_digits_are_sixteen_pixels_wide_with_their_licence(digits: DataSet) -> None:
    assert digits.inputs.shape == (1, 16, 16)
    assert digits.num_classes == 10
    assert digits.class_names == tuple("0123456789")
    assert "CC BY 4.0" in digits.licence
    assert not digits.flips
    assert len(digits.train) + len(digits.val) + len(digits.test) == 1797
    assert digits.train.images.dtype == torch.uint8
    assert digits.train.labels.dtype == torch.int64
    assert int(digits.train.images.max()) == 255


def test_every_class_has_its_share_of_every_split(digits: DataSet) -> None:
    for split in (digits.train, digits.val, digits.test):
        shares = torch.bincount(split.labels, minlength=10) / len(split)
        assert float((shares - 0.1).abs().max()) < 0.01


def test_the_splits_share_no_image_and_leave_none_out(digits: DataSet) -> None:
    splits = (digits.train, digits.val, digits.test)
    rows = torch.cat([split.images.flatten(1) for split in splits])
    other = load_dataset("digits", root=None, seed=7)
    others = torch.cat([s.images.flatten(1) for s in (other.train, other.val, other.test)])
    assert sorted(map(bytes, rows.numpy())) == sorted(map(bytes, others.numpy()))


def test_the_seed_alone_decides_the_split(digits: DataSet) -> None:
    again = load_dataset("digits", root=None, seed=0)
    other = load_dataset("digits", root=None, seed=1)
    assert again.digest == digits.digest
    assert torch.equal(again.train.images, digits.train.images)
    assert other.digest != digits.digest


def test_either_half_of_the_training_split_is_a_fair_sample(digits: DataSet) -> None:
    half = torch.bincount(digits.train.labels[: len(digits.train) // 2], minlength=10)
    assert int(half.min()) > 0.6 * len(digits.train) / 20


def test_normalising_gives_zero_mean_and_unit_variance(digits: DataSet) -> None:
    images = digits.normalize(digits.train.images)
    assert images.dtype == torch.float32
    assert abs(float(images.mean())) < 1e-4
    assert abs(float(images.std()) - 1) < 1e-4


def test_augmenting_crops_a_padded_image_and_mirrors_half(tmp_path: Path) -> None:
    name = save(tmp_path / "x.npz", arrays(count=200, shape=(3, 16, 12)))
    data = load_dataset(name, root=None, seed=0)
    images = data.train.images
    made = data.augment(images, torch.Generator().manual_seed(0))
    assert made.shape == images.shape
    assert made.dtype == torch.uint8
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    mirrored = 0
    for before, after in zip(padded, made, strict=True):
        windows = [before[:, y : y + 16, x : x + 12] for y in range(5) for x in range(5)]
        plain = any(torch.equal(window, after) for window in windows)
        flipped = any(torch.equal(window.flip(-1), after) for window in windows)
        assert plain or flipped
        mirrored += flipped
    assert 0.35 < mirrored / len(images) < 0.65


def test_resized_crops_mirror_half_and_repeat_with_their_generator(tmp_path: Path) -> None:
    content = arrays(400, shape=(3, 8, 8))
    content["images"][:] = (np.arange(8) * 30).astype(np.uint8)  # rises to the right
    data = load_dataset(save(tmp_path / "x.npz", content), root=None, seed=0)
    images = data.train.images
    once, again = (data.augment_resized(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(once, again)
    assert (once.dtype, once.shape) == (images.dtype, images.shape)
    falls = once[:, 0, 0, 0] > once[:, 0, 0, -1]
    assert 0.4 < float(falls.float().mean()) < 0.6
    assert len(set(once.amax((1, 2, 3)).tolist())) > 4
    held = replace(data, flips=False).augment_resized(images, torch.Generator().manual_seed(3))
    assert bool((held[:, 0, 0, 0] <= held[:, 0, 0, -1]).all())


def test_digits_are_never_mirrored(digits: DataSet) -> None:
    images = torch.arange(16, dtype=torch.uint8).expand(64, 1, 16, 16) * 10
    made = digits.augment(images, torch.Generator().manual_seed(0))
    middle = made[:, 0, 8, 4:12].int()
    assert bool((middle.diff(dim=1) > 0).all())


def test_augmenting_is_a_function_of_the_generator(digits: DataSet) -> None:
    images = digits.train.images[:32]
    first, second, other = (
        digits.augment(images, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_moving_to_where_it_is_copies_nothing(digits: DataSet) -> None:
    assert digits.to(torch.device("cpu")) is digits


def test_arrays_of_ones_own_are_read(tmp_path: Path) -> None:
    content = arrays() | {"class_names": np.array(["a", "b", "c", "d"])}
    save(tmp_path / "own.npz", content)
    data = load_dataset("npz:own.npz", root=tmp_path, seed=0)
    assert data.inputs.shape == (3, 8, 8)
    assert data.class_names == ("a", "b", "c", "d")
    assert (len(data.train), len(data.val), len(data.test)) == (24, 8, 8)


def test_grey_arrays_may_leave_the_channel_out(tmp_path: Path) -> None:
    data = load_dataset(save(tmp_path / "x.npz", arrays(shape=(8, 8))), root=None, seed=0)
    assert data.inputs.shape == (1, 8, 8)
    assert not data.flips


def test_an_official_test_set_is_kept_whole(tmp_path: Path) -> None:
    content = {f"train_{key}": value for key, value in arrays(80).items()}
    content |= {f"test_{key}": value for key, value in arrays(12).items()}
    data = load_dataset(save(tmp_path / "x.npz", content), root=None, seed=3)
    assert (len(data.train), len(data.val), len(data.test)) == (72, 8, 12)
    assert data.test.labels.tolist() == content["test_labels"].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((40, 3, 8, 8), dtype=np.float32)}, "float32, not uint8"),
        ({"images": np.zeros((40, 8, 8, 3), dtype=np.uint8)}, r"shape \(40, 8, 8, 3\)"),
        ({"images": np.zeros((40, 8), dtype=np.uint8)}, r"shape \(40, 8\)"),
        ({"labels": np.zeros(39, dtype=np.int64)}, "give 40 whole numbers"),
        ({"labels": np.zeros(40)}, "float64"),
        ({"labels": np.arange(40) % 4 - 1}, "hold -1; labels start at 0"),
        ({"labels": np.zeros(40, dtype=np.int64)}, "1 class; it needs two"),
        ({"labels": np.arange(40) % 2 * 2}, "class '1' of .* has 0 images"),
        ({"class_names": np.array(["a", "b"])}, "label 3 has no class among 2"),
    ],
)
def test_wrong_arrays_are_named_with_the_remedy(
    tmp_path: Path, change: Arrays, message: str
) -> None:
    name = save(tmp_path / "x.npz", arrays() | change)
    with pytest.raises(InvalidInputError, match=message):
        load_dataset(name, root=None, seed=0)


def test_a_missing_array_and_a_wrong_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no array 'labels'; it has images"):
        load_dataset(save(tmp_path / "a.npz", {"images": arrays()["images"]}), root=None, seed=0)
    (tmp_path / "b.npz").write_bytes(b"not an archive")
    with pytest.raises(InvalidInputError, match="cannot be read as an npz"):
        load_dataset(f"npz:{tmp_path}/b.npz", root=None, seed=0)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays())  # type: ignore[arg-type]
    (tmp_path / "c.npz").write_bytes(buffer.getvalue()[:-200])
    with pytest.raises(InvalidInputError, match="cannot be read as an npz"):
        load_dataset(f"npz:{tmp_path}/c.npz", root=None, seed=0)


def test_an_array_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    content = arrays() | {"labels": np.array([{"a": 1}] * 40, dtype=object)}
    with pytest.raises(InvalidInputError, match="cannot be read as an npz"):
        load_dataset(save(tmp_path / "x.npz", content), root=None, seed=0)


def draw(path: Path, size: tuple[int, int] = (6, 6), mode: str = "RGB", level: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color=level if mode == "L" else (level, 0, 0)).save(path)


def test_a_folder_has_one_sub_folder_a_class(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for number in range(5):
            draw(tmp_path / name / f"{number}.png", level=number)
    (tmp_path / ".hidden").write_text("left alone")
    data = load_dataset(f"folder:{tmp_path}", root=None, seed=0)
    assert data.class_names == ("cat", "dog")
    assert data.inputs.shape == (3, 6, 6)
    assert data.flips
    assert (len(data.train), len(data.val), len(data.test)) == (6, 2, 2)


def test_a_folder_may_hold_an_official_test_set(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("test", 3)):
        for name in ("a", "b"):
            for number in range(count):
                draw(tmp_path / part / name / f"{number}.png", mode="L", level=number)
    data = load_dataset(f"folder:{tmp_path}", root=None, seed=0)
    assert data.inputs.shape == (1, 6, 6)
    assert len(data.test) == 6


def test_wrong_folders_are_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="there is no folder"):
        load_dataset(f"folder:{tmp_path}/none", root=None, seed=0)
    with pytest.raises(MissingDataError, match="holds nothing"):
        load_dataset(f"folder:{tmp_path}", root=None, seed=0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(MissingDataError, match="hold no images"):
        load_dataset(f"folder:{tmp_path}", root=None, seed=0)
    for name in ("a", "b"):
        for number in range(3):
            draw(tmp_path / name / f"{number}.png")
    draw(tmp_path / "b" / "3.png", size=(7, 6))
    with pytest.raises(InvalidInputError, match=r"3\.png is 7x6 pixels, others are 6x6"):
        load_dataset(f"folder:{tmp_path}", root=None, seed=0)
    (tmp_path / "b" / "3.png").write_bytes(b"\x89PNG torn")
    with pytest.raises(InvalidInputError, match=r"3\.png cannot be read as an image"):
        load_dataset(f"folder:{tmp_path}", root=None, seed=0)
    (tmp_path / "b" / "3.png").rename(tmp_path / "b" / "notes.txt")
    with pytest.raises(InvalidInputError, match=r"notes\.txt is no image"):
        load_dataset(f"folder:{tmp_path}", root=None, seed=0)
    (tmp_path / "b" / "notes.txt").rename(tmp_path / "notes.txt")
    with pytest.raises(MissingDataError, match=r"holds the file notes\.txt"):
        load_dataset(f"folder:{tmp_path}", root=None, seed=0)


def sheets(root: Path) -> None:
    """Write CIFAR-10's layout: a sheet of 1,000 tiles whose red tells their number."""
    folder = root / "cifar10"
    folder.mkdir()
    tiles = np.zeros((1000, 32, 32, 3), dtype=np.uint8)
    tiles[..., 0] = (np.arange(1000) % 256)[:, None, None]
    sheet = tiles.reshape(25, 40, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(800, 1280, 3)
    for name in ("train_00", "test_00"):
        Image.fromarray(sheet).save(folder / f"{name}.webp", lossless=True)
    labels = (np.arange(1000) % 10).astype(np.uint8)
    np.savez(folder / "labels.npz", train_labels=labels, test_labels=labels)


def test_cifar_sheets_are_cut_into_images_in_order(tmp_path: Path) -> None:
    sheets(tmp_path)
    data = load_dataset("cifar10", root=tmp_path, seed=0)
    assert data.class_names[:2] == ("airplane", "automobile")
    assert (len(data.train), len(data.val), len(data.test)) == (900, 100, 1000)
    assert data.test.images[:, 0, 0, 0].tolist() == [number % 256 for number in range(1000)]
    assert data.test.labels.tolist() == [number % 10 for number in range(1000)]


def test_sheets_that_do_not_match_the_labels_are_refused(tmp_path: Path) -> None:
    sheets(tmp_path)
    (tmp_path / "cifar10" / "test_00.webp").unlink()
    with pytest.raises(MissingDataError, match="has 0 sheets test_"):
        load_dataset("cifar10", root=tmp_path, seed=0)


def test_fashion_mnist_is_read_from_its_npz(tmp_path: Path) -> None:
    (tmp_path / "fashion_mnist").mkdir()
    content = {f"train_{key}": value for key, value in arrays(60, 10, (28, 28)).items()}
    content |= {f"test_{key}": value for key, value in arrays(20, 10, (28, 28)).items()}
    np.savez(tmp_path / "fashion_mnist" / "fashion_mnist.npz", **content)  # type: ignore[arg-type]
    data = load_dataset("fashion-mnist", root=tmp_path, seed=0)
    assert data.class_names[9] == "Ankle boot"
    assert data.licence.startswith("MIT")
    assert len(data.test) == 20


def test_fashion_mnist_is_read_from_torchvisions_files(tmp_path: Path) -> None:
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix, count in (("train", 60), ("t10k", 20)):
        content = arrays(count, 10, (28, 28))
        header = struct.pack(">iiii", 2051, count, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + content["images"].tobytes())
        labels = struct.pack(">ii", 2049, count) + content["labels"].astype(np.uint8).tobytes()
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    data = load_dataset("fashion-mnist", root=tmp_path, seed=0)
    assert data.inputs.shape == (1, 28, 28)
    assert torch.equal(data.test.images[:, 0], torch.from_numpy(content["images"]))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion-mnist"])
def test_missing_files_say_what_to_put_where(tmp_path: Path, name: str) -> None:
    folder = name.replace("-", "_")
    with pytest.raises(MissingDataError, match="set BLOCKYARD_DATA"):
        load_dataset(name, root=None, seed=0)
    with pytest.raises(MissingDataError, match=rf"put {folder}/{folder}.npz there"):
        load_dataset(name, root=tmp_path, seed=0)


@pytest.mark.parametrize("name", ["mnist", "imagenet:x", ""])
def test_an_unknown_name_lists_the_names(name: str) -> None:
    with pytest.raises(UnknownNameError, match="cifar10, cifar100, digits, fashion-mnist, folder"):
        load_dataset(name, root=None, seed=0)


def test_a_scheme_without_a_path_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="names no path"):
        load_dataset("npz:", root=None, seed=0)


def test_the_catalogue_lists_every_name() -> None:
    names = [item["name"] for item in data_catalogue() if isinstance(item, dict)]
    assert names == ["digits", "cifar10", "cifar100", "fashion-mnist", "folder:PATH", "npz:PATH"]
