"""Data sets that clustering methods are compared on, from a folder or a download."""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skdiec.messages import shown

__all__ = ["DATASETS", "ImageDataset", "load_dataset"]

FOLDER_VARIABLE = "SKDIEC_DATA"
"""Environment variable that names the folder with data sets, where none is given."""


@dataclass(frozen=True)
class _Known:
    shape: tuple[int, ...]
    openml_id: int | None = None


_KNOWN = {
    "usps": _Known((16, 16), 41082),
    "mnist": _Known((28, 28), 554),
    "fashion_mnist": _Known((28, 28), 40996),
    "cifar10": _Known((32, 32, 3), 40927),
    "umist": _Known((32, 32)),
    "palm": _Known((16, 16)),
    "signs": _Known((64, 64, 3)),
}

DATASETS = ("digits", *_KNOWN)
"""Names that `load_dataset` knows."""


@dataclass(frozen=True)
class ImageDataset:
    """Images with their classes, which clustering may be evaluated by.

    Attributes
    ----------
    name : str
        One of `DATASETS`.
    images : ndarray of shape (n, height, width) or (n, height, width, 3), uint8
        Training and test images together, as the field clusters them.
    labels : ndarray of shape (n,), int64
        Classes, from 0.
    origin : str
        Where the images come from, and what was done to them.

    Examples
    --------
    >>> digits = load_dataset("digits")
    >>> digits.name, digits.images.shape, digits.images.dtype.name
    ('digits', (1797, 8, 8), 'uint8')
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    origin: str


def load_dataset(name: str, folder: str | os.PathLike | None = None) -> ImageDataset:
    """Load a data set from a local folder, or else download it.

    Parameters
    ----------
    name : {"digits", "usps", "mnist", "fashion_mnist", "cifar10", "umist", "palm", "signs"}
        ``"digits"`` comes with scikit-learn. The last three have no download: 575 faces of 20 people (UMIST), 2,000
        palm prints of 100 people, and 2,062 photographs of hands that sign a digit (Mavi, arXiv 2011.08927).
    folder : path, default=None
        Folder with ``NAME.npz``: ``X``, uint8 images of shape (n, height, width) or (n, height, width, 3), and ``y``,
        their classes. For images kept as JPEG files ``NAME_jpeg.npz``: ``data``, the bytes of all files one after the
        other; ``offsets``, where each begins, and the end; ``y``. None is the environment variable
        ``SKDIEC_DATA``; without that, the data set is downloaded from OpenML and kept where scikit-learn keeps
        its downloads.

    Returns
    -------
    ImageDataset

    Raises
    ------
    ValueError
        For an unknown name, or a file with something else in it.
    FileNotFoundError
        Where the folder does not hold the data set, or none is given for one that has no download.

    Examples
    --------
    >>> load_dataset("digits").images.shape
    (1797, 8, 8)
    """
    if not isinstance(name, str) or name not in DATASETS:
        raise ValueError(f"name must be one of {', '.join(DATASETS)}; got {shown(name)}")
    if folder is not None and not isinstance(folder, (str, os.PathLike)):
        raise ValueError(f"folder must be a path or None; got {shown(folder)}")
    if name == "digits":
        return _digits()
    folder = folder if folder is not None else os.environ.get(FOLDER_VARIABLE) or None
    return _download(name) if folder is None else _read(name, Path(folder))


def _digits() -> ImageDataset:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)
    return ImageDataset("digits", images, found.target.astype(np.int64), "scikit-learn, 0 to 16 scaled to 0 to 255")


def _read(name: str, folder: Path) -> ImageDataset:
    plain, compressed = folder / f"{name}.npz", folder / f"{name}_jpeg.npz"
    path = plain if plain.exists() else compressed
    if not path.exists():
        raise FileNotFoundError(f"folder must hold {plain.name} or {compressed.name}; {folder} does not")
    if not path.is_file():  # to open a pipe would be to wait for its other end
        raise ValueError(f"{path} is no regular file")
    try:
        return _parse(name, path)
    except (EOFError, OSError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no readable .npz file: {error or type(error).__name__}") from error
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} is no .npz file of plain numbers") from error


def _parse(name: str, path: Path) -> ImageDataset:
    is_compressed = path.name.endswith("_jpeg.npz")
    with path.open("rb") as stream, np.load(stream) as file:  # damaged, a file that numpy opens itself stays open
        missing = {"X", "y"} - set(file.files) if not is_compressed else {"data", "offsets", "y"} - set(file.files)
        if missing:
            raise ValueError(f"{path} must hold an array {sorted(missing)[0]!r}; it holds {', '.join(file.files)}")
        labels = file["y"].astype(np.int64)
        images = file["X"] if not is_compressed else _decode(file["data"], file["offsets"])
    _check(images, labels, _KNOWN[name].shape, path)
    return ImageDataset(name, images, labels, path.name + (", JPEG-compressed" if is_compressed else ""))


def _decode(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
    files = (data[start:stop].tobytes() for start, stop in pairwise(offsets))
    return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


def _download(name: str) -> ImageDataset:
    from sklearn.datasets import fetch_openml

    known = _KNOWN[name]
    if known.openml_id is None:
        raise FileNotFoundError(f"{name} has no download: folder must hold {name}.npz or {name}_jpeg.npz")
    found = fetch_openml(data_id=known.openml_id, as_frame=False)
    values = np.asarray(found.data, dtype=np.float64)
    if name == "usps":  # grey values from -1 to 1, classes from 1
        values = (values + 1) * 127.5
    images = np.round(values).astype(np.uint8)
    if len(known.shape) == 3:  # one plane for each channel
        height, width, channels = known.shape
        images = images.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
    else:
        images = images.reshape(-1, *known.shape)
    _, labels = np.unique(np.asarray(found.target).astype(np.float64), return_inverse=True)
    _check(images, labels, known.shape, f"OpenML {known.openml_id}")
    return ImageDataset(name, np.ascontiguousarray(images), labels.astype(np.int64), f"OpenML {known.openml_id}")


def _check(images: NDArray, labels: NDArray, shape: tuple[int, ...], origin: object) -> None:
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        raise ValueError(
            f"{origin} must hold uint8 images of shape (n, {', '.join(map(str, shape))}); "
            f"got {images.dtype} of shape {images.shape}"
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{origin} must hold a class for each of its {len(images)} images; got shape {labels.shape}")
