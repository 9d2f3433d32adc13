"""How one image is decoded: upright, on white, grey or in colour, at the wanted size, with all of its bits."""

from __future__ import annotations

import functools
import os
import re
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:
    from PIL import ImageFile
    from PIL.TiffImagePlugin import TiffImageFile

BY_CONTENT = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Formats of Pillow that are found by their content, so that wrong suffixes do no harm."""

BY_SUFFIX = frozenset(
    {*BY_CONTENT, "BLP", "CUR", "DCX", "DDS", "DIB", "FLI", "FTEX", "GBR", "ICNS", "ICO", "IM", "MPO", "MSP"}
    | {"PCD", "PCX", "PIXAR", "PSD", "QOI", "SGI", "SUN", "TGA", "XBM", "XPM"}
)
"""Formats of Pillow that are read where the suffix says so: all that hold pixels. Those that run another program
(PostScript) or hold no pixels themselves (vectors, containers) are not among them."""

OVERSAMPLING = 2
"""A JPEG photo is decoded at no less than this many times the wanted size."""

_DEEP_DTYPES = {"I": np.int32, "F": np.float32, **dict.fromkeys(["I;16", "I;16B", "I;16L", "I;16N"], np.uint16)}
_GREY_MODES = {"1", "L", "LA", "La", *_DEEP_DTYPES}
_CUT_TO_8_BITS = re.compile(r"(L|La|LA|RGB|RGBX|RGBa|RGBA|CMYK);16[BLNS]?")
"""Layouts of 16 bits a channel, of which Pillow keeps the upper 8."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_PNG_SIGNATURE_BYTES = 8
_one_filter_at_a_time = threading.Lock()
_T = TypeVar("_T")
_LAYERED_FORMATS = {"MPO", "PSD"}  # previews and layers of one picture, not pages


@dataclass(frozen=True)
class ImageKind:
    """What the header of an image says of it.

    Attributes
    ----------
    channels : int
        1 for grey, 3 for colour. Palettes count as colour.
    size : tuple of int
        ``(height, width)`` of the upright image.
    dtype : dtype
        Of its values: uint8, or uint16, int32 or float32 where it is deeper.
    pages : int
        Pages or frames, of which the first is read.
    is_cut : bool
        Whether it has 16 bits a channel, of which Pillow keeps the upper 8; `decode_image` gives them as uint16.
    """

    channels: int
    size: tuple[int, int]
    dtype: np.dtype
    pages: int = 1
    is_cut: bool = False


def image_kind(image: Image.Image) -> ImageKind:
    """Return what kind of image this is, from its header alone where it has not been loaded."""
    if _is_pending(image) and image.fp is None:
        raise ValueError("its file was closed before its pixels were read")
    if 0 in image.size:
        raise ValueError(f"it has no pixels: its width and height are {image.size}")
    layout = _raw_layout(image)
    is_cut = _CUT_TO_8_BITS.fullmatch(layout) is not None
    dtype = np.uint16 if is_cut else _DEEP_DTYPES.get(image.mode, np.uint8)
    grey = image.mode in _GREY_MODES or layout.startswith("LA;16")
    width, height = image.size
    if _is_pending(image) and image.format == "TIFF":
        _check_tiff(image)
        # The size in the file: Pillow's own may be that of the upright image already.
        tags = _tags(image)
        width, height = tags[256], tags[257]
    size = (width, height) if _orientation(image) >= 5 else (height, width)
    has_pages = getattr(image, "is_animated", False) and image.format not in _LAYERED_FORMATS
    pages = getattr(image, "n_frames", 1) if has_pages else 1
    return ImageKind(1 if grey else 3, size, np.dtype(dtype), pages, is_cut)


def decode_image(image: Image.Image, shape: tuple[int, int, int], value_range: tuple[float, float]) -> NDArray:
    """Decode an image of Pillow, from a file or from a user.

    It is turned upright as its orientation tag says, and laid on white (the upper end of `value_range`) where it is
    transparent. All colour spaces become RGB; grey is the luma of ITU-R 601-2. An image of another size is scaled to
    cover the target (bicubic, with all of its pixels), then cropped at the centre.

    Parameters
    ----------
    image : PIL.Image.Image
        Loaded by this, and not changed otherwise. Not to be decoded by two threads at a time.
    shape : tuple of int
        ``(channels, height, width)``, with 1 or 3 channels.
    value_range : tuple of float
        The values of black and white.

    Returns
    -------
    ndarray of shape (channels, height, width)
        uint8, or the type that `image_kind` names for deeper images, whose values stay as they are.

    Raises
    ------
    ValueError
        Where values are not finite or lie outside of `value_range`.
    """
    return _decoded(image, shape, value_range, None)


def _decoded(
    image: Image.Image,
    shape: tuple[int, int, int],
    value_range: tuple[float, float],
    drafted: tuple[float, float] | None,
) -> NDArray:
    """Decode an image; `drafted` is the exact width and height of one that is decoded at a part of its size."""
    kind = image_kind(image)
    key = _key_color(image)
    orientation = _orientation(image)
    image = _upright(image)
    if image.mode in _DEEP_DTYPES:
        return _deep_pixels(np.asarray(image).astype(kind.dtype), key, shape, value_range)
    if kind.is_cut:
        check_cut_range(value_range)
        value_range = (0.0, 255.0)
    image = _on_white(image, key, round(_within(value_range[1], np.uint8)))
    mode = "L" if shape[0] == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    if not (value_range[0] <= 0 and value_range[1] >= 255):
        extrema = np.ravel(image.getextrema())
        _check_values(extrema.min(), extrema.max(), value_range)
    area = (0.0, 0.0, *image.size) if drafted is None else _upright_area(image.size, drafted, orientation)
    pixels = np.asarray(_fitted(image, shape, area), dtype=np.uint8)
    if image.size != (shape[2], shape[1]):  # bicubic weights overshoot at edges
        low, high = (np.uint8(_within(value, np.uint8)) for value in value_range)
        pixels = pixels.clip(low, high)
    pixels = pixels[None] if shape[0] == 1 else np.moveaxis(pixels, -1, 0)
    return pixels.astype(np.uint16) * 257 if kind.is_cut else pixels


def check_cut_range(value_range: tuple[float, float]) -> None:
    """Raise ValueError where the upper 8 of 16 bits do not do for a range of values."""
    if value_range != (0.0, 65535.0):
        raise ValueError(
            "it has 16 bits a channel, of which Pillow reads the upper 8: value_range can only be (0, 65535); "
            f"got {_pair(value_range)}. Convert it to 8 bits, or pass its pixels as an array"
        )


def _despite_its_size(read: Callable[..., _T]) -> Callable[..., _T]:
    """Make what reads a file succeed where Pillow's warning of images above 89 megapixels is turned into an error.

    Photos are as large; above twice that, Pillow raises an error of its own. Filters of warnings belong to the process,
    not to a thread: they are touched only where there is no other way.
    """

    @functools.wraps(read)
    def retrying(*arguments: Any) -> _T:
        try:
            return read(*arguments)
        except Image.DecompressionBombWarning:
            with _one_filter_at_a_time, warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                return read(*arguments)

    return retrying


@_despite_its_size
def read_image(path: Path, shape: tuple[int, int, int], value_range: tuple[float, float]) -> NDArray:
    """Decode an image file; see `decode_image`.

    A JPEG photo of at least four times the wanted size is decoded at a half, a quarter or an eighth of its own, which
    takes a fraction of the time. It is still at least twice the wanted size then.
    """
    with opened(path) as image:
        if image.format in ("JPEG", "MPO"):
            height, width = shape[1:] if _orientation(image) < 5 else shape[:0:-1]
            mode_and_box = image.draft(None, (OVERSAMPLING * width, OVERSAMPLING * height))
            return _decoded(image, shape, value_range, mode_and_box and mode_and_box[1][2:])
        return decode_image(image, shape, value_range)


@_despite_its_size
def read_kind(path: Path) -> ImageKind:
    """Return what the header of an image file says of it."""
    with opened(path) as image:
        return image_kind(image)


@_despite_its_size
def value_extent(path: Path) -> tuple[float, float]:
    """Return the lowest and the highest value of an image file."""
    with opened(path) as image:
        return pixel_extent(image)


def pixel_extent(image: Image.Image) -> tuple[float, float]:
    """Return the lowest and the highest value of an image of Pillow."""
    factor = 257 if image_kind(image).is_cut else 1
    values = np.asarray(_upright(image))
    return factor * float(values.min()), factor * float(values.max())


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file. What fails inside names the file."""
    # From a file object: opened by its path, a TIFF file with a turned orientation comes out wrong (Pillow 13.0.0).
    with told_of(path), open(path, "rb", opener=_opener) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no regular file")
        with Image.open(file, formats=_formats_of(path)) as image:
            yield image


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Make all errors a ValueError that names the file: on damaged ones, Pillow raises errors of many types."""
    try:
        yield
    except Image.DecompressionBombWarning:
        raise
    except UnidentifiedImageError:
        raise ValueError(f"cannot read the image file {path}: its content is no image of a known format") from None
    except Exception as error:
        raise ValueError(f"cannot read the image file {path}: {error}") from error


@functools.cache
def readable_suffixes() -> dict[str, str]:
    """Return Pillow's format for each suffix (lower case) of the files that are read."""
    return {suffix: name for suffix, name in Image.registered_extensions().items() if name in BY_SUFFIX}


def _formats_of(path: Path) -> list[str]:
    by_suffix = readable_suffixes().get(path.suffix.lower())
    own = [] if by_suffix in (None, "MPO") else [by_suffix]  # JPEG opens MPO
    return list(dict.fromkeys([*own, *(name for name in BY_CONTENT if name in Image.OPEN)]))


def _opener(path: str, flags: int) -> int:
    """Open without waiting for the other end of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _is_pending(image: Image.Image) -> TypeGuard[ImageFile.ImageFile]:
    """Tell whether an image's pixels are still in its file."""
    return bool(getattr(image, "tile", None))


def _raw_layout(image: Image.Image) -> str:
    """Return how the pixels of an image that was not loaded lie in its file, in Pillow's words."""
    if not _is_pending(image):
        return ""
    arguments = image.tile[0][3]
    layout = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return layout if isinstance(layout, str) else ""


def _tags(image: Image.Image) -> Any:
    """Return the tags of a TIFF file, by their numbers."""
    return cast("TiffImageFile", image).tag_v2


def _check_tiff(image: Image.Image) -> None:
    """Raise ValueError for pixels of a TIFF file that Pillow reads as others than they are."""
    tags = _tags(image)
    bits, kinds = (np.max(tags.get(tag, 1)) for tag in (258, 339))
    if kinds == 2 and bits <= 8:
        raise ValueError("it has signed values of 8 bits, which Pillow reads as unsigned: convert it")
    if tags.get(262) == 0 and bits > 8:
        raise ValueError("it has more than 8 bits with white as 0, which Pillow reads as black: convert it")


def _orientation(image: Image.Image) -> int:
    """Return the orientation tag, 1 to 8; 5 to 8 swap the sides."""
    if image.format == "PNG" and _is_pending(image) and not _has_late_exif(cast("BinaryIO", image.fp)):
        exif = Image.Image.getexif(image)  # Pillow's PNG images would decode all pixels to get at what may follow them
    else:
        exif = image.getexif()
    orientation = exif.get(_ORIENTATION, 1)
    return orientation if orientation in _TURNS else 1


def _has_late_exif(file: BinaryIO) -> bool:
    """Tell whether a PNG file has metadata with an orientation behind its pixels."""
    position, is_behind = file.tell(), False
    try:
        file.seek(_PNG_SIGNATURE_BYTES)
        while len(head := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", head)
            is_behind = is_behind or name == b"IDAT"
            if is_behind and name in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
                start = file.read(min(length, 32))
                if name == b"eXIf" or start.startswith((b"Raw profile type exif", b"XML:com.adobe.xmp")):
                    return True
                length -= len(start)
            file.seek(length + 4, os.SEEK_CUR)
        return False
    finally:
        file.seek(position)


def _upright(image: Image.Image) -> Image.Image:
    """Load an image and turn it as its tag says."""
    if image.format == "TIFF" and _is_pending(image):
        # Pillow turns TIFF files when it loads them; of a file that it maps into memory by name, wrongly (13.0.0).
        name, image.filename = image.filename, ""
        try:
            image.load()
        finally:
            image.filename = name
    image.load()
    orientation = _orientation(image)
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _key_color(image: Image.Image) -> int | tuple[int, ...] | None:
    """Return the one value of a grey or colour image that is transparent, in the units of its loaded pixels."""
    key = image.info.get("transparency")
    layout = _raw_layout(image)
    if image.mode == "RGB" and isinstance(key, tuple) and len(key) == 3:
        return tuple(value >> 8 for value in key) if _CUT_TO_8_BITS.fullmatch(layout) else key
    if image.mode in ("1", "L", *_DEEP_DTYPES) and isinstance(key, int):
        return 255 * bool(key) if image.mode == "1" else key * {"L;2": 85, "L;4": 17}.get(layout, 1)
    return None


def _on_white(image: Image.Image, key: int | tuple[int, ...] | None, white: int) -> Image.Image:
    """Return an image of 8 bits as grey or RGB, with white behind what is transparent."""
    alpha = None
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or (image.mode == "P" and image.has_transparency_data):
        if image.mode in ("La", "RGBa"):
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
        image = image.convert("RGBA")
        alpha, image = image.getchannel("A"), image.convert("RGB")
    elif image.mode == "LAB":
        image = _lab_to_rgb(image)
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    if alpha is None and key is not None:
        differs = np.asarray(image) != np.asarray(key, dtype=np.int64)
        alpha = Image.fromarray(np.where(differs.any(axis=-1) if differs.ndim == 3 else differs, 255, 0).astype("u1"))
    if alpha is None:
        return image
    ground = Image.new(image.mode, image.size, (white,) * len(image.getbands()))
    ground.paste(image, mask=alpha)
    return ground


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return cast("Image.Image", ImageCms.profileToProfile(image, *profiles, outputMode="RGB"))  # None if in place


def _deep_pixels(values: NDArray, key: Any, shape: tuple[int, int, int], value_range: tuple[float, float]) -> NDArray:
    if not np.isfinite(values).all():
        raise ValueError("it contains NaN or infinity")
    if key is not None:
        values = np.where(values == key, values.dtype.type(_within(value_range[1], values.dtype)), values)
    _check_values(values.min(), values.max(), value_range)
    if values.shape != shape[1:]:
        # Pillow scales floats of 32 bits; bicubic weights overshoot at edges.
        image = Image.fromarray(values.astype(np.float32))
        scaled = np.asarray(_fitted(image, shape, (0.0, 0.0, *image.size)), dtype=np.float64)
        low, high = (_within(value, values.dtype) for value in value_range)
        scaled = scaled.clip(low, high)
        values = (scaled if values.dtype.kind == "f" else np.rint(scaled)).astype(values.dtype)
    return np.broadcast_to(values, shape)


def _upright_area(
    size: tuple[int, int], drafted: tuple[float, float], orientation: int
) -> tuple[float, float, float, float]:
    """Return ``(left, top, width, height)`` of the picture in an image whose last pixels are blocks in part only.

    Those lie on the right and at the bottom in the file; turned upright, on the left or at the top.
    """
    width, height = drafted[::-1] if orientation >= 5 else drafted
    left = size[0] - width if orientation in (2, 3, 6, 7) else 0.0
    top = size[1] - height if orientation in (3, 4, 7, 8) else 0.0
    return left, top, width, height


def _fitted(image: Image.Image, shape: tuple[int, int, int], area: tuple[float, float, float, float]) -> Image.Image:
    """Scale the middle of an area ``(left, top, width, height)``, as large as can be, to a shape."""
    size = (shape[2], shape[1])
    left, top, width, height = area
    if (width, height) == size:
        return image
    scale = min(width / size[0], height / size[1])
    middle = (min(scale * size[0], width), min(scale * size[1], height))
    left, top = left + (width - middle[0]) / 2, top + (height - middle[1]) / 2
    return image.resize(size, Image.Resampling.BICUBIC, (left, top, left + middle[0], top + middle[1]))


def _within(value: float, dtype: np.dtype | type) -> float:
    """Return the nearest value that a type can hold."""
    if np.dtype(dtype).kind == "f":
        return value
    return float(np.clip(value, np.iinfo(dtype).min, np.iinfo(dtype).max))


def _check_values(low: float, high: float, value_range: tuple[float, float]) -> None:
    tolerance = 1e-6 * (value_range[1] - value_range[0])
    if low < value_range[0] - tolerance or high > value_range[1] + tolerance:
        raise ValueError(f"value_range is {_pair(value_range)}, but it has values from {low:g} to {high:g}")


def _pair(value_range: tuple[float, float]) -> str:
    return f"({value_range[0]:g}, {value_range[1]:g})"
