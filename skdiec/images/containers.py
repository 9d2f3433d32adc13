"""Containers of images: whatever people bring becomes a folder, a list of paths, PIL images or an array."""

from __future__ import annotations

import abc
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import DTypeLike, NDArray
from PIL import Image

FORMS = (
    "an array or table of numbers, a folder, or a sequence or iterable of images (arrays, tensors or PIL images) "
    "or of paths of image files"
)
"""What X may be, for messages."""

_PATH, _PICTURE, _NUMBERS = "paths", "PIL images", "arrays of numbers"


class LazyArray(abc.ABC):
    """Images that are read when asked for, with those attributes of an array that `skdiec.images.arrays` uses.

    Parameters
    ----------
    shape : tuple of int
        That of all images.
    dtype : dtype
        Of the values.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.shape = tuple(int(side) for side in shape)
        self.dtype = np.dtype(dtype)

    @property
    def ndim(self) -> int:
        """Number of dimensions, that of the images included."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that all images take in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> NDArray:
        return self._read(np.arange(len(self))[rows])

    @abc.abstractmethod
    def _read(self, rows: NDArray[np.integer]) -> NDArray:
        """Return the images of these rows, in their order."""


class StoredArray(LazyArray):
    """An array of another library, such as a data set of HDF5 or zarr, of which only the rows asked for are read.

    Parameters
    ----------
    stored : array-like
        With a ``shape``, and rows that are read by slices.
    """

    def __init__(self, stored: Any) -> None:
        try:
            first = stored[:1]
        except Exception as error:  # of whatever library it is
            raise ValueError(f"X must be {FORMS}; got {_name(stored)}, whose rows cannot be read: {error}") from error
        super().__init__(stored.shape, _plain(first).dtype)
        self._stored = stored

    def _read(self, rows: NDArray[np.integer]) -> NDArray:
        # By slices that increase: all such libraries have them, few have numpy's other indices.
        wanted, places = np.unique(rows, return_inverse=True)
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)
        blocks = [_plain(self._stored[int(run[0]) : int(run[-1]) + 1]) for run in runs if len(run)]
        read = np.concatenate(blocks) if blocks else np.empty((0, *self.shape[1:]), self.dtype)
        if read.shape != (len(wanted), *self.shape[1:]) or value_kind(read.dtype) != value_kind(self.dtype):
            raise ValueError(
                f"X gives other rows than it has: of shape {read.shape} and dtype {read.dtype}, where "
                f"{(len(wanted), *self.shape[1:])} and {self.dtype} are expected"
            )
        return read[places]


class ItemArray(LazyArray):
    """The images of a sequence that gives arrays one by one, such as a map-style dataset of torch.

    Parameters
    ----------
    items : sequence
        Of arrays of one shape and type.
    """

    def __init__(self, items: Sequence) -> None:
        first = _item_array(items[0], 0)
        super().__init__((len(items), *first.shape), first.dtype)
        self._items = items

    def _read(self, rows: NDArray[np.integer]) -> NDArray:
        block = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for image, row in zip(block, rows.tolist(), strict=True):
            item = _item_array(self._items[row], row)
            is_alike = np.can_cast(item.dtype, self.dtype) and value_kind(item.dtype) == value_kind(self.dtype)
            if item.shape != self.shape[1:] or not is_alike:
                raise ValueError(
                    f"images of X must have one shape and type: item 0 has {self.shape[1:]} and {self.dtype}, "
                    f"item {row} has {item.shape} and {item.dtype}"
                )
            image[...] = item
        return block


class Pictures(Sequence):
    """PIL images, from a sequence that holds them or makes them when asked for.

    Parameters
    ----------
    items : sequence
        Of PIL images.
    """

    def __init__(self, items: Sequence) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, row: int) -> Image.Image:  # type: ignore[override] # no slices are taken
        item = self._items[row]
        if not isinstance(item, Image.Image):
            raise ValueError(f"item {row} of X is of type {_name(item)}, but item 0 is a PIL image")
        return item


class _Records(Sequence):
    """The images of a map-style dataset, whose items may hold more than their image."""

    def __init__(self, dataset: Any, column: str | None = None) -> None:
        self._dataset = dataset
        self._column = column

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, row: int) -> Any:  # type: ignore[override] # no slices are taken
        item = self._dataset[row]
        return _image_of(item, row) if self._column is None else item[self._column]


def unpack(X: Any) -> Any:
    """Return what a container holds, in one of few forms.

    Parameters
    ----------
    X : object
        - A folder, or an array or table of numbers, as `skdiec.images.as_image_source` explains them.
        - A sequence of images or of paths: list, tuple, array of objects, column of a table.
        - An iterable, such as a generator. All of its items are held in memory.
        - A map-style dataset, whose items are read when needed, and more than once. Of an item that is a tuple or a
          mapping, the one image in it is taken; what is left, such as a label, is not looked at.
        - A dataset of Hugging Face with one column of images.
        - An array of another library, such as HDF5 or zarr. Rows of three dimensions and more are read when needed.

    Returns
    -------
    str or PathLike
        A folder.
    list of str or PathLike
        Image files.
    Pictures
        PIL images.
    LazyArray
        Images of numbers that are read when needed; at least three dimensions.
    ndarray or data frame
        Numbers of at least two dimensions. What is returned may be unpacked again.

    Raises
    ------
    TypeError
        Where X is sparse.
    ValueError
        Where X is none of these, or its items are not all of one kind.
    """
    if isinstance(X, (str, os.PathLike, LazyArray, Pictures)):
        return X
    _refuse_what_is_no_container(X)
    if _has(X, "columns"):
        _check_columns(X)
        return X
    shape = X.shape if _has(X, "shape") else None
    if _has(X, "column_names") and _has(X, "features"):  # a dataset of Hugging Face
        X = _unpack_items(_image_column(X))
    elif _is_tensor(X):
        X = _tensor_array(X, "X")
    elif isinstance(shape, tuple) and len(shape) > 1 and not isinstance(X, np.ndarray):
        stored = StoredArray(X) if shape[0] else np.empty(shape)
        X = stored if stored.ndim > 2 else stored[:]
    elif not isinstance(X, np.ndarray) or (X.ndim == 1 and X.dtype.kind in "OUT"):
        X = _unpack_items(X)
    if isinstance(X, np.ndarray) and X.ndim < 2:
        raise ValueError(
            f"X must have 2, 3 or 4 dimensions. Expected 2D array, got {X.ndim}D array instead. Reshape your data: "
            "X[None] makes a batch of one image or row, X.reshape(-1, 1) rows of one feature"
        )
    return X


def is_rows(X: Any) -> bool:
    """Tell whether X, as it was unpacked, has rows of numbers: a table, or flat images."""
    return _has(X, "columns") or (isinstance(X, np.ndarray) and X.ndim == 2)


def is_paths(X: Any) -> TypeGuard[str | os.PathLike | list[str | os.PathLike]]:
    """Tell whether X, as it was unpacked, is a folder or a list of paths."""
    return isinstance(X, (str, os.PathLike)) or (isinstance(X, list) and len(X) > 0 and _kind(X[0]) == _PATH)


def _has(X: Any, name: str) -> bool:
    try:
        return hasattr(X, name)
    except Exception:  # of attributes that are looked up in ways of their own
        return False


def _refuse_what_is_no_container(X: Any) -> None:
    name = _name(X)
    if isinstance(X, Image.Image):
        raise ValueError(f"X is one PIL image ({name}): pass [image]")
    if _has(X, "tocsr") or _has(X, "tocoo"):
        raise TypeError(f"Sparse data was passed for X, but dense data is required: pass X.toarray(); got {name}")
    if isinstance(X, np.ma.MaskedArray):
        raise ValueError("X must not be a masked array: say what the masked values are, as by X.filled(0)")
    if isinstance(X, Mapping) or (_has(X, "keys") and _has(X, "items") and not _has(X, "shape")):
        raise ValueError(f"X is a mapping ({name}): pass the entry with the images, as X['images']")
    if isinstance(X, Set):
        raise ValueError(f"X is a {name}, which has no order that labels could follow: pass sorted(X)")
    if _has(X, "batch_size") and _has(X, "dataset"):
        raise ValueError(f"X is a {name}, which gives batches, maybe shuffled ones: pass X.dataset")
    if _has(X, "read") and _has(X, "seek"):
        raise ValueError(f"X is an open file ({name}): pass its path in a list, [path]")
    if X is None or isinstance(X, (bytes, bytearray, type)):
        raise ValueError(f"X must be {FORMS}; got {name}")


def _unpack_items(X: Any) -> Any:
    for method in ("to_list", "to_pylist", "tolist"):  # columns of pandas, polars and arrow; arrays of objects
        if _has(X, method):
            X = getattr(X, method)()
            break
    if isinstance(X, (list, tuple)):
        return _together(list(X))
    is_mapped = _has(X, "__getitem__") and _has(X, "__len__")
    if is_mapped and len(X) > 0:
        items = X if isinstance(X, _Records) else _Records(X)
        try:
            first = items[0]
        except NotImplementedError:  # torch's iterable datasets inherit the method
            is_mapped = False
        else:
            kind = _kind(first)
            if kind == _PICTURE:
                return Pictures(items)
            if kind == _NUMBERS and _depth(first) > 1:
                return ItemArray(items)
            return _together([items[row] for row in range(len(items))])
    if isinstance(X, Iterable):
        return _together(list(X))
    if _has(X, "__array__") or isinstance(X, (int, float, complex, np.generic, memoryview)):
        return np.asarray(X)
    raise ValueError(f"X must be {FORMS}; got {_name(X)}")


def _image_column(dataset: Any) -> Any:
    """Return the images of a dataset of Hugging Face."""
    names = list(dataset.column_names or ())
    features = dataset.features or {}
    images = [name for name in names if type(features.get(name)).__name__ == "Image"] or names
    if not names:  # streamed, and nothing is known of the columns
        return iter(dataset)
    if len(images) > 1:
        shown = ", ".join(images[:5]) + (", ..." if len(images) > 5 else "")
        raise ValueError(f"X is a {_name(dataset)} with several columns that may be the images: pass one of {shown}")
    only = dataset.select_columns(images) if hasattr(dataset, "select_columns") else dataset
    return _Records(only, images[0]) if hasattr(dataset, "__len__") else (row[images[0]] for row in only)


def _together(items: list) -> Any:
    """Return the items of a list as paths, pictures or an array."""
    if not items:
        raise ValueError("X must hold at least one image; it is empty")
    items = [_image_of(item, row) for row, item in enumerate(items)]
    kinds = [_kind(item) for item in items]
    counts = Counter(kind for kind in kinds if kind is not None)
    if not counts:
        raise ValueError(f"X must be {FORMS}; item 0 of X is of type {_name(items[0])}")
    usual = counts.most_common(1)[0][0]
    odd = next((row for row, kind in enumerate(kinds) if kind != usual), None)
    if odd is not None:
        raise ValueError(
            f"items of X must be of one kind: most are {usual}, but item {odd} is of type {_name(items[odd])}"
        )
    if usual == _PATH:
        _refuse_letters(items)
        return items
    return Pictures(items) if usual == _PICTURE else _stacked(items)


def _stacked(items: list) -> NDArray:
    """Return numbers that lie in a list as one array."""
    if not any(_has(item, "shape") for item in items):
        try:
            return np.asarray(items)
        except ValueError:  # of several lengths: below, the first of another one is named
            pass
    arrays = [_item_array(item, row) for row, item in enumerate(items)]
    first = arrays[0]
    for row, array in enumerate(arrays):
        if array.shape != first.shape:
            raise ValueError(
                f"images of X must have one shape: item 0 has {first.shape}, item {row} has {array.shape}. "
                "Images of several sizes may come as files or as PIL images"
            )
        if array.ndim > 1 and value_kind(array.dtype) != value_kind(first.dtype):
            raise ValueError(f"images of X must have one type: item 0 has {first.dtype}, item {row} has {array.dtype}")
    return np.stack(arrays)


def value_kind(dtype: np.dtype) -> str:
    """Return what kind of numbers a type holds, as far as the meaning of their range goes."""
    if dtype == np.uint8:
        return "uint8"
    return {"b": "bool", "i": "integer", "u": "integer", "f": "float"}.get(dtype.kind, dtype.name)


def _image_of(item: Any, row: int) -> Any:
    """Return the one image of a tuple or mapping, which may hold a label and more; all else as it is."""
    if not isinstance(item, (tuple, Mapping)):
        return item
    values = list(item.values() if isinstance(item, Mapping) else item)
    for is_image in (
        lambda value: _kind(value) == _PICTURE or _array_depth(value) > 1,
        lambda value: isinstance(item, Mapping) and _kind(value) == _NUMBERS and _depth(value) > 1,
        lambda value: _kind(value) == _PATH,
        lambda value: _array_depth(value) == 1,
    ):
        images = [value for value in values if is_image(value)]
        if len(images) > 1:
            raise ValueError(
                f"item {row} of X is a {_name(item)} with {len(images)} entries that may be its image: "
                "pass the images alone"
            )
        if images:
            return images[0]
    return item


def _kind(item: Any) -> str | None:
    if isinstance(item, (str, os.PathLike)):
        return _PATH
    if isinstance(item, Image.Image):
        return _PICTURE
    if isinstance(item, (bytes, bytearray)):
        return None
    is_numbers = isinstance(item, (list, tuple, int, float, complex, np.generic)) or _has(item, "__array__")
    return _NUMBERS if is_numbers else None


def _array_depth(value: Any) -> int:
    return len(value.shape) if _has(value, "shape") and isinstance(value.shape, tuple) else 0


def _depth(value: Any) -> int:
    """Return the number of dimensions, of nested lists too."""
    if isinstance(value, (list, tuple)):
        return 1 + (_depth(value[0]) if value else 0)
    return _array_depth(value)


def _item_array(item: Any, row: int) -> NDArray:
    name = f"item {row} of X"
    if _is_tensor(item):
        return _tensor_array(item, name)
    if isinstance(item, np.ma.MaskedArray):
        raise ValueError(f"{name} must not be a masked array: say what the masked values are, as by filled(0)")
    if _kind(item) != _NUMBERS:
        raise ValueError(f"{name} is of type {_name(item)}, but item 0 is an array of numbers")
    try:
        return np.asarray(item)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is no array of numbers: {error}") from None


def _is_tensor(X: Any) -> bool:
    return _has(X, "detach") and _has(X, "numpy") and _has(X, "layout")


def _tensor_array(tensor: Any, name: str) -> NDArray:
    """Return a tensor of torch as an array, wherever it is and whether or not it has a gradient."""
    if getattr(tensor, "is_nested", False):
        raise ValueError(f"{name} must not be a nested tensor: pass a list of its tensors, tensor.unbind()")
    if "strided" not in str(tensor.layout):
        raise ValueError(f"{name} must be a dense tensor; got one of layout {tensor.layout}: pass its to_dense()")
    if tensor.device.type == "meta":
        raise ValueError(f"{name} is a tensor on the device meta, which holds no values")
    if tensor.is_quantized:
        raise ValueError(f"{name} must not be a quantized tensor: pass its dequantize()")
    try:
        return tensor.numpy(force=True)
    except TypeError:  # a type that numpy lacks, such as bfloat16
        return tensor.float().numpy(force=True)


def _plain(block: Any) -> NDArray:
    """Return what an array of another library gave."""
    if np.ma.is_masked(block):
        raise ValueError("X must not have masked values")
    if _is_tensor(block):
        return _tensor_array(block, "X")
    try:
        return np.asarray(block)
    except TypeError as error:  # arrays on a GPU are not copied from it unasked
        raise ValueError(f"X must be {FORMS}; got one that numpy cannot read: {error}") from None


def _check_columns(table: Any) -> None:
    """Raise ValueError for a table whose cells are images or paths."""
    if not len(table):
        return
    names = getattr(table, "column_names", table.columns)
    for name, cell in zip(names, np.asarray(table[:1], dtype=object).ravel(), strict=False):
        if _kind(cell) in (_PATH, _PICTURE) or _depth(cell) > 0:
            raise ValueError(
                f"X must hold numbers or paths of image files: column {name!r} of this {_name(table)} has cells of "
                f"type {_name(cell)}. Where they are the images, pass that column alone, X[{name!r}]"
            )


def _refuse_letters(paths: list) -> None:
    """Raise ValueError for the letters of a path, which is what scikit-learn makes of a folder that it indexes."""
    letters = [path for path in paths if isinstance(path, str) and len(path) == 1]
    if len(letters) < len(paths):
        return
    missing = next((letter for letter in letters if not Path(letter).is_file()), None)
    if missing is not None:
        raise ValueError(
            f"X must name image files: there is no file {missing}. Cross-validation and searches over parameters take "
            "no folder, whose name they split into letters: pass a list, as sorted(Path(folder).rglob('*.png'))"
        )


def _name(value: Any) -> str:
    """Return the type of a value: the value itself may be long. Missing values are often the number NaN."""
    return type(value).__name__ + (" (nan)" if isinstance(value, float) and math.isnan(value) else "")
