"""What the expressions of cases are made of; they use the imports too."""

# ruff: noqa: F401

import contextlib
import functools
import io
import json
import os
from collections import deque
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy import sparse


class NoRepr:
    """What cannot be shown."""

    def __repr__(self):
        raise RuntimeError("no repr")


class Rows:
    """A map-style dataset: a length, and rows by their number."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class AsArray:
    """What numpy makes an array of."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype=dtype)


class Shaped:
    """Has a shape, and nothing else of an array."""

    shape, ndim, dtype = (16, 8, 8), 3, np.dtype("uint8")


def images(*shape):
    """uint8 images of three clusters, of any shape."""
    rng = np.random.default_rng(0)
    prototypes = rng.choice([40, 215], (3, *shape[1:]))
    chosen = prototypes[np.arange(shape[0]) % 3] if shape else np.float64(128)
    return (chosen + rng.normal(0, 10, shape)).clip(0, 255).astype(np.uint8)


def with_value(array, value):
    """The array as floats, with one value replaced."""
    array = np.array(array, dtype=np.float64)
    array.reshape(-1)[:1] = value
    return array


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def columns(array, name=str):
    """A data frame of flat rows."""
    flat = array.reshape(len(array), -1)
    return pd.DataFrame(flat, columns=[name(column) for column in range(flat.shape[1])])


def nested(depth):
    """A list in a list in a list."""
    value = []
    for _ in range(depth):
        value = [value]
    return value


def recursive():
    """A list that holds itself."""
    value = []
    value.append(value)
    return value


def pil(mode, count=12, size=(8, 8)):
    """PIL images of one mode."""
    return [_picture(mode, size, row) for row in range(count)]


def mixed(column):
    """Names of columns of which some are no strings."""
    return str(column) if column % 2 else column


def criterion_error(features, labels):
    """A criterion that does not work, and says so."""
    raise ValueError("this criterion raises")


def _picture(mode, size, row):
    pixels = images(3, size[1], size[0])[row % 3]
    if mode in ("I;16", "I;16B", "I;16L"):
        return Image.fromarray(pixels.astype(np.uint16) * 257).convert(mode)
    picture = Image.fromarray(pixels)
    if mode == "PA":
        return picture.convert("P").convert("PA")
    return picture.convert({"HSV": "RGB", "LAB": "RGB"}.get(mode, mode)).convert(mode)


# Entries of a folder: each is called with the folder


def image(name, mode="L", size=(8, 8), row=0, **options):
    """One image file, in the format of its suffix; what Pillow cannot write is left as text."""

    def write(folder):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            picture = _picture(mode, size, row)
            orientation = options.pop("orientation", None)
            if orientation is not None:
                options["exif"] = picture.getexif()
                options["exif"][0x0112] = orientation
            pages = options.pop("pages", 1)
            if pages > 1:
                more = [_picture(mode, size, row + page) for page in range(1, pages)]
                options.update(save_all=True, append_images=more)
            path.unlink(missing_ok=True)
            with path.open("wb") as file:
                picture.save(file, format=options.pop("format", Image.registered_extensions().get(path.suffix)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            path.write_bytes(b"no image")

    return write


def many(count, suffix=".png", mode="L", size=(8, 8)):
    """Image files that are fine."""
    return lambda folder: [image(f"{row:02}{suffix}", mode, size, row)(folder) for row in range(count)]


def content(name, data=b""):
    """A file of given bytes."""

    def write(folder):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return write


def cut(name, share, mode="L"):
    """An image file that ends early."""

    def write(folder):
        image(name, mode, (16, 16))(folder)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return write


def link(name, target):
    """A link, to a path in the folder or elsewhere."""
    return lambda folder: (folder / name).symlink_to(target)


def fifo(name):
    """A named pipe that nothing is written to."""
    return lambda folder: os.mkfifo(folder / name)


def deep(depth):
    """Folders in folders, and an image in the last."""
    return lambda folder: image("/".join("d" * depth) + "/deep.png")(folder)


# Changes to the folder of a backbone


def _json_change(name, change):
    def write(folder):
        data = json.loads((folder / name).read_text())
        change(data)
        (folder / name).write_text(json.dumps(data))

    return write


def put(name, key, value):
    """Set a key of a JSON file."""
    return _json_change(name, lambda data: data.__setitem__(key, value))


def drop(name, key):
    """Delete a key of a JSON file."""
    return _json_change(name, lambda data: data.pop(key, None))


def text(name, value):
    """Replace a file by text."""
    return lambda folder: _replaced(folder / name).write_text(value)


def shorten(name, share):
    """Cut a file."""
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: int((folder / name).stat().st_size * share)]
    )


def without(name):
    """Delete a file."""
    return lambda folder: (folder / name).unlink()


def piped(name):
    """Replace a file by a named pipe."""
    return lambda folder: os.mkfifo(_replaced(folder / name))


def linked(name, target):
    """Replace a file by a link."""
    return lambda folder: _replaced(folder / name).symlink_to(target)


def _replaced(path):
    path.unlink(missing_ok=True)
    return path
