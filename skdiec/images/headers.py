"""Many files of which some are broken: what can be read of them, at which size, and what is wrong with the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from skdiec.images.decoding import ImageKind, read_image, read_kind, readable_suffixes
from skdiec.images.source import ImageFormat
from skdiec.messages import shortened

Report = Callable[[int, int], object]
"""Told of how many files are done, and of how many there are."""

MAX_SUGGESTED_SIDE = 32
"""Longest side that `suggested_size` takes: in minutes on a processor, networks learn more of small images."""

_MAX_ASPECT = 4.0
_LIKE_ASPECT = 1.1  # ratio up to which two shapes count as one
_LIKE_SHARE = 0.75  # of the files that must share a shape for it to be kept
_MULTIPLE = 4  # of sides that are not the files' own
_FILES_AT_ONCE = 64

_T = TypeVar("_T")


def read_headers(paths: Sequence[Path], report: Report | None = None) -> tuple[dict[int, ImageKind], dict[int, str]]:
    """Read the header of each file.

    Parameters
    ----------
    paths : sequence of Path
    report : callable, default=None
        Called as ``report(done, total)``.

    Returns
    -------
    kinds : dict of int to ImageKind
        What the files that can be read say of themselves, by their place in `paths`.
    problems : dict of int to str
        Why the others cannot be read.
    """
    readable_suffixes()  # Pillow's formats are to be known before threads ask for them
    kinds: dict[int, ImageKind] = {}
    problems: dict[int, str] = {}
    for row, (kind, problem) in enumerate(_each(lambda row: read_kind(paths[row]), paths, report)):
        if kind is not None:
            kinds[row] = kind
        else:
            problems[row] = problem
    return kinds, problems


def of_other_depth(kinds: Mapping[int, ImageKind]) -> dict[int, str]:
    """Return the images that are deeper than most, or less deep: nothing tells how their values compare.

    Parameters
    ----------
    kinds : mapping of int to ImageKind

    Returns
    -------
    dict of int to str
        What is wrong with them.

    Examples
    --------
    >>> flat, deep = (ImageKind(1, (8, 8), np.dtype(name)) for name in ("uint8", "uint16"))
    >>> of_other_depth({0: flat, 1: deep, 4: flat})
    {1: 'it has more than 8 bits (uint16), and the others have 8: convert it'}
    """
    is_deep = {row: kind.dtype != np.uint8 for row, kind in kinds.items()}
    deep = 2 * sum(is_deep.values()) > len(is_deep)
    message = (
        "it has 8 bits, and the others have more: convert it"
        if deep
        else "it has more than 8 bits ({}), and the others have 8: convert it"
    )
    return {row: message.format(kinds[row].dtype) for row, found in is_deep.items() if found != deep}


def suggested_size(kinds: Iterable[ImageKind]) -> tuple[int, int]:
    """Suggest a size at which files are read, that suits them and a training of minutes.

    The size that all files share, where no side is above 32. Else the shape of three quarters of the files, up to 1 to
    4, or a square where they have none in common; as large as the median of their longer sides (of a square, of their
    shorter ones), up to 32, in multiples of 4.

    Parameters
    ----------
    kinds : iterable of ImageKind
        At least one.

    Returns
    -------
    height, width : int

    Examples
    --------
    >>> photos = [ImageKind(3, size, np.dtype("uint8")) for size in [(480, 640), (600, 800), (768, 1024), (20, 20)]]
    >>> suggested_size(photos)
    (24, 32)
    >>> suggested_size(photos + photos[3:])
    (32, 32)
    """
    sizes = np.array([kind.size for kind in kinds], dtype=np.float64)
    if (sizes == sizes[0]).all() and sizes[0].max() <= MAX_SUGGESTED_SIDE:
        return int(sizes[0, 0]), int(sizes[0, 1])
    aspects = np.log(sizes[:, 1] / sizes[:, 0])
    usual = float(np.median(aspects))
    is_shared = np.mean(np.abs(aspects - usual) <= math.log(_LIKE_ASPECT)) >= _LIKE_SHARE
    if is_shared and abs(usual) > math.log(_LIKE_ASPECT):
        aspect = math.exp(min(abs(usual), math.log(_MAX_ASPECT)))
        longer = min(float(np.median(sizes.max(axis=1))), MAX_SUGGESTED_SIDE)
        longer, shorter = _rounded(longer), _rounded(longer / aspect)
        return (shorter, longer) if usual > 0 else (longer, shorter)
    side = _rounded(min(float(np.median(sizes.min(axis=1))), MAX_SUGGESTED_SIDE))
    return side, side


def decode_files(
    paths: Sequence[Path], format: ImageFormat, out: NDArray, report: Report | None = None
) -> dict[int, str]:
    """Decode files into an array.

    Parameters
    ----------
    paths : sequence of Path
    format : ImageFormat
        With 1 or 3 channels.
    out : ndarray of shape (n, channels, height, width)
        Of a type that holds the values of all. Images that cannot be read are left as they are.
    report : callable, default=None
        Called as ``report(done, total)``.

    Returns
    -------
    dict of int to str
        Why images cannot be read, by their place in `paths`.
    """
    found = _each(lambda row: read_image(paths[row], format.shape, format.value_range), paths, report)
    problems = {}
    for row, (pixels, problem) in enumerate(found):
        if pixels is not None:
            out[row] = pixels
        else:
            problems[row] = problem
    return problems


def _each(read: Callable[[int], _T], paths: Sequence[Path], report: Report | None) -> Iterator[tuple[_T | None, str]]:
    """Yield what is read of each file, by several threads, or why it cannot be."""

    def attempt(row: int) -> tuple[_T | None, str]:
        try:
            return read(row), ""
        except ValueError as error:
            return None, shortened(str(error).removeprefix(f"cannot read the image file {paths[row]}: "))

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), _FILES_AT_ONCE):
            yield from pool.map(attempt, range(start, min(start + _FILES_AT_ONCE, len(paths))))
            if report is not None:
                report(min(start + _FILES_AT_ONCE, len(paths)), len(paths))


def _rounded(side: float) -> int:
    return max(_MULTIPLE, _MULTIPLE * round(side / _MULTIPLE))
