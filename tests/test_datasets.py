import io
import os

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

from skdiec.datasets import DATASETS, load_dataset


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("SKDIEC_DATA", raising=False)


def images_of(shape, n=3):
    return np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)


@pytest.fixture
def openml(monkeypatch):
    """Lets fetch_openml find what the test gives, and records what it was asked."""
    asked = []

    def give(data, target):
        def fetch(**arguments):
            asked.append(arguments)
            return Bunch(data=data, target=target)

        monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
        return asked

    return give


def test_digits_come_with_scikit_learn():
    found = load_dataset("digits")
    expected = load_digits()
    np.testing.assert_allclose(found.images * (16 / 255), expected.images, atol=0.04)
    np.testing.assert_array_equal(found.labels, expected.target)
    assert found.images.dtype == np.uint8
    assert (found.images.min(), found.images.max()) == (0, 255)


@pytest.mark.parametrize("name", ["usps", "mnist", "fashion_mnist"])
@pytest.mark.parametrize("by", ["argument", "environment"])
def test_grey_images_are_read_from_a_folder(tmp_path, monkeypatch, name, by):
    images = images_of((16, 16) if name == "usps" else (28, 28))
    np.savez(tmp_path / f"{name}.npz", X=images, y=np.array([2, 0, 1], np.uint8))
    if by == "environment":
        monkeypatch.setenv("SKDIEC_DATA", str(tmp_path))
    found = load_dataset(name, tmp_path if by == "argument" else None)
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.labels, [2, 0, 1])
    assert (found.name, found.origin, found.labels.dtype) == (name, f"{name}.npz", np.int64)


def test_jpeg_files_are_decoded(tmp_path):
    files = []
    for image in images_of((32, 32, 3)):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=75)
        files.append(buffer.getvalue())
    data = np.frombuffer(b"".join(files), np.uint8)
    np.savez(tmp_path / "cifar10_jpeg.npz", data=data, offsets=np.cumsum([0, *map(len, files)]), y=[0, 1, 2])
    found = load_dataset("cifar10", tmp_path)
    expected = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    np.testing.assert_array_equal(found.images, expected)
    assert found.origin == "cifar10_jpeg.npz, JPEG-compressed"


def test_images_as_they_are_come_before_compressed_ones(tmp_path):
    images = images_of((32, 32, 3))
    np.savez(tmp_path / "cifar10.npz", X=images, y=np.zeros(3))
    np.savez(tmp_path / "cifar10_jpeg.npz", data=[0], offsets=[0], y=[0])
    np.testing.assert_array_equal(load_dataset("cifar10", tmp_path).images, images)


@pytest.mark.parametrize(("name", "data_id"), [("mnist", 554), ("fashion_mnist", 40996)])
def test_grey_images_are_downloaded(openml, name, data_id):
    images = images_of((28, 28))
    asked = openml(images.reshape(3, -1).astype(np.float64), np.array(["7", "0", "2"], dtype=object))
    found = load_dataset(name)
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.labels, [2, 0, 1])  # the classes that are there, from 0
    assert asked == [{"data_id": data_id, "as_frame": False}]
    assert found.origin == f"OpenML {data_id}"


def test_downloaded_usps_is_scaled_from_minus_one_to_one(openml):
    values = np.linspace(-1, 1, 512).reshape(2, 256)
    asked = openml(values, np.array(["1", "10"], dtype=object))
    found = load_dataset("usps")
    np.testing.assert_array_equal(found.images.reshape(2, 256), np.round((values + 1) * 127.5))
    np.testing.assert_array_equal(found.labels, [0, 1])  # "10" comes after "1", also after "2"
    assert asked[0]["data_id"] == 41082


def test_downloaded_classes_are_in_the_order_of_their_numbers(openml):
    openml(np.zeros((3, 256)), np.array(["10", "2", "1"], dtype=object))
    np.testing.assert_array_equal(load_dataset("usps").labels, [2, 1, 0])


def test_downloaded_colour_planes_come_together(openml):
    images = images_of((32, 32, 3))
    openml(images.transpose(0, 3, 1, 2).reshape(3, -1), np.array(["0", "1", "2"], dtype=object))
    np.testing.assert_array_equal(load_dataset("cifar10").images, images)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": images_of((16, 16))}, "must hold an array 'y'; it holds X"),
        ({"X": images_of((8, 8)), "y": np.zeros(3)}, r"shape \(n, 16, 16\); got uint8 of shape \(3, 8, 8\)"),
        ({"X": images_of((16, 16)) / 255.0, "y": np.zeros(3)}, "uint8 images .*; got float64"),
        ({"X": images_of((16, 16)), "y": np.zeros(2)}, r"a class for each of its 3 images; got shape \(2,\)"),
    ],
)
def test_files_with_something_else_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "usps.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_dataset("usps", tmp_path)


def test_unknown_names_and_missing_files_are_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match="name must be one of digits, usps, mnist, fashion_mnist, cifar10, umist, palm, signs; got 'svhn'",
    ):
        load_dataset("svhn")
    with pytest.raises(FileNotFoundError, match=r"folder must hold mnist\.npz or mnist_jpeg\.npz"):
        load_dataset("mnist", tmp_path)
    for name in (None, np.array(["digits", "usps"]), ["digits"]):
        with pytest.raises(ValueError, match="name must be one of digits, "):
            load_dataset(name)
    with pytest.raises(ValueError, match="folder must be a path or None; got 3"):
        load_dataset("mnist", 3)
    assert len(DATASETS) == 8


@pytest.mark.parametrize(("name", "shape"), [("umist", (32, 32)), ("palm", (16, 16))])
def test_sets_without_a_download_are_read_from_a_folder_alone(tmp_path, monkeypatch, name, shape):
    monkeypatch.delenv("SKDIEC_DATA", raising=False)
    with pytest.raises(
        FileNotFoundError, match=rf"{name} has no download: folder must hold {name}\.npz or {name}_jpeg"
    ):
        load_dataset(name)
    np.savez(tmp_path / f"{name}.npz", X=images_of(shape), y=np.arange(3))
    np.testing.assert_array_equal(load_dataset(name, tmp_path).images, images_of(shape))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes on this system")
def test_pipes_are_no_data_sets(tmp_path):
    os.mkfifo(tmp_path / "usps.npz")
    with pytest.raises(ValueError, match=r"usps\.npz is no regular file"):
        load_dataset("usps", tmp_path)


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 cut"])
def test_damaged_data_sets_are_named(content, tmp_path):
    (tmp_path / "usps.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"usps\.npz is no") as caught:
        load_dataset("usps", tmp_path)
    assert "pickle" not in str(caught.value)


def test_data_sets_of_objects_are_named(tmp_path):
    np.savez(tmp_path / "usps.npz", X=np.zeros((2, 16, 16), np.uint8), y=np.array([None, {}], dtype=object))
    with pytest.raises(ValueError, match=r"usps\.npz is no \.npz file of plain numbers"):
        load_dataset("usps", tmp_path)


def test_one_array_is_no_data_set(tmp_path):
    np.save(tmp_path / "usps.npy", np.zeros((2, 16, 16), np.uint8))
    (tmp_path / "usps.npy").rename(tmp_path / "usps.npz")
    with pytest.raises(ValueError, match=r"usps\.npz is no"):
        load_dataset("usps", tmp_path)
