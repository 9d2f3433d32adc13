import functools
import io
import os
import re
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from skdiec.images import as_image_source, decoding
from skdiec.images.decoding import ImageKind, decode_image, image_kind, read_image, read_kind

BYTES = (0.0, 255.0)
GREY_SHADES = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)  # every multiple of 10 up to 230
COLORS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)

UPRIGHT = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
    9: lambda pixels: pixels,
}
"""How pixels in a file are to be turned for each value of the orientation tag."""


def save(path, pixels, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def read(path, channels=1, value_range=BYTES):
    """The pixels of a file at its own size, (height, width) or (height, width, 3)."""
    pixels = read_image(path, (channels, *read_kind(path).size), value_range)
    return pixels[0] if channels == 1 else np.moveaxis(pixels, 0, -1)


def decoded(image, channels=3, value_range=BYTES):
    pixels = decode_image(image, (channels, *image_kind(image).size), value_range)
    return pixels[0] if channels == 1 else np.moveaxis(pixels, 0, -1)


def luma(rgb):
    return (rgb.astype(int) @ [19595, 38470, 7471] + 2**15) >> 16  # ITU-R 601-2


def orientation_tag(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# Orientation

LOSSLESS = {
    "png": {},
    "webp": {"lossless": True},
    "tif": {"compression": None},
    "lzw.tif": {"compression": "tiff_lzw"},
    "deflate.tif": {"compression": "tiff_adobe_deflate"},
    "strips.tif": {"compression": None, "rows": 2},
    "strips.lzw.tif": {"compression": "tiff_lzw", "rows": 2},
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("kind", ["grey", "color", "deep"])
def test_orientation_tag_is_applied_once(tmp_path, orientation, name, kind):
    pixels = {"grey": GREY_SHADES, "color": COLORS, "deep": GREY_SHADES.astype(np.uint16) * 250}[kind]
    if (kind == "deep" and name == "webp") or (orientation == 9 and name.endswith("tif")):  # cannot be written
        return
    options = dict(LOSSLESS[name])
    if name.endswith("tif"):
        options["tiffinfo"] = {274: orientation, 278: options.pop("rows", 4)}
    else:
        options["exif"] = orientation_tag(orientation)
    path = save(tmp_path / f"a.{name}", pixels, **options)
    upright = UPRIGHT[orientation](pixels)
    channels = 3 if kind == "color" or name == "webp" else 1
    assert read_kind(path) == ImageKind(channels, upright.shape[:2], pixels.dtype)
    expected = np.dstack([upright] * 3) if upright.ndim == 2 and channels == 3 else upright
    np.testing.assert_array_equal(read(path, channels, (0.0, 65535.0) if kind == "deep" else BYTES), expected)
    if kind != "deep":
        with Image.open(path) as image:  # as users bring it: by its path
            np.testing.assert_array_equal(decoded(image, channels), expected)
            np.testing.assert_array_equal(decoded(image, channels), expected)  # loaded by now


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_of_tiles_is_applied(tmp_path, orientation):
    """A TIFF file of 16 x 16 tiles, written by hand: Pillow writes strips only."""
    pixels = np.random.default_rng(1).integers(0, 256, (20, 40), dtype=np.uint8)
    padded = np.zeros((32, 48), dtype=np.uint8)
    padded[:20, :40] = pixels
    tiles = [padded[y : y + 16, x : x + 16].tobytes() for y in (0, 16) for x in (0, 16, 32)]
    entries = [
        *((256, 4, 1, 40), (257, 4, 1, 20), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (274, 3, 1, orientation)),
        *((277, 3, 1, 1), (322, 4, 1, 16), (323, 4, 1, 16), (324, 4, 6, 0), (325, 4, 6, 0)),
    ]
    end = 8 + 2 + 12 * len(entries) + 4
    offsets = [end + 48 + 256 * index for index in range(6)]
    entries[-2], entries[-1] = (324, 4, 6, end), (325, 4, 6, end + 24)
    content = b"II*\0" + struct.pack("<IH", 8, len(entries))
    content += b"".join(struct.pack("<HHII", *entry) for entry in entries) + struct.pack("<I", 0)
    content += struct.pack("<6I", *offsets) + struct.pack("<6I", *[256] * 6) + b"".join(tiles)
    (tmp_path / "a.tif").write_bytes(content)
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), UPRIGHT[orientation](pixels))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("side", [30, 20])
def test_jpeg_photos_are_decoded_at_a_part_of_their_size_upright(tmp_path, orientation, side):
    y, x = np.mgrid[:301, :405]  # no multiple of 8: the last blocks are cut
    pixels = np.dstack([x * 255 // 404, y * 255 // 300, 128 + 100 * np.sin((x + 2 * y) / 40)]).astype(np.uint8)
    path = save(tmp_path / "a.jpg", pixels, quality=95, exif=orientation_tag(orientation))
    with Image.open(path) as image:
        whole = Image.fromarray(np.ascontiguousarray(UPRIGHT[orientation](np.asarray(image))))
    assert read_kind(path).size == whole.size[::-1]
    for height, width in ((side, side), (side, side + 7), (side + 7, side)):
        expected = np.asarray(ImageOps.fit(whole, (width, height), method=Image.Resampling.BICUBIC)).astype(int)
        difference = np.abs(np.moveaxis(read_image(path, (3, height, width), BYTES), 0, -1) - expected)
        assert difference.max() <= 5
        assert difference.mean() < 0.5


@pytest.mark.parametrize(("side", "scale"), [(9, 8), (18, 8), (19, 4), (37, 4), (75, 2), (76, 1), (300, 1), (400, 1)])
def test_jpeg_photos_are_decoded_at_twice_the_wanted_size_or_more(tmp_path, monkeypatch, side, scale):
    sizes = []
    convert = decoding._on_white
    monkeypatch.setattr(decoding, "_on_white", lambda image, *more: sizes.append(image.size) or convert(image, *more))
    read_image(save(tmp_path / "a.jpg", np.zeros((300, 400), dtype=np.uint8)), (1, side, side), BYTES)
    assert sizes == [(-(-400 // scale), -(-300 // scale))]


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def png(header, chunks, rows):
    """A PNG file from its chunks; `rows` may be None where they are among them."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    body = b"".join(chunk(*item) for item in [(b"IHDR", struct.pack(">IIBBBBB", *header)), *chunks])
    data = b"" if rows is None else chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("is_behind", [False, True])
@pytest.mark.parametrize("name", ["eXIf", "iTXt", "tEXt"])
def test_orientation_in_any_chunk_of_a_png_file_is_applied(tmp_path, name, is_behind):
    exif = orientation_tag(6).tobytes()
    content = {
        "eXIf": exif.removeprefix(b"Exif\0\0"),
        "iTXt": b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.encode(),
        "tEXt": b"Raw profile type exif\0\nexif\n" + f"{len(exif):8}\n{exif.hex()}\n".encode(),
    }[name]
    data = (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in GREY_SHADES)))
    chunks = [data, (name.encode(), content)] if is_behind else [(name.encode(), content), data]
    (tmp_path / "a.png").write_bytes(png((6, 4, 8, 0, 0, 0, 0), chunks, None))
    assert read_kind(tmp_path / "a.png").size == (6, 4)
    np.testing.assert_array_equal(read(tmp_path / "a.png"), np.rot90(GREY_SHADES, -1))


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_orientation_in_xmp_of_a_tiff_file_is_applied(tmp_path, compression):
    path = save(tmp_path / "a.tif", GREY_SHADES, tiffinfo={700: XMP.encode()}, compression=compression)
    assert read_kind(path).size == (6, 4)
    np.testing.assert_array_equal(read(path), np.rot90(GREY_SHADES, -1))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.gif", "a.bmp"])
def test_headers_are_read_without_the_pixels(tmp_path, monkeypatch, name):
    path = save(tmp_path / name, COLORS)
    monkeypatch.setattr(Image.Image, "load", None)
    assert read_kind(path).size == (4, 6)


# Transparency

ALPHA = np.array([[0, 255, 128, 51]], dtype=np.uint8)
STROKE = np.array([[0, 0, 0, 200]], dtype=np.uint8)
ON_WHITE = np.array([[255, 0, 127, 244]])  # alpha * stroke + (1 - alpha) * 255


def transparent_images():
    alpha, stroke = Image.fromarray(ALPHA), Image.fromarray(STROKE)
    yield "LA", Image.merge("LA", [stroke, alpha])
    yield "La", Image.merge("LA", [stroke, alpha]).convert("La")
    yield "RGBA", Image.merge("RGBA", [stroke] * 3 + [alpha])
    yield "RGBa", Image.merge("RGBA", [stroke] * 3 + [alpha]).convert("RGBa")
    palette = Image.fromarray(np.array([[0, 1, 2, 3]], dtype=np.uint8)).convert("P")
    palette.putpalette(np.repeat(STROKE, 3).tolist())
    palette.info["transparency"] = ALPHA.tobytes()
    yield "P", palette
    opaque = Image.fromarray(np.array([[0, 0, 0, 1]], dtype=np.uint8)).convert("P")
    opaque.putpalette([0, 0, 0, 200, 200, 200])
    yield "PA", Image.merge("PA", [opaque, alpha])


@pytest.mark.parametrize(("mode", "image"), list(transparent_images()))
def test_transparent_pixels_are_laid_on_white(tmp_path, mode, image):
    assert image.mode == mode
    np.testing.assert_allclose(decoded(image, 1), ON_WHITE, atol=1)
    np.testing.assert_allclose(decoded(image, 3), np.dstack([ON_WHITE] * 3), atol=1)
    for suffix in {"LA": ["png"], "P": ["png"], "RGBA": ["png", "webp", "tif", "tga", "ico"]}.get(mode, []):
        options = {"lossless": True, "exact": True} if suffix == "webp" else {}
        path = save(tmp_path / f"a.{suffix}", image.resize((16, 4), 0) if suffix == "ico" else image, **options)
        np.testing.assert_allclose(read(path)[:1, :: 4 if suffix == "ico" else 1], ON_WHITE, atol=1)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_transparent_color_is_white(tmp_path, mode, suffix):
    stroke = Image.fromarray(np.array([[0, 255, 0]], dtype=np.uint8)).convert(mode)
    if suffix == "gif" and mode == "RGB":  # GIF files have palettes
        return
    key = (0, 0, 0) if mode == "RGB" else 0
    path = save(tmp_path / f"a.{suffix}", stroke, transparency=key)
    assert read(path).tolist() == [[255, 255, 255]]


@pytest.mark.parametrize(
    ("bits", "key", "row"),
    [
        (1, 0, b"\x40"),  # shades 0 and 1
        (2, 1, b"\x70"),  # shades 1 and 3
        (4, 1, b"\x1f"),
        (8, 1, b"\x01\xff"),
        (16, 1, b"\0\1\xff\xff"),
    ],
)
def test_a_transparent_shade_of_any_depth_is_white(tmp_path, bits, key, row):
    content = png((2, 1, bits, 0, 0, 0, 0), [(b"tRNS", struct.pack(">H", key))], b"\0" + row)
    (tmp_path / "a.png").write_bytes(content)
    white = 65535 if bits == 16 else 255
    assert read(tmp_path / "a.png", value_range=(0.0, white)).tolist() == [[white, white]]


def test_white_is_the_upper_end_of_the_value_range():
    (image,) = (image for mode, image in transparent_images() if mode == "LA")
    np.testing.assert_allclose(decoded(image, 1, (0.0, 200.0)), [[200, 0, 100, 200]], atol=1)


# Modes

GREY_MODES = {
    "L": Image.fromarray(GREY_SHADES),
    "LA": Image.merge("LA", [Image.fromarray(GREY_SHADES), Image.new("L", (6, 4), 255)]),
    "1": Image.fromarray(GREY_SHADES > 100),
    "I;16": Image.fromarray(GREY_SHADES.astype(np.uint16) * 257),
    "I": Image.fromarray(GREY_SHADES.astype(np.int32) * 257),
    "F": Image.fromarray(GREY_SHADES.astype(np.float32) / 100 - 1),
}
DEEP_RANGES = {"I;16": (0.0, 65535.0), "I": (-10.0, 70000.0), "F": (-1.0, 1.5)}


@pytest.mark.parametrize("mode", GREY_MODES)
def test_grey_files_of_every_mode_read_as_their_shades(tmp_path, mode):
    assert GREY_MODES[mode].mode == mode
    path = save(tmp_path / ("a.tif" if mode in ("I", "F") else "a.png"), GREY_MODES[mode])
    expected = {
        "1": np.where(GREY_SHADES > 100, 255, 0),
        "I;16": GREY_SHADES.astype(np.uint16) * 257,
        "I": GREY_SHADES.astype(np.int32) * 257,
        "F": GREY_SHADES.astype(np.float32) / 100 - 1,
    }.get(mode, GREY_SHADES)
    dtype = {"I;16": "uint16", "I": "int32", "F": "float32"}.get(mode, "uint8")
    value_range = DEEP_RANGES.get(mode, BYTES)
    assert read_kind(path) == image_kind(GREY_MODES[mode]) == ImageKind(1, (4, 6), np.dtype(dtype))
    for out in (read(path, 1, value_range), decoded(GREY_MODES[mode], 1, value_range)):
        np.testing.assert_array_equal(out, expected)
        assert out.dtype == dtype
    np.testing.assert_array_equal(read(path, 3, value_range), np.dstack([expected] * 3))


def ink(rgb):
    bands = [Image.fromarray(255 - rgb[..., channel]) for channel in range(3)]
    return Image.merge("CMYK", [*bands, Image.new("L", bands[0].size)])


def palette(rgb):
    colors, indices = np.unique(rgb.reshape(-1, 3), axis=0, return_inverse=True)
    image = Image.fromarray(indices.reshape(rgb.shape[:2]).astype(np.uint8)).convert("P")
    image.putpalette(colors.ravel().tolist())
    return image


def lab(rgb):
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(Image.fromarray(rgb), *profiles, outputMode="LAB")


MUTED = 100 + COLORS // 8  # that all color spaces have
COLOR_MODES = {
    "RGB": (Image.fromarray(MUTED), 0, ["png", "bmp", "tif", "ppm", "tga", "webp"]),
    "RGBA": (Image.fromarray(MUTED).convert("RGBA"), 0, ["png", "tif", "tga"]),
    "RGBX": (Image.fromarray(MUTED).convert("RGBX"), 0, []),
    "CMYK": (ink(MUTED), 0, ["tif"]),
    "YCbCr": (Image.fromarray(MUTED).convert("YCbCr"), 3, ["tif"]),
    "HSV": (Image.fromarray(MUTED).convert("HSV"), 3, []),
    "LAB": (lab(MUTED), 3, ["tif"]),
    "P": (palette(MUTED), 0, ["png", "bmp", "tif", "gif"]),
}


@pytest.mark.parametrize("mode", COLOR_MODES)
def test_color_images_of_every_mode_read_as_their_colors(tmp_path, mode):
    image, tolerance, suffixes = COLOR_MODES[mode]
    assert image.mode == mode
    paths = [save(tmp_path / f"a.{suffix}", image, lossless=True) for suffix in suffixes]
    for read_with in [functools.partial(decoded, image), *(functools.partial(read, path) for path in paths)]:
        np.testing.assert_allclose(read_with(channels=3), MUTED, atol=tolerance)
        np.testing.assert_allclose(read_with(channels=1), luma(MUTED), atol=tolerance)
    for kind in (image_kind(image), *map(read_kind, paths)):
        assert kind == ImageKind(3, (4, 6), np.dtype(np.uint8))


def test_inverted_ink_of_jpeg_files_reads_as_its_color(tmp_path):
    rgb = np.full((16, 16, 3), [200, 100, 50], dtype=np.uint8)
    out = read(save(tmp_path / "a.jpg", ink(rgb), quality=100), 3)
    np.testing.assert_allclose(out, rgb, atol=3)


# Depth


@pytest.mark.parametrize("order", ["<", ">"])
def test_bytes_of_deep_files_may_come_in_any_order(tmp_path, order):
    shades = np.arange(24).reshape(4, 6) * 150
    content = shades.astype(f"{order}u2").tobytes()
    image = Image.frombytes("I;16" if order == "<" else "I;16B", (6, 4), content)
    np.testing.assert_array_equal(decoded(image, 1, (0.0, 4095.0)), shades)
    np.testing.assert_array_equal(read(save(tmp_path / "a.tif", image), 1, (0.0, 4095.0)), shades)


@pytest.mark.parametrize("kind", ["uint16", "int32", "float32"])
def test_deep_images_are_scaled_with_all_their_bits(tmp_path, kind):
    steps = np.linspace(0, 4000, 32 * 64).reshape(32, 64).astype(kind)
    steps[:, 40:] = 4095  # an edge, at which bicubic weights overshoot
    out = read_image(save(tmp_path / "a.tif", steps), (1, 16, 16), (0.0, 4095.0))[0]
    image = Image.fromarray(steps.astype(np.float32))
    expected = np.asarray(ImageOps.fit(image, (16, 16), method=Image.Resampling.BICUBIC)).clip(0, 4095)
    assert out.dtype == kind
    np.testing.assert_allclose(out, expected, atol=0 if kind == "float32" else 0.5)
    assert len(np.unique(out)) > 150  # of 256 pixels: 8 bits would have left 17 values


def test_large_integers_stay_as_they_are(tmp_path):
    values = np.array([[2**31 - 1, 2**24 + 1, -5]], dtype=np.int32)
    path = save(tmp_path / "a.tif", values)
    np.testing.assert_array_equal(read(path, 1, (-(2.0**31), 2.0**31)), values)


def cut_files(folder):
    """Files of 16 bits a channel, and the upper 8 of them."""
    values = np.array([[0x1234, 0xFFFF, 0x0100], [0, 0x00FF, 0x8000]], dtype=">u2")
    rgb = b"\0" + values.tobytes()
    (folder / "rgb.png").write_bytes(png((2, 1, 16, 2, 0, 0, 0), [], rgb))
    entries = [
        *((256, 4, 1, 2), (257, 4, 1, 1), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 140)),
        *((277, 3, 1, 3), (278, 4, 1, 1), (279, 4, 1, 12), (284, 3, 1, 1)),
    ]
    content = b"MM\0*" + struct.pack(">IH", 8, len(entries))
    for tag, type_, count, value in entries:
        short = type_ == 3 and count == 1
        content += struct.pack(">HHIHH" if short else ">HHII", tag, type_, count, *([value, 0] if short else [value]))
    content += struct.pack(">I", 0)
    content = content.ljust(134, b"\0") + struct.pack(">3H", 16, 16, 16) + values.tobytes()
    (folder / "rgb.tif").write_bytes(content)
    return [folder / "rgb.png", folder / "rgb.tif"], (values >> 8).astype(int).reshape(1, 2, 3) * 257


def test_16_bits_a_channel_need_the_whole_range(tmp_path):
    paths, expected = cut_files(tmp_path)
    for path in paths:
        assert read_kind(path) == ImageKind(3, (1, 2), np.dtype(np.uint16), is_cut=True)
        np.testing.assert_array_equal(read(path, 3, (0.0, 65535.0)), expected)
        with pytest.raises(
            ValueError, match=r"of which Pillow reads the upper 8: value_range can only be \(0, 65535\)"
        ):
            read(path, 3, (0.0, 4095.0))
        with pytest.raises(ValueError, match=r"value_range must be stated .* has values from 0 to 65535"):
            as_image_source([path])


def test_a_transparent_color_of_16_bits_is_white(tmp_path):
    row = struct.pack(">6H", 0x1234, 0x1234, 0x1234, 0, 0, 0)
    content = png((2, 1, 16, 2, 0, 0, 0), [(b"tRNS", struct.pack(">3H", 0x1234, 0x1234, 0x1234))], b"\0" + row)
    (tmp_path / "a.png").write_bytes(content)
    assert read(tmp_path / "a.png", 3, (0.0, 65535.0)).tolist() == [[[65535] * 3, [0] * 3]]


# Range


@pytest.mark.parametrize(
    ("pixels", "value_range", "message"),
    [
        (GREY_SHADES, (0.0, 100.0), "value_range is (0, 100), but it has values from 0 to 230"),
        (GREY_SHADES, (10.0, 255.0), "value_range is (10, 255), but it has values from 0 to 230"),
        (GREY_SHADES.astype(np.uint16) * 20, (0.0, 4095.0), "(0, 4095), but it has values from 0 to 4600"),
        (GREY_SHADES.astype(np.int32) - 1, (0.0, 4095.0), "(0, 4095), but it has values from -1 to 229"),
        (np.full((4, 6), 1.5, dtype=np.float32), (0.0, 1.0), "(0, 1), but it has values from 1.5 to 1.5"),
        (np.full((4, 6), np.nan, dtype=np.float32), (0.0, 1.0), "it contains NaN or infinity"),
        (np.full((4, 6), np.inf, dtype=np.float32), (0.0, 1.0), "it contains NaN or infinity"),
    ],
)
def test_values_outside_of_the_range_are_told_of(tmp_path, pixels, value_range, message):
    path = save(tmp_path / "a.tif", pixels)
    for size in ((4, 6), (2, 2)):
        with pytest.raises(ValueError, match=re.escape(message)):
            decode_image(Image.fromarray(pixels), (1, *size), value_range)
        with pytest.raises(ValueError, match=f"cannot read the image file {path}: .*{re.escape(message)}"):
            read_image(path, (1, *size), value_range)


def test_scaled_values_stay_in_the_range():
    edge = np.zeros((16, 16), dtype=np.uint8)
    edge[:, 8:] = 100
    pixels = decode_image(Image.fromarray(edge), (1, 8, 8), (0.0, 100.0))
    assert (pixels.min(), pixels.max()) == (0, 100)


# Size


def test_images_are_scaled_to_cover_the_shape_then_cropped_at_the_centre():
    rng = np.random.default_rng(0)
    for height, width, target in [(4, 12, (4, 4)), (24, 8, (4, 4)), (5, 9, (7, 3)), (1, 50, (8, 8)), (64, 48, (9, 17))]:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        expected = ImageOps.fit(image, target[::-1], method=Image.Resampling.BICUBIC)
        out = decode_image(image, (3, *target), BYTES)
        np.testing.assert_allclose(out, np.moveaxis(np.asarray(expected), -1, 0), atol=1)


# Pages


def pages(n):
    return [Image.fromarray(np.full((4, 6), 20 * index, dtype=np.uint8)) for index in range(n)]


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.webp", "a.png"])
def test_pages_are_counted_and_the_first_is_read(tmp_path, name):
    first, *rest = pages(3)
    path = save(tmp_path / name, first, save_all=True, append_images=rest)
    assert read_kind(path).pages == 3
    np.testing.assert_allclose(read(path), 0, atol=2)


def test_previews_are_no_pages(tmp_path):
    first, second = pages(2)
    path = save(tmp_path / "a.mpo", first, save_all=True, append_images=[second])
    with Image.open(path) as image:
        assert image.n_frames == 2
    assert read_kind(path).pages == 1
    assert read_kind(path.rename(tmp_path / "a.jpg")).pages == 1


# Hostile and damaged files

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("name", ["a.png", "a.eps", "a"])
def test_no_other_program_is_started(tmp_path, monkeypatch, name):
    import subprocess

    (tmp_path / name).write_bytes(POSTSCRIPT)
    monkeypatch.setattr(subprocess, "Popen", None)
    for read_with in (read_kind, read):
        with pytest.raises(ValueError, match="its content is no image of a known format"):
            read_with(tmp_path / name)


def test_only_formats_of_pixels_are_read():
    suffixes = decoding.readable_suffixes()
    wanted = {"jpg jpeg jfif jpe png apng gif bmp dib tif tiff webp ppm pgm pbm pnm tga ico jp2 mpo"}
    assert {f".{name}" for names in wanted for name in names.split()} <= set(suffixes)
    assert not {".eps", ".ps", ".pdf", ".wmf", ".emf", ".mpg", ".h5", ".grib", ".bufr"} & set(suffixes)


def test_wrong_suffixes_do_no_harm(tmp_path):
    for suffix, name in [("png", "a.jpg"), ("bmp", "b.png"), ("tiff", "c"), ("gif", "d.dat"), ("png", "e.tga")]:
        buffer = io.BytesIO()
        Image.fromarray(GREY_SHADES).save(buffer, suffix)
        (tmp_path / name).write_bytes(buffer.getvalue())
        np.testing.assert_array_equal(read(tmp_path / name), GREY_SHADES)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")
def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    os.symlink(os.devnull, tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with pytest.raises(ValueError, match=rf"{name}: it is no regular file"):
            read_kind(tmp_path / name)


def test_photos_of_100_megapixels_are_read_whatever_warnings_do(tmp_path):
    path = save(tmp_path / "a.png", np.full((10_000, 10_000), 7, dtype=np.uint8), compress_level=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        assert read_kind(path).size == (10_000, 10_000)
        assert read_image(path, (1, 2, 2), BYTES).tolist() == [[[7, 7], [7, 7]]]
        assert warnings.filters == before


def test_bombs_are_told_of(tmp_path):
    (tmp_path / "a.png").write_bytes(png((30_000, 30_000, 1, 0, 0, 0, 0), [], b""))
    with pytest.raises(ValueError, match=r"cannot read the image file .*a\.png: .*decompression bomb"):
        read_kind(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["bmp", "jpg", "png", "ppm", "tif", "webp", "gif"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.8])
def test_truncated_file_is_named(tmp_path, suffix, share):
    sound, cut = save(tmp_path / f"a.{suffix}", COLORS), tmp_path / f"b.{suffix}"
    content = sound.read_bytes()
    cut.write_bytes(content[: int(share * len(content))])
    for options in ({}, {"image_shape": (4, 6)}):
        with pytest.raises(ValueError, match=rf"cannot read the image file .*b\.{suffix}: "):
            as_image_source([sound, cut], **options).read(slice(None))


def test_images_whose_file_was_closed_are_told_of(tmp_path):
    with Image.open(save(tmp_path / "a.png", GREY_SHADES)) as image:
        pass
    with pytest.raises(ValueError, match="its file was closed before its pixels were read"):
        image_kind(image)


# Files that Pillow reads as others than they are


def tiff(path, values, *, photometric=1, sample_format=1):
    """Write an uncompressed grey TIFF file by hand."""
    height, width = values.shape
    tags = [
        *((256, width), (257, height), (258, 8 * values.itemsize), (259, 1), (262, photometric), (273, 8), (277, 1)),
        *((278, height), (279, values.nbytes), (339, sample_format)),
    ]
    pixels = values.tobytes()
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_file_made_by_hand_is_read(dtype, tmp_path):
    values = np.arange(12, dtype=dtype).reshape(3, 4)
    found = read_image(tiff(tmp_path / "a.tif", values), (1, 3, 4), (0, float(np.iinfo(dtype).max)))
    np.testing.assert_array_equal(found[0], values)


@pytest.mark.parametrize(
    ("values", "tags", "message"),
    [
        (np.arange(-6, 6, dtype=np.int8).reshape(3, 4), {"sample_format": 2}, "signed values of 8 bits"),
        (np.arange(12, dtype=np.uint16).reshape(3, 4), {"photometric": 0}, "more than 8 bits with white as 0"),
    ],
)
def test_files_that_would_be_misread_are_told_of(values, tags, message, tmp_path):
    path = tiff(tmp_path / "a.tif", values, **tags)
    with pytest.raises(ValueError, match=f"cannot read the image file {re.escape(str(path))}: it has {message}"):
        read_kind(path)


def test_grey_of_8_bits_with_white_as_0_is_inverted(tmp_path):
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    found = read_image(tiff(tmp_path / "a.tif", values, photometric=0), (1, 3, 4), (0.0, 255.0))
    np.testing.assert_array_equal(found[0], 255 - values)


@pytest.mark.parametrize("size", [(0, 0), (8, 0), (0, 8)])
def test_images_without_pixels_are_told_of(size):
    with pytest.raises(ValueError, match="it has no pixels"):
        image_kind(Image.new("L", size))
